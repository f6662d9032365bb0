"""Families of which it is known that every size is right: models of alike layers under the names that they always have.

Of any other model transformers is asked before a run (`boomspec.plan.model_checks`), which takes seconds. What is
listed is data: a sweep over all families (tests/sweeps) has found each of these right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from boomspec.models.checkpoint import TensorEntry

_LAYER = re.compile(r"(?<![^.])\d+(?=\.)")
_ATTENTION = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
_MLP = "mlp.gate_proj mlp.up_proj mlp.down_proj"
_NORMS = "input_layernorm post_attention_layernorm"
_SHARED = frozenset({"model.embed_tokens.weight", "model.norm.weight"})


@dataclass(frozen=True)
class _Family:
    layer: frozenset[str]  # the tensors of every layer, behind its index
    shared: frozenset[str]  # the others, but the head
    head: str = "lm_head.weight"
    switches: tuple[str, ...] = ()  # of the config: what makes layers differ, where it is set


def _weights(*modules: str) -> frozenset[str]:
    return frozenset(f"{module}.weight" for text in modules for module in text.split())


def _both(*modules: str) -> frozenset[str]:
    return _weights(*modules) | {f"{module}.bias" for text in modules for module in text.split()}


_LLAMA = _Family(_weights(_ATTENTION, _MLP, _NORMS), _SHARED)
_FAMILIES: Mapping[str, _Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
    "granite": _LLAMA,
    "qwen2": _Family(
        _LLAMA.layer | {f"self_attn.{name}_proj.bias" for name in "qkv"}, _SHARED, switches=("use_sliding_window",)
    ),
    "qwen3": _Family(
        _LLAMA.layer | _weights("self_attn.q_norm self_attn.k_norm"), _SHARED, switches=("use_sliding_window",)
    ),
    "phi3": _Family(_weights("self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj", _NORMS), _SHARED),
    "olmo2": _Family(
        _weights(_ATTENTION, _MLP, "self_attn.q_norm self_attn.k_norm")
        | _weights("post_attention_layernorm post_feedforward_layernorm"),
        _SHARED,
    ),
    "gpt2": _Family(
        _both("ln_1 ln_2 attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
        frozenset({"transformer.wte.weight", "transformer.wpe.weight"}) | _both("transformer.ln_f"),
        switches=("scale_attn_by_inverse_layer_idx", "add_cross_attention"),
    ),
    "gpt_neox": _Family(
        _both("input_layernorm post_attention_layernorm attention.query_key_value attention.dense")
        | _both("mlp.dense_h_to_4h mlp.dense_4h_to_h"),
        frozenset({"gpt_neox.embed_in.weight"}) | _both("gpt_neox.final_layer_norm"),
        head="embed_out.weight",
    ),
}
_NEVER = ("quantization_config", "auto_map", "per_layer_config")
_TIED_BY_DEFAULT = ("gemma", "gpt2")
# What a config says of sizes, where tensors say it, too: name, side of its shape, keys.
_SIZES = (
    (re.compile(r"\.(embed_tokens|wte|embed_in)\.weight$"), 0, ("vocab_size",)),
    (re.compile(r"\.(embed_tokens|wte|embed_in)\.weight$"), 1, ("hidden_size", "n_embd")),
    (re.compile(r"\.mlp\.(up_proj|dense_h_to_4h)\.weight$"), 0, ("intermediate_size",)),
)
_ACTIVATIONS = (None, "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")


def is_plain(config: Mapping[str, Any], tensors: Iterable[TensorEntry]) -> bool:
    """Whether a model is exactly what its family always is."""
    model_type = str(config.get("model_type"))
    family = _FAMILIES.get(model_type)
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
    tied = bool(config.get("tie_word_embeddings", model_type in _TIED_BY_DEFAULT))
    alike = [layer for layer in layers.values() if layer == next(iter(layers.values()))]
    return (
        bool(layers)
        and len(alike) == len(layers)
        and frozenset(alike[0]) == family.layer
        and shared == family.shared | (set() if tied else {family.head})
    )
