"""Put a text decoder back into a model with other parts (an image encoder, a projector), where these are kept.

What is made of such a model is else a plain language model of the decoder's family: `AutoModelForCausalLM` loads it.
Put back, the decoder is under the names, and in the config, that it has in the teacher.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import TEACHER, LayerPlan
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.code import DECODER_CONFIGS
from boomspec.models.facts import ModelFacts, decoder_name
from boomspec.models.families import row_of, unwrapped

_TRUNK, _HEAD = "model.", "lm_head."  # how the names of a decoder begin


def other_tensors(facts: ModelFacts) -> tuple[TensorEntry, ...]:
    """What a model holds beside its decoder, without what no class loads; empty for a model that is a decoder."""
    row = row_of(facts.model_type)
    return tuple(entry for entry in facts.left_out if row.canonical_name(entry.name) is not None)


def with_rest(facts: ModelFacts, plan: LayerPlan, tensors: Sequence[TensorEntry]) -> list[TensorEntry]:
    """The tensors of a model of this plan, where the rest is kept: a model of the student's layers alone has none."""
    return [*tensors, *(other_tensors(facts) if has_other_tensors(plan) else ())]


def has_other_tensors(plan: LayerPlan) -> bool:
    """Whether the teacher's other parts are in a model of this plan, where they are kept."""
    return any(layer.owner == TEACHER for layer in plan)


def whole_names(facts: ModelFacts) -> Callable[[str], str]:
    """What a tensor of the decoder is called in the whole model.

    Raises BoomspecError for a decoder alone, or where the names do not follow from those of its file.
    """
    if not other_tensors(facts):
        raise BoomspecError("the teacher is a text decoder alone: it has no other parts to keep")
    trunks, heads, names = set(), set(), set()
    for own in (unwrapped(stored.name) for stored in facts.stored):
        if (name := decoder_name(own)) is None:
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
    head = heads.pop() if heads else trunk.removesuffix(_TRUNK) if trunk.endswith(f".{_TRUNK}") else ""
    return lambda name: head + name if name.startswith(_HEAD) else trunk + name.removeprefix(_TRUNK)


def whole_config(facts: ModelFacts, config: Mapping[str, Any]) -> dict[str, Any]:
    key = next(key for key in DECODER_CONFIGS if isinstance(facts.written.get(key), dict))
    own = facts.written[key]
    inner = {name: value for name, value in config.items() if name != "architectures" or name in own}
    tied = {name: value for name, value in config.items() if name == "tie_word_embeddings"}
    return {**facts.written, key: inner, **tied}


def described(facts: ModelFacts, *, keep: bool) -> str | None:
    """What becomes of a teacher's other parts, in one line; None for a teacher without any."""
    if not (rest := other_tensors(facts)):
        return None
    parts = dict.fromkeys(entry.name.removeprefix(_TRUNK).split(".")[0] for entry in rest)
    what = f"{sum(entry.elements for entry in rest) / 1e6:,.3g} M parameters of {', '.join(parts)}"
    if keep:
        return f"Kept: {what} (teacher.rest: keep); part of every size but the student's, which is the decoder alone."
    return f"Left out: {what} (teacher.rest: drop)."
