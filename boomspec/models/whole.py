"""A decoder put back among the other parts of its teacher: what is made then is a whole model, as the teacher is one.

names    the decoder's tensors get the names that they have in the teacher; the rest keep theirs
config   the teacher's whole config, the decoder's own in the place of the teacher's decoder's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import TEACHER, Plan
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.code import DECODER_CONFIGS
from boomspec.models.facts import ModelFacts, total_parameters
from boomspec.models.families import canonical_name, unwrapped
from boomspec.models.nested import decoder_name

_TRUNK, _HEAD = "model.", "lm_head."  # how the names of a decoder begin


def rest_of(facts: ModelFacts) -> tuple[TensorEntry, ...]:
    """What a model holds beside its decoder, without what no class loads; empty for a model that is a decoder."""
    return tuple(entry for entry in facts.left_out if canonical_name(facts.model_type, entry.name) is not None)


def with_rest(facts: ModelFacts, plan: Plan, tensors: Sequence[TensorEntry]) -> list[TensorEntry]:
    """The tensors of a model of this plan, where the rest is kept: a model of the student's layers alone has none."""
    return [*tensors, *(rest_of(facts) if has_rest(plan) else ())]


def has_rest(plan: Plan) -> bool:
    """Whether the teacher's other parts are in a model of this plan, where they are kept."""
    return any(layer.owner == TEACHER for layer in plan)


def prefixes_in(facts: ModelFacts) -> tuple[str, str]:
    """What stands in the whole model in place of the decoder's "model.", and in front of its "lm_head.".

    Raises BoomspecError where the model is a decoder alone, or the names cannot be told from those of its file.
    """
    if not rest_of(facts):
        raise BoomspecError("the teacher is a text decoder alone: it has no other parts to keep")
    trunks, heads, names = set(), set(), set()
    for stored in facts.stored:
        own = unwrapped(stored.name)
        name = decoder_name(own)
        if name is None:
            continue
        names.add(name)
        if name.startswith(_TRUNK):
            trunks.add(own.removesuffix(name.removeprefix(_TRUNK)))
        else:
            heads.add(own.removesuffix(name))
    missing = {entry.name for entry in facts.tensors(range(facts.count), tied=True)} - names
    if len(trunks) != 1 or len(heads) > 1 or missing:
        raise BoomspecError(
            f"a {facts.written.get('model_type')} model like this cannot be put together again: the names of its"
            f" decoder are not under one other ({', '.join(sorted({*trunks, *heads, *sorted(missing)[:1]}))})"
        )
    [trunk] = trunks
    return trunk, heads.pop() if heads else trunk.removesuffix(_TRUNK) if trunk.endswith(f".{_TRUNK}") else ""


def whole_name(prefixes: tuple[str, str], name: str) -> str:
    """What a tensor of the decoder is called in the whole model."""
    return prefixes[1] + name if name.startswith(_HEAD) else prefixes[0] + name.removeprefix(_TRUNK)


def whole_config(facts: ModelFacts, config: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's config with another decoder's `config` in it."""
    key = next(key for key in DECODER_CONFIGS if isinstance(facts.written.get(key), dict))
    own = facts.written[key]
    inner = {name: value for name, value in config.items() if name != "architectures" or name in own}
    whole = {**facts.written, key: inner}
    if "tie_word_embeddings" in config:
        whole["tie_word_embeddings"] = config["tie_word_embeddings"]
    return whole


def described(facts: ModelFacts, *, keep: bool) -> str | None:
    """What becomes of a teacher's other parts, in one line; None for a teacher without any."""
    rest = rest_of(facts)
    if not rest:
        return None
    parts = dict.fromkeys(entry.name.removeprefix(_TRUNK).split(".")[0] for entry in rest)
    what = f"{total_parameters(rest) / 1e6:,.3g} M parameters of {', '.join(parts)}"
    if keep:
        return f"Kept: {what} (teacher.rest: keep); part of every size but the student's, which is the decoder alone."
    return f"Left out: {what} (teacher.rest: drop)."
