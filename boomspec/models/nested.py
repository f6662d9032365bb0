"""Take the text decoder out of a model with other parts (an image encoder, a projector), and put it back.

    config.json   the decoder's own config is an object in it (`text_config`), of a family that has a causal model
    names         the decoder's tensors are under a name of their own ("language_model.model.layers.0..."); the rest
                  ("vision_tower...") is left out

What is made of such a model is a plain language model of the decoder's family: `AutoModelForCausalLM` loads it. Where
the rest is kept, the decoder is put back: under the names, and in the config, that it has in the teacher.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import TEACHER, LayerPlan
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.code import DECODER_CONFIGS, is_native
from boomspec.models.families import row_of, unwrapped

if TYPE_CHECKING:
    from boomspec.models.facts import ModelFacts

# Where decoders are, each pattern with what stands there in a model of the decoder alone; the first that fits is taken.
_PART = r"^(model\.)?(language_model|text_model|llm)\."
DECODERS: tuple[tuple[str, str], ...] = (
    (rf"{_PART}lm_head\.", "lm_head."),
    (rf"{_PART}model\.", "model."),
    (_PART, "model."),
)
_TRUNK, _HEAD = "model.", "lm_head."  # how the names of a decoder begin
_TOGETHER = ("torch_dtype", "dtype")  # what the whole config may say for the decoder


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of the text decoder that a model holds among other parts; None for a model that is one itself."""
    inner = next((config[key] for key in DECODER_CONFIGS if isinstance(config.get(key), dict)), None)
    if inner is None:
        return None
    shared = {key: config[key] for key in _TOGETHER if config.get(key) is not None and inner.get(key) is None}
    tied = config.get("tie_word_embeddings", inner.get("tie_word_embeddings"))
    return {**inner, **shared, **({} if tied is None else {"tie_word_embeddings": tied})}


def decoder_name(name: str) -> str | None:
    """What a tensor of a whole model is called in the decoder alone; None for one that is no part of it."""
    for pattern, replacement in DECODERS:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name if name.startswith("lm_head.") else None


def decoder_tensors(
    config: Mapping[str, Any], inner: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: str
) -> tuple[dict[str, TensorEntry], list[TensorEntry]]:
    """Tensors of the decoder alone, whose config is `inner`, and what is left out. Raises BoomspecError without one."""
    whole, decoder = config.get("model_type", "unknown"), inner.get("model_type")
    if decoder is None or is_native(inner, "model") is False:
        raise BoomspecError(
            f"{where}: a {whole} model holds a text decoder among other parts, and transformers has no causal language"
            f" model of that ({decoder or 'its config says no model_type'})",
            hint="save the text decoder as a model of its own, and give that",
        )
    named = [(tensor, decoder_name(tensor.name)) for tensor in tensors.values()]
    found = {name: replace(tensor, name=name) for tensor, name in named if name is not None}
    if not any(name.startswith("model.") for name in found):
        raise BoomspecError(f"{where}: no text decoder found: looked for tensors under 'language_model.'")
    return found, [tensor for tensor, name in named if name is None]


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
