"""Adjust or refuse configs whose layers depend on their index or on the number of layers.

    leading     a number of first layers that are of another kind: counted anew for every plan
    by depth    a factor that is divided by a function of the number of layers: scaled so that each layer keeps its own
    places      all else: what layer `i` of `n` is; a layer of a plan must be the same at its new place, or the plan
                is refused

What a per-layer list says instead needs no rule (`plan_config`). Nothing here looks at weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan, Owner
from boomspec.models.families import FamilyRules, Place, row_of

Config = dict[str, Any]

# The first so many layers are dense, the others are mixtures of experts. With the list that says it instead, if any.
LEADING: Mapping[str, str] = {
    "first_k_dense_replace": "mlp_layer_types",
    "num_dense_layers": "mlp_layer_types",
    "n_dense_layers": "mlp_layer_types",
}
# Factors that a layer divides by a function of the number of layers.
DEPTH_SCALED: Mapping[str, Callable[[int], float]] = {"scale_depth": lambda n: math.sqrt(n)}


def _every(key: str) -> Place:
    return lambda i, n, config: i % config[key]


# Scalars that, unless 0 or false, make a layer depend on its index and that no per-layer list of transformers replaces.
_PLACES: Mapping[str, Place] = {
    "attn_layer_period": _every("attn_layer_period"),
    "expert_layer_period": _every("expert_layer_period"),
    "interleave_moe_layer_step": _every("interleave_moe_layer_step"),
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


def by_depth(key: str, value: float, count: int) -> float:
    """What each layer of a model of `count` layers makes of a factor."""
    return value / DEPTH_SCALED[key](count)


def scaled_to_depth(key: str, value: float, count: int, new: int) -> float:
    """The factor with which a model of `new` layers does to each what one of `count` layers does with `value`."""
    return value if new == count else by_depth(key, value, count) * DEPTH_SCALED[key](new)


def apply_rules(
    config: Config, configs: Mapping[Owner, Config], counts: Mapping[Owner, int], plan: LayerPlan, base: Owner
) -> None:
    """Change in `config`, that of a plan, what depends on the number of layers.

    Raises BoomspecError where a layer would be another one at its new place.
    """
    model_type = str(config.get("model_type"))
    row = row_of(model_type)
    _refuse(config, row, model_type)
    for key, instead in LEADING.items():
        if not any(key in other for other in configs.values()) or instead in config or row.lists_dense:
            continue
        dense = [layer.index < (configs[layer.owner].get(key) or 0) for layer in plan]
        first = dense.index(False) if False in dense else len(dense)
        if True in dense[first:]:
            new = dense.index(True, first)
            owner, i = plan[new].owner, plan[new].index
            raise _moved(f"'{key}: {configs[owner].get(key)}'", i, new, (counts[owner], len(plan)))
        config[key] = first
    places = [(new, layer.owner, layer.index) for new, layer in enumerate(plan)]
    for key in DEPTH_SCALED:
        if isinstance(config.get(key), int | float):
            config[key] = scaled_to_depth(key, config[key], counts[base], len(plan))
    for key, place in _PLACES.items():
        for new, owner, i in places:
            asked = configs[owner].get(key)
            if not asked or isinstance(asked, list) or isinstance(configs[owner].get(_REPLACED_BY.get(key, "")), list):
                continue
            if place(i, counts[owner], configs[owner]) != place(new, len(plan), configs[owner]):
                raise _moved(f"'{key}: {asked}'", i, new, (counts[owner], len(plan)))
    if row.by_place is not None:
        why, place = row.by_place
        for new, owner, i in places:
            if place(i, counts[owner], configs[owner]) != place(new, len(plan), configs[owner]):
                raise _moved(f"'{model_type}' ({why})", i, new, (counts[owner], len(plan)))
    last, types = row.last_layer, config.get("layer_types")
    if last is not None and isinstance(types, list) and types and types[-1] != last:
        raise BoomspecError(
            f"the last layer of a {model_type} model is always of type {last}, that of this plan is {types[-1]}",
            hint="keep the teacher's last layer: student: {keep: [..., last]}",
        )


def _refuse(config: Mapping[str, Any], row: FamilyRules, model_type: str) -> None:
    reason = row.refused
    for key, why in _REFUSED_KEYS.items():
        reason = reason or (f"config.json says {key}: {config[key]}: {why}" if config.get(key) else None)
    if reason:
        raise BoomspecError(f"a {model_type} model cannot be interpolated: {reason}")


def _moved(what: str, index: int, new: int, counts: tuple[int, int]) -> BoomspecError:
    of, of_new = ("", "") if index != new else (f" of {counts[0]}", f" of {counts[1]}")
    return BoomspecError(
        f"config.json: under {what} layer {index}{of} cannot become layer {new}{of_new}:"
        " what a layer is depends on its index, and transformers has no list to say it layer by layer",
        hint="other kept layers, or another order of patching, may keep every layer where it is of its kind",
    )
