"""The kind `seam`: weights of one size are fitted where layers of teacher and student meet."""

from typing import Literal

from boomspec.core.layers import STUDENT, LayerPlan, seams
from boomspec.core.tasks.record import Cost, Determinism, Precision, Prices, Record
from boomspec.core.tasks.search import Calibration

SeamFit = Literal["scale", "channels", "matrix", "refit"]
SEAM_FILE = "seam.safetensors"


class Seam(Record):
    """As `runners/assembly/seam.py` says. Writes the changed tensors. Inputs: `teacher`, `student`, `tokens`."""

    kind, version = "seam", 2
    numbers = ("seam.json",)
    usual_work = 10

    plan: LayerPlan
    kept: tuple[int, ...]
    writes: tuple[str, str]  # modules of a layer whose outputs are added to the stream: of attention, of the MLP
    fit: SeamFit
    reach: int | None = None  # so many layers of the student next to each seam are fitted; None: all
    ridge: float | None = None
    calibration: Calibration
    precision: Precision
    determinism: Determinism | None = None

    @property
    def seams(self) -> tuple[int, ...]:
        """Places whose layer has another owner than the one in front of it."""
        return seams(self.plan)

    @property
    def places(self) -> tuple[int, ...]:
        """Places of the student's layers whose last write is fitted."""
        found = set[int]()
        for seam in self.seams:
            way = range(seam, len(self.plan)) if self.plan[seam].owner == STUDENT else range(seam - 1, -1, -1)
            for done, place in enumerate(way):
                if self.plan[place].owner != STUDENT or done == self.reach:
                    break
                found.add(place)
        return tuple(sorted(found))

    def cost(self, prices: Prices) -> Cost:
        teacher, student, bf16 = prices.models["teacher"], prices.models["student"], self.precision == "bf16"
        width, length, sequences = 2 if bf16 else 4, self.calibration.sequence_length, self.calibration.sequences
        tokens, hidden = sequences * length, teacher.hidden
        inner = max(layer.inner for layer in teacher.layers)
        features = {"refit": inner, "matrix": hidden, "channels": 1, "scale": 0}[self.fit]
        batch = min(prices.batch_size, sequences) * length
        memory = teacher.measuring(bf16=bf16, tokens=batch)
        memory.pop("head", None)  # no head is applied
        memory["weights"] += student.parameters * width
        memory["states"] = 3 * tokens * hidden * width + (tokens * inner * width if self.fit != "scale" else 0)
        memory["sums"] = 8 * features * (3 * features + hidden) + 8 * batch * (features + hidden)
        places = len(self.places) if self.fit != "scale" else len(self.plan) - min(self.seams)
        run = len(self.plan) + teacher.depth + (student.depth if self.fit == "scale" else 0)
        forward = run * tokens * teacher.forward(length) / teacher.depth
        solved = 2 * tokens * features * (features + hidden) + features**3 + 2 * features**2 * hidden
        changed = hidden * (inner + (max(layer.queries for layer in teacher.layers) if self.fit == "scale" else 0))
        return Cost(
            flops=round(forward + (places * solved if self.fit != "scale" else 0)),
            memory=memory,
            disk=4 * places * changed,
            read=teacher.bytes + student.bytes,
            tokens=tokens,
            real_tokens=tokens,
        )
