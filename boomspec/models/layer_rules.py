"""Adjust or refuse configs whose layers depend on their index or on the number of layers.

    leading     a number of first layers that are of another kind: counted anew for every plan
    by depth    a factor that is divided by a function of the number of layers: scaled so that each layer keeps its own
    places      all else: what layer `i` of `n` is; a layer of a plan must be the same at its new place, or the plan
                is refused

What a per-layer list says instead needs no rule (`plan_config`). Nothing here looks at weights.
"""

import math
from collections.abc import Mapping
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan, Owner
from boomspec.models.families import Place, row_of

Config = dict[str, Any]

# The first so many layers are dense, the others are mixtures of experts; and the list that says it instead.
LEADING, _LEADING_LIST = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers"), "mlp_layer_types"
DEPTH_SCALED = "scale_depth"  # a factor that a layer divides by the root of the number of layers

# Scalars that, unless 0 or false, make a layer depend on its index and that no per-layer list of transformers replaces.
_PLACES: Mapping[str, Place] = {
    "attn_layer_period": lambda i, n, config: i % config["attn_layer_period"],
    "expert_layer_period": lambda i, n, config: i % config["expert_layer_period"],
    "interleave_moe_layer_step": lambda i, n, config: i % config["interleave_moe_layer_step"],
    "moe_layer_end_index": lambda i, n, config: config["moe_layer_end_index"] < 0 or i <= config["moe_layer_end_index"],
    "moe_layer_freq": lambda i, n, config: i % config["moe_layer_freq"],
    "moe_layer_interval": lambda i, n, config: (i + 1) % config["moe_layer_interval"] == 0,
    "moe_layer_start_index": lambda i, n, config: i >= config["moe_layer_start_index"],
    "n_layers_per_attn_res_block": lambda i, n, config: i,
    "num_kv_shared_layers": lambda i, n, config: (i, n),
    "scale_attn_by_inverse_layer_idx": lambda i, n, config: i,
    "scale_attn_weights_by_inverse_layer_idx": lambda i, n, config: i,
}
_REPLACED_BY = {"interleave_moe_layer_step": "moe_layers", "moe_layer_freq": "mlp_layer_types"}  # by a list

# What cannot be interpolated at all, by a key of the config (unless 0, null or false).
_REFUSED_KEYS: Mapping[str, str] = {
    "hidden_size_per_layer_input": "one table embeds the tokens for all layers together, so its width is their number",
}


def apply_rules(
    config: Config, configs: Mapping[Owner, Config], counts: Mapping[Owner, int], plan: LayerPlan, base: Owner
) -> None:
    """Change in `config`, that of a plan, what depends on the number of layers.

    Raises BoomspecError where a layer would be another one at its new place.
    """
    model_type, count = str(config.get("model_type")), len(plan)
    row = row_of(model_type)
    by_key = [f"config.json says {key}: {config[key]}: {why}" for key, why in _REFUSED_KEYS.items() if config.get(key)]
    if reason := row.refused or next(iter(by_key), None):
        raise BoomspecError(f"a {model_type} model cannot be interpolated: {reason}")
    for key in LEADING:
        if not any(key in other for other in configs.values()) or _LEADING_LIST in config or row.lists_dense:
            continue
        dense = [layer.index < (configs[layer.owner].get(key) or 0) for layer in plan]
        first = dense.index(False) if False in dense else count
        if True in dense[first:]:
            new = dense.index(True, first)
            owner = plan[new].owner
            raise _moved(f"'{key}: {configs[owner].get(key)}'", plan[new].index, new, (counts[owner], count))
        config[key] = first
    factor = config.get(DEPTH_SCALED)
    if isinstance(factor, int | float) and count != counts[base]:  # so that each layer keeps its own
        config[DEPTH_SCALED] = factor / math.sqrt(counts[base]) * math.sqrt(count)
    why, by_place = row.by_place or ("", None)
    rules = [*_PLACES.items(), *([] if by_place is None else [("", by_place)])]
    for key, place in rules:
        for new, layer in enumerate(plan):
            own, of, i = configs[layer.owner], counts[layer.owner], layer.index
            if key and (
                not own.get(key) or any(isinstance(own.get(k), list) for k in (key, _REPLACED_BY.get(key, "")))
            ):
                continue
            if place(i, of, own) != place(new, count, own):
                raise _moved(f"'{key}: {own[key]}'" if key else f"'{model_type}' ({why})", i, new, (of, count))
    last, types = row.last_layer, config.get("layer_types")
    if last is not None and isinstance(types, list) and types and types[-1] != last:
        raise BoomspecError(
            f"the last layer of a {model_type} model is always of type {last}, that of this plan is {types[-1]}",
            hint="keep the teacher's last layer: student: {keep: [..., last]}",
        )


def _moved(what: str, index: int, new: int, counts: tuple[int, int]) -> BoomspecError:
    of, of_new = ("", "") if index != new else (f" of {counts[0]}", f" of {counts[1]}")
    return BoomspecError(
        f"config.json: under {what} layer {index}{of} cannot become layer {new}{of_new}:"
        " what a layer is depends on its index, and transformers has no list to say it layer by layer",
        hint="other kept layers, or another order of patching, may keep every layer where it is of its kind",
    )
