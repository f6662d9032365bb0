"""The kind `dequantize`: a quantised model is written out in plain numbers."""

from typing import ClassVar, Literal

from boomspec.core.tasks.cost import MADE, Cost, Prices
from boomspec.core.tasks.record import Record, SameShape
from boomspec.core.work_sizes import DEQUANTIZED_SHARD


class Dequantize(Record):
    """A model that is quantised, written out in `dtype`, its config without quantisation. Inputs: `model` (source)."""

    kind: ClassVar[str] = "dequantize"
    version: ClassVar[int] = 1
    usual_work: ClassVar[int] = 10

    dtype: Literal["bfloat16", "float16", "float32"]

    def model(self) -> SameShape:
        return SameShape("model")

    def cost(self, prices: Prices) -> Cost:
        return prices.written(buffer=min(DEQUANTIZED_SHARD, prices.models[MADE].bytes))
