"""The kinds `interpolate`, `dequantize` and `baseline`: models that are made without training."""

from typing import Annotated, Literal

from pydantic import Discriminator

from boomspec.core.layers import LayerPlan, teacher_layers
from boomspec.core.tasks.record import MADE, Cost, Determinism, LayerPlanShape, Precision, Prices, Record
from boomspec.core.tasks.search import Calibration
from boomspec.core.types import Strict
from boomspec.core.work_sizes import BATCH_SIZE, COPY_BUFFER, DEQUANTIZED_SHARD

_MERGES = "how many merges are tried"


class Interpolate(Record):
    """Inputs: `teacher`, `student`, and `seam` where weights of its own take the place of theirs.

    `tied`: the result shares embedding and head, as the teacher does.
    """

    kind, version = "interpolate", 2

    plan: LayerPlan
    tied: bool
    rest: Literal[True] | None = None  # with the teacher's other parts, as the model that the teacher is

    def model(self) -> LayerPlanShape:
        return LayerPlanShape(self.plan, self.tied)

    def cost(self, prices: Prices) -> Cost:
        return prices.written(buffer=COPY_BUFFER, rest=bool(self.rest))


class Dequantize(Record):
    """A model that is quantised, written out in `dtype`, its config without quantisation. Inputs: `model` (source)."""

    kind, version = "dequantize", 1
    usual_work = 10

    dtype: Literal["bfloat16", "float16", "float32"]

    def model(self) -> str:
        return "model"

    def cost(self, prices: Prices) -> Cost:
        return prices.written(buffer=min(DEQUANTIZED_SHARD, prices.models[MADE].bytes))


class Subset(Strict):
    """Some of the teacher's layers, as they are (naive pruning, ShortGPT). Inputs: `teacher`."""

    type: Literal["subset"] = "subset"
    plan: LayerPlan
    rest: Literal[True] | None = None  # as of an interpolation

    def model(self) -> LayerPlanShape:
        return LayerPlanShape(self.plan)

    def cost(self, prices: Prices) -> Cost:
        return prices.written(buffer=COPY_BUFFER, rest=bool(self.rest))


class LaCo(Strict):
    """Layers are collapsed until `layers` are left, as `runners/search/laco.py` says. Inputs: `teacher`, `tokens`."""

    type: Literal["laco"] = "laco"
    layers: int
    merge: int  # so many following layers become one
    lowest: int  # layers [lowest, highest) may be merged
    highest: int
    interval: int  # the pointer moves down by so many layers after a merge that is kept
    threshold: float  # of the mean cosine of the final hidden states to the teacher's
    calibration: Calibration
    precision: Precision
    determinism: Determinism | None = None

    def model(self) -> LayerPlanShape:
        return LayerPlanShape(teacher_layers(range(self.layers)), merged=True)

    def cost(self, prices: Prices) -> Cost:
        teacher, tokens = prices.models["teacher"], min(BATCH_SIZE, self.calibration.sequences)
        memory = teacher.measuring(bf16=self.precision == "bf16", tokens=tokens * self.calibration.sequence_length)
        return Cost(memory=memory, disk=prices.models[MADE].bytes, read=teacher.bytes, unknown=_MERGES)


class Baseline(Record):
    """A model made without training."""

    kind, version = "baseline", 2
    usual_work = 10

    build: Annotated[Subset | LaCo, Discriminator("type")]

    def model(self) -> LayerPlanShape:
        return self.build.model()

    def cost(self, prices: Prices) -> Cost:
        return self.build.cost(prices)
