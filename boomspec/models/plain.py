"""Recognise standard models of tested architectures, which need no check by transformers.

Of any other model transformers is asked before a run (`boomspec.plan.model_checks`), which takes seconds. What is
listed is data: a sweep over all families (tests/sweeps) has found each of these right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from boomspec.models.checkpoint import TensorEntry
from boomspec.models.families import row_of

_LAYER = re.compile(r"(?<![^.])\d+(?=\.)")
_NEVER = ("quantization_config", "auto_map", "per_layer_config")
# What a config says of sizes, where tensors say it, too: name, side of its shape, keys.
_SIZES = (
    (re.compile(r"\.(embed_tokens|wte|embed_in)\.weight$"), 0, ("vocab_size",)),
    (re.compile(r"\.(embed_tokens|wte|embed_in)\.weight$"), 1, ("hidden_size", "n_embd")),
    (re.compile(r"\.mlp\.(up_proj|dense_h_to_4h)\.weight$"), 0, ("intermediate_size",)),
)
_ACTIVATIONS = (None, "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")


def is_plain(config: Mapping[str, Any], tensors: Iterable[TensorEntry]) -> bool:
    """Whether a model is exactly what its family always is."""
    row = row_of(config.get("model_type"))
    family = row.plain
    if family is None or any(config.get(key) for key in (*family.switches, *_NEVER)):
        return False
    tensors = list(tensors)
    if not all(config.get(key) in _ACTIVATIONS for key in ("hidden_act", "activation_function")) or not all(
        config.get(key) in (None, tensor.shape[side])
        for name, side, keys in _SIZES
        for tensor in tensors
        if name.search(tensor.name) and len(tensor.shape) == 2
        for key in keys
    ):
        return False
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    shared = set()
    for tensor in tensors:
        if (found := _LAYER.search(tensor.name)) is None:
            shared.add(tensor.name)
        else:
            layers.setdefault(tensor.name[: found.end()], {})[tensor.name[found.end() + 1 :]] = tensor.shape
    tied = bool(config.get("tie_word_embeddings", row.tied))
    alike = [layer for layer in layers.values() if layer == next(iter(layers.values()))]
    return (
        bool(layers)
        and len(alike) == len(layers)
        and frozenset(alike[0]) == family.layer
        and shared == family.shared | (set() if tied else {row.head})
    )
