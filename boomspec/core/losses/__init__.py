"""The losses of a distillation: a module of this folder is one loss, with its fields, formula and costs.

    L = w_ce * CE + w_kl * T^2 * KL(teacher || student) + w_cos * mean over pairs of (1 - cos)     (arXiv 2510.05064)

by default; a spec may weigh other terms. To add a loss, add a subclass of `Loss` (on logits) or of `StateLoss`,
`RelationLoss` or `AttentionLoss` (on places inside of student and teacher) to a module here: it is found by its `kind`.
Formulas import torch when they are called: a spec is read without it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, create_model

from boomspec.core.losses.cross_entropy import CrossEntropy
from boomspec.core.losses.hidden_cosine import HiddenCosine
from boomspec.core.losses.kl import KL
from boomspec.core.losses.loss import Loss
from boomspec.core.losses.pairs import PairLoss
from boomspec.core.losses.state_loss import StateLoss
from boomspec.core.types import Strict, WhenUsed, kinds_in

__all__ = [
    "ELSEWHERE", "KL", "LOSSES",
    "CrossEntropy", "HiddenCosine", "Loss", "Losses", "PairLoss", "StateLoss", "usual_losses",
]  # fmt: skip

ELSEWHERE = "x-elsewhere"  # in the JSON Schema of `Losses`: what others call a loss
_FIRST = (CrossEntropy, KL, HiddenCosine)  # the others follow by their names
LOSSES: dict[str, type[Loss]] = {loss.kind: loss for loss in _FIRST} | kinds_in(__name__, Loss)


class _Terms(Strict):
    def terms(self) -> dict[str, Loss]:
        """The terms that are switched on, by kind."""
        return {kind: term for kind in LOSSES if (term := getattr(self, kind)) is not None}

    def reading(self, *what: str) -> dict[str, Loss]:
        """The terms that read any of these."""
        return {kind: term for kind, term in self.terms().items() if not {*what}.isdisjoint(term.reads)}

    @property
    def reads_teacher(self) -> bool:
        return any(what.startswith("teacher_") for term in self.terms().values() for what in term.reads)

    def each(self, change: Callable[[Loss], Loss | None]) -> "Losses":
        """The losses with each term changed; None leaves one out."""
        return self.model_copy(update={kind: change(term) for kind, term in self.terms().items()})  # type: ignore[return-value]  # a `_Terms`


if TYPE_CHECKING:

    class Losses(_Terms):
        def __init__(self, **terms: Loss | None) -> None: ...

else:
    _fields: dict[str, Any] = {
        kind: (
            Annotated[
                loss | None,
                WhenUsed(loss),
                Field(
                    description=loss.description,
                    examples=[loss.example()],
                    json_schema_extra={ELSEWHERE: list(loss.elsewhere)} if loss.elsewhere else None,
                ),
            ],
            None,
        )
        for kind, loss in LOSSES.items()
    }
    Losses = create_model(
        "Losses",
        __base__=_Terms,
        __module__=__name__,
        __doc__="The terms of the distillation loss; the key is the kind. A term set to null is left out.",
        **_fields,
    )


def usual_losses() -> Losses:
    return Losses(**{kind: loss() for kind, loss in LOSSES.items() if loss.usual})


# Weights that were published, with the terms at their usual settings. Their terms differ in size at the first step.
PUBLISHED_WEIGHTS = (
    {"cross_entropy": 1.0, "kl": 0.1, "hidden_cosine": 2.0},  # arXiv 2510.05064
    {"cross_entropy": 1.0, "kl": 0.1, "hidden_cosine": 10.0},  # arXiv 2608.22854
)
