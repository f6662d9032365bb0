"""What is measured together: one whole model, or many layer plans over the models whose layers they have.

Plans share what is computed: each layer is run once for all plans that begin with the same layers. A member's numbers
do not depend on which others are measured with it: batches are made of the text alone, and a layer's output for a
batch is the same whoever asks for it.

Shapes: B rows, T positions, D hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from boomspec.core.layers import LayerPlan, Owner, ends_of
from runners.modeling.hidden_states import LMHead, check_head, trunk
from runners.modeling.shared_forward import Inputs, SharedForward, Visit

WHOLE: LayerPlan = ()  # the plan of a model that is not taken apart


class Members(ABC):
    """Models of one family, by their layer plans. Raises BoomspecError for a model without a head of its own."""

    plans: tuple[LayerPlan, ...]
    models: tuple[Any, ...]  # those that hold the weights, in evaluation mode

    @abstractmethod
    def head(self, plan: LayerPlan) -> LMHead:
        """The head of this member."""

    @abstractmethod
    def run(
        self, plans: Iterable[LayerPlan], batches: Sequence[Inputs], visit: Visit, done: Callable[[float], None]
    ) -> None:
        """Call `visit(number, plan, what its head reads)` for every batch and plan, batch by batch."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.models[0].device)


class WholeModel(Members):
    """One model as it is."""

    plans = (WHOLE,)

    def __init__(self, model: Any) -> None:
        check_head(model)
        self.models, self._head = (model,), LMHead(model)

    def head(self, plan: LayerPlan) -> LMHead:
        return self._head

    @torch.inference_mode()
    def run(
        self, plans: Iterable[LayerPlan], batches: Sequence[Inputs], visit: Visit, done: Callable[[float], None]
    ) -> None:
        (model,) = self.models
        for number, batch in enumerate(batches):
            batch = batch.to(self.device)
            visit(number, WHOLE, trunk(model, batch.tokens_BT, **batch.arguments(model)))
            done((number + 1) / len(batches))


class LayerPlans(Members):
    """Plans over models by owner."""

    def __init__(self, models: Mapping[Owner, Any], plans: Iterable[LayerPlan]) -> None:
        self.plans = tuple(dict.fromkeys(plans))
        self._owners, self.models = dict(models), tuple(models.values())
        self._heads = {owner: LMHead(model) for owner, model in models.items()}
        for model in self.models:
            check_head(model)

    def head(self, plan: LayerPlan) -> LMHead:
        return self._heads[ends_of(plan)[1]]

    def run(
        self, plans: Iterable[LayerPlan], batches: Sequence[Inputs], visit: Visit, done: Callable[[float], None]
    ) -> None:
        SharedForward(self._owners, batches).run(plans, visit, done=done)
