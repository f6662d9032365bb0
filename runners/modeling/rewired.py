"""Make the model of a layer plan from models in memory, sharing their weights.

It is a model of the teacher's own class, built from its own config as transformers would build it from an assembled
folder, whose parameters ARE those of the models that it is made of (`boomspec.models.fit.tensors_of_plan` says whose):
no weight is copied. Its modules are its own, so a layer knows its place (`layer_idx`, and with it the KV cache) in
every model that it is part of.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, ends_of
from boomspec.models.facts import ModelFacts
from runners.modeling.hidden_states import decoder_layers
from runners.modeling.model_config import config_object, plan_config


def rewired(
    models: Mapping[Owner, PreTrainedModel], facts: Mapping[Owner, ModelFacts], plan: LayerPlan, *, tied: bool
) -> PreTrainedModel:
    """The model of `plan`, its head tied to its embedding or not. Raises BoomspecError where models do not fit.

    It is built as the teacher is; a plan of the student's layers alone needs no teacher among the `models`.
    """
    base: Owner = TEACHER if TEACHER in models else STUDENT
    like: Any = models[base]
    config = config_object(type(like.config), plan_config(facts, plan, tied=tied, base=base))
    with init_empty_weights(include_buffers=False):  # what is computed from its config is there
        attention = like.config._attn_implementation
        member = type(like)._from_config(config, dtype=like.dtype, attn_implementation=attention)
    owned = {owner: model.state_dict(keep_vars=True) for owner, model in models.items()}
    layers = decoder_layers(member)
    stack = next(name for name, module in member.named_modules() if module is layers)
    for name, tensor in member.state_dict().items():
        owner, source = _origin(facts[base], name, tensor, stack, member.base_model_prefix, plan)
        if (shared := owned[owner].get(source)) is None:
            raise BoomspecError(f"the model of this plan needs '{name}', but its owner has no '{source}'")
        if tensor.shape != shared.shape:
            shapes = f"should have shape {tuple(tensor.shape)}, its owner's has {tuple(shared.shape)}"
            raise BoomspecError(f"'{name}' {shapes}")
        path, _, leaf = name.rpartition(".")
        setattr(member.get_submodule(path), leaf, shared)  # the tensor itself, not its values
    if tied:
        member.tie_weights()
    member.generation_config = copy.deepcopy(like.generation_config)
    # What is left to move are the buffers that are not stored, such as rotary frequencies.
    moved: PreTrainedModel = member.to(like.device).train(like.training)
    return moved


def _origin(
    facts: ModelFacts, name: str, tensor: torch.Tensor, stack: str, base: str, plan: LayerPlan
) -> tuple[Owner, str]:
    """Whose tensor `name` of a model is, and what its owner calls it."""
    if name.startswith(f"{stack}."):
        index, _, rest = name.removeprefix(f"{stack}.").partition(".")
        layer = plan[int(index)]
        return layer.owner, f"{stack}.{layer.index}.{rest}"
    first, last = ends_of(plan)
    for entries, owner in ((facts.norm, last), (facts.embedding, first)):
        if any(entry.name == name for entry in entries):
            return owner, name
    # The rule of `boomspec.models.facts`: of what stands beside the layers, all but bare vectors is embedding.
    in_front = name.startswith(f"{base}.") and (tensor.ndim > 1 or "embed" in name.lower())
    return first if in_front else last, name
