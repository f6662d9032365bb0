"""Forward many layer plans on one batch, reusing hidden states of common prefixes.

Plans that begin with the same layers have the same hidden states there. Within one `run` the plans are taken in sorted
order, which is a depth-first walk through the tree of their prefixes: a state is computed once and dropped when no plan
that is left begins with its prefix. From one `run` to the next, states that the caller names are kept in host memory,
as many as `HELD_STATES` holds; the rest is computed again. How many layers are run does not depend on a batch's size.

Shapes: B sequences, T positions, D hidden size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Any, Self

import torch
from torch import Tensor

from boomspec.core.layers import LayerPlan, Owner, ends_of
from boomspec.core.work_sizes import HELD_STATES
from runners.modeling.layerwise import Batch, take_apart

Report = Callable[[float, float], None]  # so much is done, of so much
# visit(number of the batch, plan, hidden_BTD that the plan's head reads)
Visit = Callable[[int, LayerPlan, Tensor], None]


@dataclass(frozen=True)
class Inputs:
    """What a model is called with for one batch: tokens_BT under a causal mask. A subclass may add arguments."""

    tokens_BT: Tensor

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def arguments(self, model: Any) -> dict[str, Any]:
        """Named arguments of `model` beside the tokens."""
        return {}


class SharedForward:
    """Layer plans over `models` (by owner) on batches: tokens_BT, or `Inputs`.

    `layer_forwards` counts the layers that were run on all batches, `unshared` those that plans alone would have run.
    """

    def __init__(self, models: Mapping[Owner, Any], batches: Sequence[Tensor | Inputs]) -> None:
        self.batches = [batch if isinstance(batch, Inputs) else Inputs(batch) for batch in batches]
        self.parts = {
            owner: take_apart(model, self.batches[0].tokens_BT.to(model.device)) for owner, model in models.items()
        }
        self.unshared = 0
        self._sequences = sum(len(batch.tokens_BT) for batch in self.batches)
        self._sequence_layers = 0
        self._cache: dict[LayerPlan, list[Tensor]] = {}  # by prefix, one state of each batch

    @property
    def layer_forwards(self) -> int:
        return self._sequence_layers // self._sequences

    @torch.no_grad()
    def run(
        self,
        plans: Iterable[LayerPlan],
        visit: Visit,
        *,
        keep: Iterable[LayerPlan] = (),
        done: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Call `visit` once for every plan and batch. `keep`: prefixes that a later run begins with."""
        ordered = sorted(set(plans))
        if not ordered:
            return
        self.unshared += sum(len(plan) for plan in ordered)
        wanted = {plan[:length] for plan in ordered for length in range(1, len(plan) + 1)}
        self._cache = {prefix: states for prefix, states in self._cache.items() if prefix in wanted}
        kept, device = self._room_for(keep), next(iter(self.parts.values())).model.device
        pairs = [zip(one, following, strict=False) for one, following in pairwise(ordered)]
        # How many layers each plan shares with the one before it.
        shared = [0, *(len(list(takewhile(lambda layers: layers[0] == layers[1], both))) for both in pairs)]
        for number, batch in enumerate(self.batches):
            batch = batch.to(device)
            opened = {
                owner: Batch(parts, batch.tokens_BT, batch.arguments(parts.model))
                for owner, parts in self.parts.items()
            }
            path: list[tuple[int, Tensor]] = []  # (length of a prefix of this plan, its state), where plans part
            for plan, length in zip(ordered, shared, strict=True):
                while path and path[-1][0] > length:
                    path.pop()
                cached = max((len(prefix) for prefix in self._cache if plan[: len(prefix)] == prefix), default=0)
                if cached > (path[-1][0] if path else 0):
                    path.append((cached, self._cache[plan[:cached]][number].to(device)))
                start, hidden_BTD = path[-1] if path else (0, opened[ends_of(plan)[0]].embedding_BTD)
                for end, layer in enumerate(plan[start:], start=start + 1):
                    hidden_BTD = opened[layer.owner].layer(layer.index, hidden_BTD)
                    self._sequence_layers += len(hidden_BTD)
                    if end in shared:
                        path.append((end, hidden_BTD))
                    states = kept.get(plan[:end])
                    if states is not None and len(states) == number:
                        states.append(hidden_BTD.cpu())
                visit(number, plan, opened[ends_of(plan)[1]].finish(hidden_BTD))
            done((number + 1) / len(self.batches))
        self._cache |= {prefix: states for prefix, states in kept.items() if states}

    def _room_for(self, keep: Iterable[LayerPlan]) -> dict[LayerPlan, list[Tensor]]:
        """Empty lists for as many of `keep` as there is room for beside the states that are kept already."""
        model = next(iter(self.parts.values())).model
        positions = sum(batch.tokens_BT.numel() for batch in self.batches)
        state_bytes = positions * model.config.get_text_config().hidden_size * model.dtype.itemsize
        room = HELD_STATES // state_bytes - len(self._cache)
        new = {prefix for prefix in keep if prefix and prefix not in self._cache}
        best = sorted(new, key=lambda prefix: (-len(prefix), prefix))  # the longest spare the most layers
        return {prefix: [] for prefix in best[: max(0, room)]}
