"""The kind `transfer`: the student of a variant is made of a distilled student of the variant's base, untrained."""

from boomspec.core.layers import teacher_layers
from boomspec.core.tasks.record import Cost, LayerPlanShape, Prices, Record
from boomspec.core.work_sizes import COPY_BUFFER

DELTAS = "transfer.json"


class Transfer(Record):
    """init_from(teacher) + (distilled - init_from(base)), tensor by tensor (weight-delta transfer, arXiv 2608.22854).

    init_from: the layers `kept`, with embedding, final norm and head. Inputs: `teacher` (the variant), `base`, and
    `distilled`, the student that was distilled from `base`. Writes `model/`, and how far the deltas agree.
    """

    kind, version = "transfer", 1
    numbers = (DELTAS,)
    usual_work = 10

    kept: tuple[int, ...]

    def model(self) -> LayerPlanShape:
        return LayerPlanShape(teacher_layers(self.kept))

    def cost(self, prices: Prices) -> Cost:
        written = prices.written(buffer=4 * COPY_BUFFER)
        return Cost(memory=written.memory, disk=written.disk, read=3 * written.read)
