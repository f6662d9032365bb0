"""Make the config of a layer plan: every layer keeps the attributes that it has in the model it came from.

    per-layer list   one value for each layer: re-indexed. A list is one if it has as many entries as its model has
                     layers; a list whose name says "layer" must be one. The names of both tables below are neither.
    list of indices  the layers something is true of (`mlp_only_layers`): translated to the new indices
    pattern          a rule for each index (`sliding_window_pattern`, or a family's built-in one): written out as the
                     per-layer list that transformers makes of it; `config_rules` has those without such a list

Nothing here looks at weights, or imports transformers: who may brings `complete`.
"""

from collections.abc import Callable, Mapping

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan, Owner
from boomspec.models.config_rules import Config, Configs, Counts, apply_rules, check_agreement
from boomspec.models.facts import LAYER_COUNTS, ModelFacts
from boomspec.models.families import row_of

# All that transformers makes of a config, or None for a family that it does not know.
Complete = Callable[[Config], Config | None]
INDEX_LISTS = (
    "attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "hybrid_layer_ids", "local_layer_ids",
    "mlp_only_layers", "moe_layers",
)  # fmt: skip
_INDEX_OBJECTS = ("per_layer_config",)  # {"5": what layer 5 has of its own}
# A letter for each layer, and the list that says the same.
_LETTERS, _LETTERS_LIST = "hybrid_override_pattern", "layers_block_type"
_MEANING = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
_CYCLE = "block_types"  # the layers' types, over and over: written out
_OTHER_LISTS = (
    "architectures", "attention_types", "begin_suppress_tokens", "bos_token_id", "eos_token_id",
    "keys_to_ignore_at_inference", "mlp_multipliers", "mtp_layers_block_type", "pad_token_id", "ssm_multipliers",
    "suppress_tokens", "time_step_limit",
)  # fmt: skip
# Read by the config classes of several families; a config of a family unknown to transformers cannot be written out.
_WRITTEN_OUT = ("global_attn_every_n_layers", "layer_group_size", "no_rope_layer_interval", "sliding_window_pattern")
# What says nothing any more where lists do.
_BY_INDEX = ("attention_layers", "attention_types", "decoder_sparse_step", "interleave_moe_layer_step")


def plan_config(
    facts: Mapping[Owner, ModelFacts], plan: LayerPlan, *, tied: bool, base: Owner, complete: Complete | None = None
) -> Config:
    """The config of `plan`, made from that of the model `base`.

    Raises BoomspecError where the configs contradict each other or cannot say what the plan needs. Without `complete`
    patterns stay patterns: the config is good enough to find what is wrong with a plan, not to be written.
    """
    counts = {owner: model.count for owner, model in facts.items()}
    unrolled = {owner: _unrolled(dict(model.config), model.count) for owner, model in facts.items()}
    configs, lists = _with_lists(unrolled, counts, complete)
    partial = any(model.partial for model in facts.values())
    _agree(configs, counts, base, lists, None if partial else complete)
    for owner, own in configs.items():
        if (step := own.get("decoder_sparse_step", 1)) != 1:  # every so many layers have experts: list the others
            listed = own.get("mlp_only_layers") or []
            dense = [i for i in range(counts[owner]) if i in listed or (i + 1) % step != 0]
            own |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}

    config = dict(configs[base])
    for key in lists:
        values = [configs[layer.owner][key][layer.index] for layer in plan]
        config[key] = "".join(values) if key == _LETTERS else values
    for key in INDEX_LISTS:
        if any(isinstance(other.get(key), list) for other in configs.values()):
            indices = [configs[layer.owner].get(key) or () for layer in plan]
            config[key] = [new for new, layer in enumerate(plan) if layer.index in indices[new]]
    for key in _INDEX_OBJECTS:
        if any(isinstance(other.get(key), dict) for other in configs.values()):
            own_of = [(configs[layer.owner].get(key) or {}).get(str(layer.index)) for layer in plan]
            config[key] = {str(new): value for new, value in enumerate(own_of) if value is not None}
    if "attention_layers" in lists and "attention_types" in config:
        config["attention_types"] = [[config["attention_layers"], 1]]  # transformers reads only this one
    present = [key for key in LAYER_COUNTS if config.get(key) is not None]
    if not present and not lists:
        raise BoomspecError(f"config.json says no number of layers: looked for {', '.join(LAYER_COUNTS)}")
    config |= dict.fromkeys(present, len(plan))
    for name in {_LETTERS, _LETTERS_LIST} - facts[base].config.keys():
        config.pop(name, None)
    config["tie_word_embeddings"] = tied
    apply_rules(config, configs, counts, plan, base)
    return config


def check_one_kind(facts: ModelFacts, complete: Complete | None = None) -> None:
    """Raise BoomspecError where layers differ in weights or config and cannot be added up. `complete`: for patterns."""
    config = _unrolled(dict(facts.config), facts.count)
    if complete is not None and not _alike(config):
        config = _written_out(config, facts.count, complete)
    lists = [config[key] for key in _per_layer(config, facts.count)]
    indices = [config[key] for key in INDEX_LISTS if isinstance(config.get(key), list)]
    objects = [config[key] for key in _INDEX_OBJECTS if isinstance(config.get(key), dict)]
    kinds: list[tuple[object, ...]] = [
        (
            sorted((tensor.name.removeprefix(f"{facts.prefix}.{i}."), tensor.shape) for tensor in layer),
            *(str(values[i]) for values in lists),
            *(i in listed for listed in indices),
            *(str(named.get(str(i))) for named in objects),
        )
        for i, layer in enumerate(facts.layers)
    ]
    other = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None:
        differ = [(a, b) for a, b in zip(kinds[0], kinds[other], strict=True) if a != b]
        what = next((f" ({a} and {b})" for a, b in differ if isinstance(a, str)), "")
        raise BoomspecError(
            f"LaCo adds layers up, and the teacher's are not all alike: layers 0 and {other} are of two kinds{what}",
            hint="leave the baseline laco out for this teacher",
        )


def _agree(configs: Configs, counts: Counts, base: Owner, lists: list[str], complete: Complete | None) -> None:
    listed = frozenset({*lists, *INDEX_LISTS, *_INDEX_OBJECTS, _LETTERS, *LAYER_COUNTS, *_WRITTEN_OUT, *_BY_INDEX})
    for owner, other in configs.items():
        if owner == base or other == configs[base]:
            continue
        both = counts[base], counts[owner]
        check_agreement(configs[base], other, both, listed)
        if complete is not None and other.get("model_type") == configs[base].get("model_type"):
            mine, theirs = (complete(config) or config for config in (configs[base], other))
            try:  # what the class says by itself; some say nothing without a config
                known = complete({"model_type": other.get("model_type")}) or {}
            except BoomspecError:
                known = {}
            check_agreement(mine, theirs, both, listed, frozenset(known))


def _unrolled(config: Config, count: int) -> Config:
    if isinstance(cycle := config.get(_CYCLE), list) and cycle:
        config[_CYCLE] = [cycle[i % len(cycle)] for i in range(count)]
    letters, types = config.get(_LETTERS), config.get(_LETTERS_LIST)
    if isinstance(letters, str) and types is None:
        config[_LETTERS_LIST] = [_MEANING.get(letter, letter) for letter in letters]
    elif isinstance(types, list) and _LETTERS not in config and row_of(config.get("model_type")).letters:
        letter_of = {"mamba": "M", "attention": "*", **{name: letter for letter, name in _MEANING.items()}}
        config[_LETTERS] = "".join(letter_of.get(name, "?") for name in types)
    return config


def _with_lists(configs: Configs, counts: Counts, complete: Complete | None) -> tuple[Configs, list[str]]:
    """The configs with every per-layer list written out, and the names of these lists."""
    lists = {owner: _per_layer(config, counts[owner]) for owner, config in configs.items()}
    differ = len({frozenset(keys) for keys in lists.values()}) > 1
    written = dict(configs)
    if complete is not None and (differ or not all(_alike(config) for config in configs.values())):
        written = {owner: _written_out(config, counts[owner], complete) for owner, config in configs.items()}
        lists = {owner: _per_layer(config, counts[owner]) for owner, config in written.items()}
    result = []
    for key in sorted({key for keys in lists.values() for key in keys}):
        without = [owner for owner in configs if key not in lists[owner]]
        if not without:
            result.append(key)
        elif complete is None and all(written[owner].get(key) is None for owner in without):
            continue  # transformers, asked later, may make the list
        elif "layer" in key.lower() or len({str(config.get(key)) for config in written.values()}) > 1:
            message = f"config.json: '{key}' has a value for each layer in one of the models, not in the other"
            raise BoomspecError(message)
    return written, result


def _per_layer(config: Config, count: int) -> list[str]:
    """The names of the config's per-layer lists. Raises BoomspecError for one of another length."""
    keys = []
    for key, value in config.items():
        if key == _LETTERS and isinstance(value, str):
            if len(value) != count:
                raise BoomspecError(f"config.json: '{key}' has {len(value)} letters, the model has {count} layers")
            keys.append(key)
        if not isinstance(value, list) or key in _OTHER_LISTS or key in INDEX_LISTS:
            continue
        if len(value) == count:
            keys.append(key)
        elif value and "layer" in key.lower():
            raise BoomspecError(
                f"config.json: '{key}' has {len(value)} entries, the model has {count} layers",
                hint="a list whose name says 'layer' must have one entry for each layer, be empty,"
                f" or be one of the known lists of layer indices ({', '.join(INDEX_LISTS)})",
            )
    return keys


def _alike(config: Config) -> bool:
    row = row_of(config.get("model_type"))
    return row.alike and not (row.unless and config.get(row.unless))


def _written_out(config: Config, count: int, complete: Complete) -> Config:
    """The config with the per-layer lists that transformers' own config class makes of it."""
    full = complete(config)
    if full is None:
        if pattern := next((key for key in _WRITTEN_OUT if config.get(key) is not None), None):
            model_type = config.get("model_type", "unknown")
            raise BoomspecError(f"config.json: '{pattern}' of the unknown family '{model_type}' cannot be written out")
        return config
    lists = {k: v for k, v in full.items() if "layer" in k and isinstance(v, list) and config.get(k) is None}
    lists = {key: value for key, value in lists.items() if key in INDEX_LISTS or len(value) == count}
    return {**config, **lists, **{key: full[key] for key in _INDEX_OBJECTS if isinstance(full.get(key), dict)}}
