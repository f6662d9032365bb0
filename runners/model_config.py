"""The config of a layer plan, as transformers reads it (`boomspec.models.plan_config`).

transformers' own config classes write out what a config leaves to them: patterns of layers, defaults.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy

from boomspec.errors import BoomspecError
from boomspec.models.facts import ModelFacts
from boomspec.models.layer_rules import Config
from boomspec.models.plan_config import plan_config as plan_config_with


def plan_config(facts: Mapping[str, ModelFacts], plan: Sequence[str], *, tied: bool, base: str) -> Config:
    """The config of `plan` ("t4": layer 4 of facts["t"]), made from that of the model `base`, to be written.

    Raises BoomspecError where the configs contradict each other or cannot say what the plan needs.
    """
    return plan_config_with(facts, plan, tied=tied, base=base, complete=complete)


def complete(config: Config) -> Config | None:
    """A config with all that transformers' class of its family adds to it; None for a family without one."""
    # Most families need no more than JSON, and transformers brings torch: seconds, and 200 MB of memory.
    mapping = importlib.import_module("transformers").CONFIG_MAPPING
    model_type = config.get("model_type", "unknown")
    if model_type not in mapping:
        return None
    cls = mapping[model_type]
    try:
        made = cls.from_dict(cls._decode_special_floats(deepcopy(config)))
        full: Config = json.loads(made.to_json_string(use_diff=False))
    except Exception as error:  # each config class has its own ideas of a wrong value, and of the exception for it
        raise BoomspecError(f"config.json: transformers refuses it: {error}") from error
    return full
