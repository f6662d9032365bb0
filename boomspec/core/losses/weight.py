"""The weight of a loss: a number, or a course from one number to another over the steps of a training."""

import math
from typing import Annotated, Literal

from pydantic import Field

from boomspec.core.types import Number, ShareField, Strict, about

COLUMN = "weight."  # with a kind behind it: the column of the metrics that has its weight, where that changes


class WeightCourse(Strict):
    """From `start` at the first step to `end`, which it keeps after `over` steps."""

    start: Number = about("Weight at the first step.", ge=0)
    end: Number = about("Weight at the last step of the course, and from there on.", ge=0)
    over: ShareField = about(
        "Share of the steps that the course takes, or a number of steps.", default="100%", validate_default=True
    )
    kind: Literal["linear", "cosine"] = about("Shape of the course.", default="linear")

    def model_post_init(self, _: object) -> None:
        if self.start == self.end == 0:
            raise ValueError("a weight that is 0 throughout: set the term to null to leave it out")

    def at(self, step: int, steps: int) -> float:
        """The weight at one of `steps` steps."""
        way = min(1.0, step / max(self.over.of(steps) - 1, 1))
        if self.kind == "cosine":
            way = (1 - math.cos(math.pi * way)) / 2
        return self.start + (self.end - self.start) * way


_Constant = Annotated[Number, Field(gt=0)]
Weight = Annotated[
    _Constant | WeightCourse,
    Field(description="Factor of this term in the total loss: a number, or a course over the steps."),
]


def weight_at(weight: float | WeightCourse, step: int, steps: int) -> float:
    return weight.at(step, steps) if isinstance(weight, WeightCourse) else weight
