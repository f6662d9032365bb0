"""Reference implementation: build a layer plan from nn.Modules, to test assembled checkpoints.

    layers      copies of the owners' layer modules, in the order of the plan, with all that they know of themselves
    in front    what a forward pass calls before the first layer: of the owner of the first layer
    behind      what it calls after the last layer: of the owner of the last one

Run without a cache, such a model does not depend on what its layers are numbered.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import TEACHER, LayerPlan, Owner, ends_of

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers")


def layer_stack(model: Any, count: int) -> tuple[str, nn.ModuleList]:
    """Name and modules of the decoder layers: of the outermost lists of `count` modules, the one with most weights."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == count and not inside:
            found[name] = module
    if not found:
        raise BoomspecError(f"a {type(model).__name__} has no list of {count} layers")
    name = max(found, key=lambda name: sum(p.numel() for p in found[name].parameters()))
    return name, found[name]


def sides(model: Any, count: int, tokens_BT: Tensor) -> tuple[set[str], set[str]]:
    """Names of the modules with weights of their own that are called before the layers, and after them."""
    stack_name, stack = layer_stack(model, count)
    front: set[str] = set()
    behind: set[str] = set()
    reached = [False]

    def note(name: str) -> Any:
        return lambda *_: (behind if reached[0] else front).add(name)

    handles = [stack[0].register_forward_pre_hook(lambda *_: reached.__setitem__(0, True))]
    for name, module in model.named_modules():
        own = {**module._parameters, **module._buffers}
        if own and not name.startswith(f"{stack_name}."):
            handles.append(module.register_forward_pre_hook(note(name)))
    try:
        logits(model, tokens_BT)
    finally:
        for handle in handles:
            handle.remove()
    return front, behind - front


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
    """Let what stands around the layers know how many there are, and of which type."""
    holders = [("", model), *((n, m) for n, m in model.named_modules() if not n.startswith(f"{path}."))]
    seen: set[int] = set()
    for name, holder in holders:
        theirs = {owner: other.get_submodule(name) for owner, other in models.items()}
        objects = [(holder, theirs)]
        if hasattr(holder, "config"):
            objects.append((holder.config, {owner: getattr(other, "config", None) for owner, other in theirs.items()}))
            if (inner := getattr(holder.config, "text_config", None)) is not None:
                objects.append((inner, {o: getattr(other.config, "text_config", None) for o, other in theirs.items()}))
        for mine, others in objects:
            if id(mine) not in seen:
                seen.add(id(mine))
                _reindex_object(mine, others, plan, counts)


def _reindex_object(mine: Any, others: Mapping[Owner, Any], plan: LayerPlan, counts: Mapping[Owner, int]) -> None:
    for key, value in list(vars(mine).items()):
        values = {owner: vars(other).get(key) if other is not None else None for owner, other in others.items()}
        lists = {o: v for o, v in values.items() if isinstance(v, list | tuple) and len(v) == counts[o]}
        if isinstance(value, list | tuple) and lists.keys() == values.keys():
            vars(mine)[key] = [lists[layer.owner][layer.index] for layer in plan]
        elif key in COUNTS and type(value) is int and value == counts[TEACHER]:
            vars(mine)[key] = len(plan)


@torch.no_grad()
def logits(model: Any, tokens_BT: Tensor) -> Tensor:
    """logits_BTV of a forward pass without a cache."""
    found: Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return found
