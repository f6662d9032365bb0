"""Make the config of a layer plan with transformers' help (`boomspec.models.plan_config`).

transformers' own config classes write out what a config leaves to them: patterns of layers, defaults.
"""

import importlib
import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan, Owner
from boomspec.models.config_rules import Config
from boomspec.models.facts import ModelFacts
from boomspec.models.plan_config import plan_config as plan_config_with


def plan_config(facts: Mapping[Owner, ModelFacts], plan: LayerPlan, *, tied: bool, base: Owner) -> Config:
    """The config of `plan`, from that of the model `base`, to be written. Raises BoomspecError where there is none."""
    config = plan_config_with(facts, plan, tied=tied, base=base, complete=complete)
    if facts[base].left_out and "architectures" not in config:  # a decoder's own config need not say what it is
        names = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        config["architectures"] = [names[config["model_type"]]]
    return config


def complete(config: Config) -> Config | None:
    """A config with all that transformers' class of its family adds to it; None for a family without one."""
    # Most families need no more than JSON, and transformers brings torch: seconds, and 200 MB of memory.
    mapping = importlib.import_module("transformers").CONFIG_MAPPING
    model_type = config.get("model_type", "unknown")
    if model_type not in mapping:
        return None
    cls = mapping[model_type]
    try:
        full: Config = json.loads(config_object(cls, config).to_json_string(use_diff=False))
    except Exception as error:  # each config class has its own ideas of a wrong value, and of the exception for it
        raise BoomspecError(f"config.json: transformers refuses it: {error}") from error
    return full


def config_object(cls: Any, config: Mapping[str, Any]) -> Any:
    """transformers' object of a config; infinities are numbers in it."""
    return cls.from_dict(cls._decode_special_floats(deepcopy(dict(config))))
