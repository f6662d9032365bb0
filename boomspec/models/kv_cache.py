"""Compute the bytes of a KV cache from config.json alone.

    keys and values of one layer = 2 x num_key_value_heads x head_dim x bytes per element x tokens x batch

`tokens` is the context, or the window where it is shorter and the layer attends to a window only. Elements are
of the type of the weights. Where config.json does not say which layers have a window, all count in full.
Attention that caches something else (latent, linear, shared between layers) is an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.models.facts import ModelFacts
from boomspec.models.families import row_of

_ELEMENT = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Config keys of models that cache something else than keys and values of their own for each layer.
_OTHER_CACHES = {
    "attn_layer_indices": "layers that keep a state instead of keys and values",
    "attn_layer_period": "layers that keep a state instead of keys and values",
    "block_types": "layers that keep a state instead of keys and values",
    "conv_L_cache": "layers that keep a state instead of keys and values",
    "hybrid_override_pattern": "layers that keep a state instead of keys and values",
    "linear_conv_kernel_dim": "layers that keep a state instead of keys and values",
    "mamba_d_state": "layers that keep a state instead of keys and values",
    "per_layer_config": "layers whose heads are not alike",
    "ssm_state_size": "layers that keep a state instead of keys and values",
    "state_size": "layers that keep a state instead of keys and values",
    "kv_lora_rank": "multi-head latent attention",
    "num_kv_shared_layers": "layers that share a cache",
    "cla_share_factor": "layers that share a cache",
    "multi_query": "multi-query attention without num_key_value_heads",
}


def layer_cache_bytes(facts: ModelFacts, *, context: int, batch: int) -> list[int]:
    """Bytes that each layer of the model caches for `batch` sequences of `context` tokens.

    Raises BoomspecError, saying why, for an architecture whose cache this formula does not describe.
    """
    config = facts.config
    for key, what in _OTHER_CACHES.items():
        if config.get(key):
            raise _unknown(facts, f"config.json says {key}: {what}")
    if facts.dtype not in _ELEMENT:
        raise _unknown(facts, f"the weights are of type {facts.dtype}, which no cache is kept in")
    width = _width(facts)
    for index, layer in enumerate(facts.layers):
        names = {tensor.name: tensor.shape for tensor in layer}
        if not any("attn" in name or "attention" in name for name in names):
            raise _unknown(facts, f"layer {index} holds no attention")
        for name, shape in names.items():
            if name.endswith(("k_proj.weight", "v_proj.weight")) and shape[0] != width:
                raise _unknown(facts, f"{name} gives {shape[0]} values for a token, config.json says {width}")
    tokens = [context if window is None else min(context, window) for window in windows(facts)]
    return [2 * width * _ELEMENT[facts.dtype] * batch * count for count in tokens]


def windows(facts: ModelFacts) -> list[int | None]:
    """For each layer how many tokens it looks back; None for all of them."""
    config, count = facts.config, facts.count
    window = config.get("sliding_window")
    spans = {
        "full_attention": None,
        "sliding_attention": window,
        "chunked_attention": config.get("attention_chunk_size"),
    }
    if types := config.get("layer_types"):
        if other := [kind for kind in types if kind not in spans]:
            raise _unknown(facts, f"config.json has layers of type {other[0]}")
        return [spans[kind] for kind in types]
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return [None] * count
    if pattern := config.get("sliding_window_pattern") or row_of(facts.model_type).full_attention_every:
        return [window if (i + 1) % pattern else None for i in range(count)]
    if config.get("use_sliding_window") and "max_window_layers" in config:
        return [window if i >= config["max_window_layers"] else None for i in range(count)]
    return [window if row_of(facts.model_type).windowed else None] * count


def _width(facts: ModelFacts) -> int:
    """Keys of one layer for one token: heads that keep keys and values x size of a head."""
    config = facts.config
    heads = _whole(facts, "num_attention_heads", "n_head")
    keys = _whole(facts, "num_key_value_heads") if config.get("num_key_value_heads") is not None else heads
    if config.get("head_dim") is not None:
        return keys * _whole(facts, "head_dim")
    return keys * (_whole(facts, "hidden_size", "n_embd") // heads)


def _whole(facts: ModelFacts, *names: str) -> int:
    value = _first(facts.config, names)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise _unknown(facts, f"config.json has no number {' or '.join(names)}")
    return value


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if name in config), None)


def _unknown(facts: ModelFacts, reason: str) -> BoomspecError:
    message = f"the KV cache of a {facts.model_type} model cannot be computed: {reason}"
    return BoomspecError(message, hint="ask for bytes of weights instead: 6GiB")
