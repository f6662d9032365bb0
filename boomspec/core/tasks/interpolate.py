"""The kind `interpolate`: one size of the family, built from layers of teacher and student."""

from typing import ClassVar, Literal

from boomspec.core.layers import LayerPlan
from boomspec.core.tasks.cost import Cost, Prices
from boomspec.core.tasks.record import LayerPlanShape, Record
from boomspec.core.work_sizes import COPY_BUFFER


class Interpolate(Record):
    """Inputs: `teacher`, `student`. `tied`: the result shares embedding and head, as the teacher does."""

    kind: ClassVar[str] = "interpolate"
    version: ClassVar[int] = 2

    plan: LayerPlan
    tied: bool
    rest: Literal[True] | None = None  # with the teacher's other parts, as the model that the teacher is

    def model(self) -> LayerPlanShape:
        return LayerPlanShape(self.plan, self.tied)

    def cost(self, prices: Prices) -> Cost:
        return prices.written(buffer=COPY_BUFFER, rest=bool(self.rest))
