"""What two configs must agree in, so that layers can be exchanged, and what in a config depends on index or depth.

agreement   All that is not known to change nothing (`_HARMLESS`) nor set layer by layer (`plan_config`). A key that
            only one of them has, or has a value for, leaves it open, as transformers' own defaults do; where it is at
            hand, configs are compared with every default written out, in which null is a value, too: no window, no cap
            on the logits. The three spellings of rotary embeddings (`rope_theta` and `rope_scaling`;
            `rope_parameters`; that for each type of layer) are compared in one form.
leading     a number of first layers that are of another kind: counted anew for every plan
by depth    a factor that is divided by a function of the number of layers: scaled so that each layer keeps its own
places      all else: what layer `i` of `n` is; a layer of a plan must be the same at its new place, or the plan is
            refused. What a per-layer list says instead needs no rule.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan, Owner
from boomspec.models.families import Place, row_of

Config = dict[str, Any]
Configs = Mapping[Owner, Config]  # of the models that a plan is made of
Counts = Mapping[Owner, int]  # of their layers
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
_AS_LIST = {"interleave_moe_layer_step": "moe_layers", "moe_layer_freq": "mlp_layer_types"}  # by a list
# A key of the config with which, unless 0 or null, nothing can be interpolated.
_REFUSED = "hidden_size_per_layer_input"
_WHY = "one table embeds the tokens for all layers together, so its width is their number"


def apply_rules(config: Config, configs: Configs, counts: Counts, plan: LayerPlan, base: Owner) -> None:
    """Change in a plan's config what depends on the number of layers; BoomspecError where a layer would be another."""
    model_type, count = str(config.get("model_type")), len(plan)
    row = row_of(model_type)
    if reason := row.refused or (config.get(_REFUSED) and f"config.json says {_REFUSED}: {config[_REFUSED]}: {_WHY}"):
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
            if key and (not own.get(key) or any(isinstance(own.get(k), list) for k in (key, _AS_LIST.get(key, "")))):
                continue
            if place(i, of, own) != place(new, count, own):
                raise _moved(f"'{key}: {own[key]}'" if key else f"'{model_type}' ({why})", i, new, (of, count))
    last, types = row.last_layer, config.get("layer_types")
    if last is not None and isinstance(types, list) and types and types[-1] != last:
        message = f"the last layer of a {model_type} model is always of type {last}, that of this plan is {types[-1]}"
        raise BoomspecError(message, hint="keep the teacher's last layer: student: {keep: [..., last]}")


def _moved(what: str, index: int, new: int, counts: tuple[int, int]) -> BoomspecError:
    of, of_new = ("", "") if index != new else (f" of {counts[0]}", f" of {counts[1]}")
    moved = f"config.json: under {what} layer {index}{of} cannot become layer {new}{of_new}"
    why = "what a layer is depends on its index, and transformers has no list to say it layer by layer"
    hint = "other kept layers, or another order of patching, may keep every layer where it is of its kind"
    return BoomspecError(f"{moved}: {why}", hint=hint)


# What says where a model comes from, how it is run, trained, sampled from or named, and not what it computes.
_HARMLESS = re.compile(
    r"_.*|architectures|auto_map|transformers_version|(torch_)?dtype|.*version|unsloth.*|use_cache|cache_implementation"
    r"|use_mamba_kernels|use_kernels|use_mambapy|use_associative_scan|attn_implementation|gradient_checkpointing"
    r"|pretraining_tp|ep_size|output_.*|return_dict.*|torchscript|use_bfloat16|tie_word_embeddings|tie_encoder_decoder"
    r"|.*dropout.*|.*drop_(path|out).*|.*pdrop|.*_drop|initializer_(range|factor|cutoff_factor)|init_.*|.*_init_variance_scale|rescale_prenorm.*"
    r"|.*aux_loss.*|router_z_loss.*|router_jitter_noise|input_jitter_noise|seq_aux|.*_token_ids?|.*_token_index|id2label"
    r"|label2id|num_labels|problem_type|finetuning_task|task_specific_params|tokenizer_class|prefix|is_decoder"
    r"|is_encoder_decoder|add_cross_attention|cross_attention_hidden_size|pruned_heads|chunk_size_feed_forward"
    r"|quantization_config|keys_to_ignore_at_inference|summary_.*|num_nextn_predict_layers|num_mtp_layers|mtp_.*"
    r"|model_max_length|num_logits_to_keep|max_window_layers|time_step_(min|max|floor)|mamba_dt_(min|max|init_floor)"
    # What older versions of transformers kept of generation.
    r"|max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature|top_[kp]"
    r"|typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids"
    r"|num_return_sequences|exponential_decay_length_penalty|suppress_tokens|begin_suppress_tokens"
    r"|remove_invalid_values|forced_.*"
)
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "rotary_emb_base", "rotary_pct", "partial_rotary_factor",
    "rope_local_base_freq", "original_max_position_embeddings", "max_position_embeddings")  # fmt: skip
_SAME_ROPE = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor", "type": "rope_type"}
# Where these are null a class works them out of others; shapes of tensors say what came out.
_WORKED_OUT = re.compile(r"n_inner|.*(intermediate|hidden|embedding|ffn)_size|.*_dim|.*key_value_heads")
_BY_POSITIONS = ("dynamic", "yarn", "longrope")  # rotary embeddings that look at how many positions a model has


def check_agreement(
    mine: Config, theirs: Config, counts: tuple[int, int], listed: frozenset[str], known: frozenset[str] = frozenset()
) -> None:
    """Raise BoomspecError where two configs, of models of `counts` layers, differ.

    `listed`: keys that are set layer by layer. `known`: keys whose null is a value, as nothing is left to a default.
    """
    for key in sorted({*mine} & {*theirs}):
        one, other = mine[key], theirs[key]
        if (one is None and other is None) or _left_open(key, one, other, listed):
            continue
        if one is None or other is None:
            if key in known and not _WORKED_OUT.fullmatch(key):
                _differ(key, one, other)
        elif key == DEPTH_SCALED:
            each = one / math.sqrt(counts[0]), other / math.sqrt(counts[1])
            if not math.isclose(*each, rel_tol=1e-6):
                _differ(f"what each layer makes of {key}", *each)
        elif not _same(one, other):
            _differ(key, one, other)
    ropes = [_rope(config) for config in (mine, theirs)]
    for key in sorted({*ropes[0], *ropes[1]}):
        one, other = (rope.get(key) for rope in ropes)
        open_ = key.rpartition(".")[2] in ("rope_theta", "partial_rotary_factor") or not all(ropes)
        if not _same(one, other) and not (open_ and None in (one, other)):
            _differ(key, one, other)


def set_same_keys(mine: Config, theirs: Config) -> bool:
    """Whether two configs leave the same things to the defaults of their class, so that they say all by themselves."""
    keys = [{k for k in config if config[k] is not None and k not in _ROPE} for config in (mine, theirs)]
    if any(not _left_open(key, None, None, frozenset()) for key in keys[0] ^ keys[1]):
        return False
    return _rope(mine).keys() == _rope(theirs).keys()


def _left_open(key: str, one: object, other: object, listed: frozenset[str]) -> bool:
    by_layer = key in listed or (isinstance(one, list | str) and isinstance(other, list | str) and "layer" in key)
    return by_layer or key in _ROPE or key in LEADING or _HARMLESS.fullmatch(key) is not None


def _same(one: object, other: object) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other  # True is not 1


def _differ(key: str, one: object, other: object) -> None:
    hint = "weights of both cannot be parts of one model; a key that changes nothing can be made the same in both"
    raise BoomspecError(f"the models' configs differ in {key}: {one} and {other}", hint=hint)


def _rope(config: Config) -> dict[str, object]:
    """What a config says of rotary embeddings: flat, every value under the name that newer versions give it."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    top = {_SAME_ROPE.get(key, key): config[key] for key in _ROPE if config.get(key) is not None}
    top = {key: value for key, value in top.items() if key not in ("rope_parameters", "rope_scaling")}
    positions, local = top.pop("max_position_embeddings", None), top.pop("rope_local_base_freq", None)
    if isinstance(new, dict) and new and all(isinstance(value, dict) for value in new.values()):
        kinds: dict[str, Mapping[str, Any]] = {f"{kind}.": value for kind, value in new.items()}
    elif local is not None:
        kinds = {"full_attention.": {**top, **(old or {})}, "sliding_attention.": {"rope_theta": local}}
    elif isinstance(new, dict) or isinstance(old, dict) or top.keys() - {"original_max_position_embeddings"}:
        kinds = {"": {**top, **(old if isinstance(old, dict) else {}), **(new if isinstance(new, dict) else {})}}
    else:
        return {}
    result: dict[str, object] = {}
    for kind, values in kinds.items():
        named = {_SAME_ROPE.get(key, key): value for key, value in values.items() if value is not None}
        named.setdefault("rope_type", "default")
        if named["rope_type"] == "default":
            named = {key: named[key] for key in named if key in ("rope_type", "rope_theta", "partial_rotary_factor")}
        elif named["rope_type"] in _BY_POSITIONS and positions is not None:
            named.setdefault("max_position_embeddings", positions)
        result |= {f"rope_parameters.{kind}{key}": value for key, value in named.items()}
    return result
