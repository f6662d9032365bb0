"""Recognise standard models of tested architectures, which need no check by transformers.

Of any other model transformers is asked before a run (`boomspec.plan.model_checks`), which takes seconds. What is
listed is data: a sweep over all families (tests/sweeps) has found each of these right.
"""

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
    if not all(config.get(key) in _ACTIVATIONS for key in ("hidden_act", "activation_function")):
        return False
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    shared = set()
    for tensor in tensors:
        for name, side, keys in _SIZES:
            of_matrix = len(tensor.shape) == 2 and name.search(tensor.name)
            if of_matrix and any(config.get(key) not in (None, tensor.shape[side]) for key in keys):
                return False
        if (found := _LAYER.search(tensor.name)) is None:
            shared.add(tensor.name)
        else:
            layers.setdefault(tensor.name[: found.end()], {})[tensor.name[found.end() + 1 :]] = tensor.shape
    shared_by_family = family.shared | (set() if config.get("tie_word_embeddings", row.tied) else {row.head})
    first = next(iter(layers.values()), {})
    alike = all(layer == first for layer in layers.values())
    return bool(layers) and alike and first.keys() == family.layer and shared == shared_by_family
