"""The config of a layer plan: every layer keeps the attributes that it has in the model it came from.

    per-layer list   one value for each layer: re-indexed. A list is one if it has as many entries as its model has
                     layers; a list whose name says "layer" must be one. The names of both tables below are neither.
    list of indices  the layers something is true of (`mlp_only_layers`): translated to the new indices
    pattern          a rule for each index (`sliding_window_pattern`, or a family's built-in one): written out as the
                     per-layer list that transformers makes of it; where it has no such list, the plan must keep to it

Nothing here looks at weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from boomspec.errors import BoomspecError
from boomspec.models.facts import LAYER_COUNTS, ModelFacts

Config = dict[str, Any]
Origin = tuple[str, int]  # owner and index of the layer that a layer of the plan was

_INDEX_LISTS = (
    "attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "local_layer_ids", "mlp_only_layers",
    "moe_layers",
)  # fmt: skip

_OTHER_LISTS = (
    "architectures", "attention_types", "begin_suppress_tokens", "bos_token_id", "eos_token_id",
    "keys_to_ignore_at_inference", "pad_token_id", "suppress_tokens",
)  # fmt: skip

# Families whose layers are alike, each with the switch that makes them differ (None: there is none). Of all others
# transformers is asked, which costs its import.
_ALIKE: Mapping[str, str | None] = {
    "bert": None, "distilbert": None, "gemma": None, "gpt2": None, "gpt_neox": None, "gptj": None, "granite": None,
    "llama": None, "mistral": None, "mixtral": None, "olmo": None, "olmo2": None, "opt": None, "phi": None,
    "phi3": None, "qwen2": "use_sliding_window", "qwen2_moe": "use_sliding_window", "qwen3": "use_sliding_window",
    "qwen3_moe": None,
}  # fmt: skip

# Scalars that, unless 0 or false, make a layer depend on its index and that no per-layer list of transformers
# replaces: what layer `i` of `n` is under the value `v`. Layers of a plan must be the same at their new place.
_PLACES: Mapping[str, Callable[[int, int, int], object]] = {
    "attn_layer_period": lambda i, n, v: i % v,
    "expert_layer_period": lambda i, n, v: i % v,
    "first_k_dense_replace": lambda i, n, v: i < v,
    "interleave_moe_layer_step": lambda i, n, v: i % v,
    "moe_layer_interval": lambda i, n, v: i % v,
    "num_kv_shared_layers": lambda i, n, v: (i, n),
    "scale_attn_by_inverse_layer_idx": lambda i, n, v: i,
}
_REPLACED_BY = {"interleave_moe_layer_step": "moe_layers"}  # an index list that overrides the scalar
# Read by the config classes of several families; a config of a family unknown to transformers cannot be written out.
_WRITTEN_OUT = ("global_attn_every_n_layers", "layer_group_size", "no_rope_layer_interval", "sliding_window_pattern")

# Where both configs say it: what changes a model's function and not the shapes of its weights.
_MUST_AGREE = (
    "activation_function", "attention_bias", "attention_multiplier", "attn_logit_softcapping", "embedding_multiplier",
    "final_logit_softcapping", "head_dim", "hidden_act", "hidden_activation", "layer_norm_epsilon", "layer_norm_eps",
    "logits_scaling", "n_head", "norm_topk_prob", "num_attention_heads", "num_experts_per_tok", "num_key_value_heads",
    "partial_rotary_factor", "query_pre_attn_scalar", "residual_multiplier", "rms_norm_eps", "rope_theta",
    "rotary_pct", "sliding_window", "use_parallel_residual",
)  # fmt: skip


def plan_config(facts: Mapping[str, ModelFacts], plan: Sequence[str], *, tied: bool, base: str) -> Config:
    """The config of `plan` ("t4": layer 4 of facts["t"]), made from that of the model `base`.

    Raises BoomspecError where the configs contradict each other or cannot say what the plan needs.
    """
    origins: list[Origin] = [(layer[0], int(layer[1:])) for layer in plan]
    counts = {owner: model.count for owner, model in facts.items()}
    configs = {owner: dict(model.config) for owner, model in facts.items()}
    _agree(configs, base)
    configs, lists = _with_lists(configs, counts)
    _keep_to_patterns(configs, counts, origins)
    _name_dense_layers(configs, counts)

    config = dict(configs[base])
    for key in lists:
        config[key] = [configs[owner][key][i] for owner, i in origins]
    for key in _INDEX_LISTS:
        if any(isinstance(other.get(key), list) for other in configs.values()):
            config[key] = [new for new, (owner, i) in enumerate(origins) if i in (configs[owner].get(key) or ())]
    if "attention_layers" in lists and "attention_types" in config:
        config["attention_types"] = [[config["attention_layers"], 1]]  # transformers reads only this one
    present = [key for key in LAYER_COUNTS if key in config]
    if not present:
        raise BoomspecError(f"config.json says no number of layers: looked for {', '.join(LAYER_COUNTS)}")
    config |= dict.fromkeys(present, len(plan))
    config["tie_word_embeddings"] = tied
    return config


def _agree(configs: Mapping[str, Config], base: str) -> None:
    for other in configs.values():
        for key in _MUST_AGREE:
            mine, theirs = _value(configs[base], key), _value(other, key)
            if mine is not None and theirs is not None and mine != theirs:
                raise BoomspecError(f"the models' configs differ in {key}: {mine} and {theirs}")


def _value(config: Config, key: str) -> object:
    """A config's value, or None; newer versions keep what is about rotary embeddings in an object of its own."""
    rotary = config.get("rope_parameters")
    return config.get(key, rotary.get(key) if isinstance(rotary, dict) else None)


def _with_lists(configs: Mapping[str, Config], counts: Mapping[str, int]) -> tuple[dict[str, Config], list[str]]:
    """The configs with every per-layer list written out, and the names of these lists."""
    lists = {owner: _per_layer(config, counts[owner]) for owner, config in configs.items()}
    differ = len({frozenset(keys) for keys in lists.values()}) > 1
    written = dict(configs)
    if differ or not all(_alike(config) for config in configs.values()):
        written = {owner: _written_out(config, counts[owner]) for owner, config in configs.items()}
        lists = {owner: _per_layer(config, counts[owner]) for owner, config in written.items()}
    names = sorted({key for keys in lists.values() for key in keys})
    result = []
    for key in names:
        without = [owner for owner in configs if key not in lists[owner]]
        if not without:
            result.append(key)
        elif "layer" in key.lower() or len({str(config.get(key)) for config in written.values()}) > 1:
            raise BoomspecError(
                f"config.json: '{key}' has a value for each layer in one of the models, not in the other"
            )
    return written, result


def _per_layer(config: Config, count: int) -> list[str]:
    keys = []
    for key, value in config.items():
        if not isinstance(value, list) or key in _OTHER_LISTS or key in _INDEX_LISTS:
            continue
        if len(value) == count:
            keys.append(key)
        elif value and "layer" in key.lower():
            raise BoomspecError(
                f"config.json: '{key}' has {len(value)} entries, the model has {count} layers",
                hint="a list whose name says 'layer' must have one entry for each layer, be empty,"
                f" or be one of the known lists of layer indices ({', '.join(_INDEX_LISTS)})",
            )
    return keys


def _alike(config: Config) -> bool:
    model_type = str(config.get("model_type"))
    if model_type not in _ALIKE:
        return False
    switch = _ALIKE[model_type]
    return switch is None or not config.get(switch, False)


def _written_out(config: Config, count: int) -> Config:
    """The config with the per-layer lists that transformers' own config class makes of it."""
    # Most families need no more than JSON, and transformers brings torch: seconds, and 200 MB of memory.
    mapping = importlib.import_module("transformers").CONFIG_MAPPING
    model_type = config.get("model_type", "unknown")
    if model_type not in mapping:
        if pattern := next((key for key in _WRITTEN_OUT if config.get(key) is not None), None):
            raise BoomspecError(f"config.json: '{pattern}' of the unknown family '{model_type}' cannot be written out")
        return config
    try:
        full = mapping[model_type].from_dict(deepcopy(config)).to_dict()
    except Exception as error:  # each config class has its own ideas of a wrong value, and of the exception for it
        raise BoomspecError(f"config.json: transformers refuses it: {error}") from error
    made = {key: value for key, value in full.items() if "layer" in key and isinstance(value, list)}
    made = {k: v for k, v in made.items() if config.get(k) is None and (k in _INDEX_LISTS or len(v) == count)}
    return {**config, **made}


def _name_dense_layers(configs: Mapping[str, Config], counts: Mapping[str, int]) -> None:
    """Where every so many layers have experts, list the other layers one by one instead."""
    for owner, config in configs.items():
        if (step := config.get("decoder_sparse_step", 1)) != 1:
            listed = config.get("mlp_only_layers") or []
            dense = [i for i in range(counts[owner]) if i in listed or (i + 1) % step != 0]
            config |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}


def _keep_to_patterns(configs: Mapping[str, Config], counts: Mapping[str, int], origins: Sequence[Origin]) -> None:
    for key, place in _PLACES.items():
        for new, (owner, i) in enumerate(origins):
            config = configs[owner]
            if not config.get(key) or isinstance(config.get(_REPLACED_BY.get(key, "")), list):
                continue
            if place(i, counts[owner], config[key]) != place(new, len(origins), config[key]):
                raise BoomspecError(
                    f"config.json: under '{key}: {config[key]}' layer {i} cannot become layer {new}:"
                    " what a layer is depends on its index, and transformers has no list to say it layer by layer"
                )
