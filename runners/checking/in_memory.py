"""Reference implementation: build a layer plan from nn.Modules, to test assembled checkpoints.

    layers      copies of the owners' layer modules, in the order of the plan, with all that they know of themselves
    in front    what a forward pass calls before the first layer: of the owner of the first layer
    behind      what it calls after the last layer: of the owner of the last one

Run without a cache, such a model does not depend on what its layers are numbered.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import TEACHER, LayerPlan, Owner, ends_of
from boomspec.models.facts import LAYER_COUNTS
from runners.modeling.hidden_states import layer_lists

_COUNTS = (*LAYER_COUNTS, "decoder_layers", "num_decoder_layers")


def layer_stack(model: Any, count: int) -> tuple[str, nn.ModuleList]:
    """Name and modules of the decoder layers: of the outermost lists of `count` modules, the one with most weights."""
    found = layer_lists(model, count)
    if not found:
        raise BoomspecError(f"a {type(model).__name__} has no list of {count} layers")
    name = max(found, key=lambda name: sum(p.numel() for p in found[name].parameters()))
    return name, found[name]


def sides(model: Any, count: int, tokens_BT: Tensor) -> tuple[set[str], set[str]]:
    """Names of the modules with weights of their own that are called before the layers, and after them."""
    stack_name, stack = layer_stack(model, count)
    called: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: called.append(name)

    with ExitStack() as hooks:
        hooks.callback(stack[0].register_forward_pre_hook(note(stack_name)).remove)
        for name, module in model.named_modules():
            if (module._parameters or module._buffers) and not f"{name}.".startswith(f"{stack_name}."):
                hooks.callback(module.register_forward_pre_hook(note(name)).remove)
        logits(model, tokens_BT)
    first = called.index(stack_name)
    front = set(called[:first])
    return front, set(called[first:]) - {stack_name} - front


def patched(models: Mapping[Owner, Any], plan: LayerPlan, counts: Mapping[Owner, int], tokens_BT: Tensor) -> Any:
    """The model of `plan`: a copy of the teacher with the parts of the other."""
    model = deepcopy(models[TEACHER])
    front, behind = sides(models[TEACHER], counts[TEACHER], tokens_BT)
    for names, owner in zip((front, behind), ends_of(plan), strict=True):
        for name in names:
            mine, theirs = model.get_submodule(name), models[owner].get_submodule(name)
            for kind in ("_parameters", "_buffers"):
                getattr(mine, kind).update(deepcopy(getattr(theirs, kind)))
    stacks = {owner: layer_stack(models[owner], counts[owner]) for owner in models}
    path = stacks[TEACHER][0]
    layers = nn.ModuleList([deepcopy(stacks[layer.owner][1][layer.index]) for layer in plan])
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layers)
    _reindex(model, models, plan, counts, path)
    return model


def _reindex(model: Any, models: Mapping[Owner, Any], plan: LayerPlan, counts: Mapping[Owner, int], path: str) -> None:
    """Let what stands around the layers, and its configs, know how many there are, and of which type."""
    seen: set[int] = set()
    for name, holder in model.named_modules():
        if name.startswith(f"{path}."):
            continue
        theirs = {owner: other.get_submodule(name) for owner, other in models.items()}
        for at in ((), ("config",), ("config", "text_config")):
            mine, *others = (reduce(lambda v, k: getattr(v, k, None), at, of) for of in (holder, *theirs.values()))
            if mine is None or id(mine) in seen:
                continue
            seen.add(id(mine))
            known = [{} if other is None else vars(other) for other in others]
            for key, value in list(vars(mine).items()):
                found = dict(zip(theirs, (values.get(key) for values in known), strict=True))
                per_layer = [isinstance(v, list | tuple) and len(v) == counts[owner] for owner, v in found.items()]
                if isinstance(value, list | tuple) and all(per_layer):
                    vars(mine)[key] = [found[layer.owner][layer.index] for layer in plan]
                elif key in _COUNTS and type(value) is int and value == counts[TEACHER]:
                    vars(mine)[key] = len(plan)


@torch.no_grad()
def logits(model: Any, tokens_BT: Tensor) -> Tensor:
    """logits_BTV of a forward pass without a cache."""
    found: Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return found
