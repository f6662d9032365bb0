"""Models that hold a text decoder among other parts (an image encoder, a projector): the decoder is a model by itself.

    config.json   the decoder's own config is an object in it (`text_config`), of a family that has a causal model
    names         the decoder's tensors are under a name of their own ("language_model.model.layers.0..."); the rest
                  ("vision_tower...") is left out

What is made of such a model is a plain language model of the decoder's family: `AutoModelForCausalLM` loads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.code import DECODER_CONFIGS, is_native

# Where decoders are, each pattern with what stands there in a model of the decoder alone; the first that fits is taken.
_PART = r"^(model\.)?(language_model|text_model|llm)\."
DECODERS: tuple[tuple[str, str], ...] = (
    (rf"{_PART}lm_head\.", "lm_head."),
    (rf"{_PART}model\.", "model."),
    (_PART, "model."),
)
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
    config: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: str
) -> tuple[dict[str, Any], dict[str, TensorEntry], list[TensorEntry]]:
    """Config and tensors of the decoder alone, and what is left out. Raises BoomspecError where there is none."""
    inner = decoder_config(config)
    assert inner is not None
    whole, decoder = config.get("model_type", "unknown"), inner.get("model_type")
    if decoder is None or is_native(inner, "model") is False:
        raise BoomspecError(
            f"{where}: a {whole} model holds a text decoder among other parts, and transformers has no causal language"
            f" model of that ({decoder or 'its config says no model_type'})",
            hint="save the text decoder as a model of its own, and give that",
        )
    found, rest = {}, []
    for tensor in tensors.values():
        if (name := decoder_name(tensor.name)) is None:
            rest.append(tensor)
        else:
            found[name] = replace(tensor, name=name)
    if not any(name.startswith("model.") for name in found):
        raise BoomspecError(f"{where}: no text decoder found: looked for tensors under 'language_model.'")
    return inner, found, rest
