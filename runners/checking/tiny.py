"""Shrink a config: widths, vocabularies and experts become tiny, the layers stay as they are.

The name of a number says what it is. Numbers that belong together (hidden size =
heads x head size) are given the sizes that fit together in every family that follows the names' convention; who does
not follow it says so in its row of `boomspec.models.families`. A number of a name that is not known stays as it is.
"""

import re
from typing import Any

from boomspec.models.families import row_of

Config = dict[str, Any]

VOCABULARY = 128
_HIDDEN, _HEADS, _HEAD, _RANK, _STATE, _POSITIONS, _WINDOW = 64, 4, 16, 16, 8, 128, 8

# The first pattern that fits the whole name says the largest value.
_LARGEST: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*_base", 256),
    (r"(unpadded_|text_|decoder_)?vocab_size|.*_vocab_size|vocab_size_.*|codebook_size|num_centroids", VOCABULARY),
    (r".*qk_head_dim", _HEAD * 2),
    (r"input_embedding_size|output_embedding_size|embedding_size", _HIDDEN // 2),
    (r"hidden_size_per_layer_input|ple_embed_dim", 16),
    (r"(moe|expert|shared_experts?|moe_shared_expert)_(ffn_)?(intermediate|hidden)_size", 32),
    (r"expert_ffn_hidden_size|shared_intermediate_size", 32),
    (r".*intermediate_size.*|.*ffn_dim|.*ffn_hidden_size|feed_forward_size|mlp_dim", 96),
    (r"n_inner|d_ff|dff|dim_ff|d_inner", 96),
    (r"mamba_d_ssm|attention_hidden_size", _HIDDEN * 2),
    (r"hidden_size.*|d_model|n_embd|emb_dim|embedding_dim|lru_width|word_embed_proj_dim|.*_hidden_size", _HIDDEN),
    (r"(projector_|adapter_)?(in|input|out|output)_(dim|size)|out_hidden_size|vision_output_dim", _HIDDEN),
    (r"(mamba_n_heads|mamba_num_heads|n_mamba_heads)", 8),
    (r"(.*_)?(num|n)_(attention_)?heads?(_per_layer)?|(.*_)?attention_heads|(.*_)?query_groups", _HEADS),
    (r"num_kv_heads|kv_n_heads|.*key_value_heads", _HEADS),
    (r".*lora_rank|.*_rank|.*lowrank|time_step_rank|mamba_dt_rank", _RANK),
    (r"(.*_)?(head_dim|head_size|headdim|d_head|dim_head|kv_channels|d_kv|head_width)|rotary_dim", _HEAD),
    (r"(mamba_)?d_state|ssm_state_size|state_size", _STATE),
    (r"(.*_)?n_?groups|mamba_ngroups|o_groups", 2),
    (r"(.*_)?chunk_(size|length)|block_size|index_block_size", _WINDOW),
    (r"sliding_window(_size)?|local_attention(_window_len)?|(attention_|keep_)?window_size", _WINDOW),
    (r"(num_|n_|moe_num_)?(local_|routed_)?experts", 4),
    (r"zero_expert_num", 2),
    (r"num_experts_per_tok(en)?|moe_(top)?_?k|experts_per_token", 2),
    (r"n_group|num_expert_group|topk_group|n_groups", 2),
    (r"index_topk(_blocks)?", 4),
    (r"max_(position_embeddings|seq_len|target_positions)|n_positions|n_ctx", _POSITIONS),
    (r"context_length|model_max_length", _POSITIONS),
    (r"log_scaling_n_floor|floor_scale|rel_extent", 16),
    (r"patch_size", 4),
    (r"image_size", 16),
    (r"depth|conf_num_hidden_layers|num_blocks|num_global_layers", 2),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern), largest) for pattern, largest in _LARGEST)
_TOKEN = re.compile(r".*token_(id|index)|.*_idx$")


def tiny(config: Config, full: Config | None = None) -> Config:
    """The tiny config of `config`. `full`: the same with all that its class adds, where it is known.

    What only the class says is written into the result where it shrinks.
    """
    return {**_shrunk(config, full or {}), **row_of(config.get("model_type")).tiny}


def _shrunk(config: Config, full: Config) -> Config:
    everything: Config = {**full, **config}
    result: Config = {}
    for key, value in everything.items():
        smaller: Any = value
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            own, of_class = (found if isinstance(found := of.get(key), dict) else {} for of in (config, full))
            smaller = _shrunk(own, of_class)
        elif isinstance(value, list) and key == "mrope_section":  # as many parts, which together are half of a head
            part = _HEAD // 2 // len(value)
            smaller = [_HEAD // 2 - part * (len(value) - 1), *[part] * (len(value) - 1)]
        elif isinstance(value, list) and key in ("short_factor", "long_factor"):
            smaller = value[: _HEAD // 2]
        elif isinstance(value, list) and all(type(entry) is int for entry in value):
            smaller = [_number(key, entry, everything) for entry in value]
        elif type(value) is int:
            smaller = _number(key, value, everything)
        if key in config or smaller != value:
            result[key] = smaller
    return result


def _number(key: str, value: int, config: Config) -> int:
    if _TOKEN.fullmatch(key):
        return value if value < VOCABULARY else value % 89 + 16
    largest = next((largest for pattern, largest in _COMPILED if pattern.fullmatch(key)), None)
    if largest is None or ("key_value" not in key and "kv_" not in key):
        return value if largest is None or value <= 0 else min(value, largest)
    heads = next((config[k] for k in ("num_attention_heads", "n_heads", "n_head", "num_heads") if k in config), value)
    return 1 if value == 1 else min(value, _HEADS) if value == heads else 2
