"""Compute the bytes of a KV cache from config.json alone.

    keys and values of one layer = 2 x num_key_value_heads x head_dim x bytes per element x tokens x batch

`tokens` is the context, or the window where it is shorter and config.json says that the layer attends to a window only.
Elements are of the type of the weights. Attention that caches something else (latent, linear, shared between layers) is
an error, not a guess.
"""

from boomspec.core.errors import BoomspecError
from boomspec.core.sizes import LayerCache
from boomspec.models.checkpoint import FLOAT_BYTES
from boomspec.models.facts import ModelFacts
from boomspec.models.families import row_of

# Config keys of models that cache something else than keys and values of their own for each layer.
_OTHER_CACHES = {
    "layers that keep a state instead of keys and values": (
        *("attn_layer_indices", "attn_layer_period", "block_types", "conv_L_cache", "hybrid_override_pattern"),
        *("linear_conv_kernel_dim", "mamba_d_state", "ssm_state_size", "state_size"),
    ),
    "layers whose heads are not alike": ("per_layer_config",),
    "multi-head latent attention": ("kv_lora_rank",),
    "layers that share a cache": ("num_kv_shared_layers", "cla_share_factor"),
    "multi-query attention without num_key_value_heads": ("multi_query",),
}


def layer_cache_bytes(facts: ModelFacts, *, context: int, batch: int) -> list[int]:
    """Bytes that each layer caches for `batch` sequences of `context` tokens; BoomspecError where that is not known."""
    caches = layer_caches(facts)
    return [one.bytes * batch * (context if one.window is None else min(context, one.window)) for one in caches]


def layer_caches(facts: ModelFacts) -> tuple[LayerCache, ...]:
    """What each layer caches; BoomspecError where that is not known."""
    config = facts.config
    for what, keys in _OTHER_CACHES.items():
        if key := next((key for key in keys if config.get(key)), None):
            raise _unknown(facts, f"config.json says {key}: {what}")
    if facts.dtype not in FLOAT_BYTES:
        raise _unknown(facts, f"the weights are of type {facts.dtype}, which no cache is kept in")
    heads = _whole(facts, "num_attention_heads", "n_head")
    keys_and_values = _whole(facts, "num_key_value_heads") if config.get("num_key_value_heads") is not None else heads
    head_size = _whole(facts, "head_dim") if config.get("head_dim") is not None else None
    width = keys_and_values * (head_size or _whole(facts, "hidden_size", "n_embd") // heads)
    for index, layer in enumerate(facts.layers):
        names = {tensor.name: tensor.shape for tensor in layer}
        if not any("attn" in name or "attention" in name for name in names):
            raise _unknown(facts, f"layer {index} holds no attention")
        for name, shape in names.items():
            if name.endswith(("k_proj.weight", "v_proj.weight")) and shape[0] != width:
                raise _unknown(facts, f"{name} gives {shape[0]} values for a token, config.json says {width}")
    return tuple(LayerCache(2 * width * FLOAT_BYTES[facts.dtype], window) for window in windows(facts))


def windows(facts: ModelFacts) -> list[int | None]:
    """For each layer how many tokens it looks back; None for all of them."""
    config, count = facts.config, facts.count
    window = config.get("sliding_window")
    chunk = config.get("attention_chunk_size")
    spans = {"full_attention": None, "sliding_attention": window, "chunked_attention": chunk}
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


def _whole(facts: ModelFacts, *names: str) -> int:
    value = next((facts.config[name] for name in names if name in facts.config), None)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise _unknown(facts, f"config.json has no number {' or '.join(names)}")
    return value


def _unknown(facts: ModelFacts, reason: str) -> BoomspecError:
    message = f"the KV cache of a {facts.model_type} model cannot be computed: {reason}"
    return BoomspecError(message, hint="ask for bytes of weights instead: 6GiB")
