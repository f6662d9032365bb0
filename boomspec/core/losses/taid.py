"""KL to a teacher that comes nearer while the student learns (TAID, arXiv 2501.16937)."""

import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from boomspec.core.losses.divergence import Divergence
from boomspec.core.losses.kl import kl_divergence
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor

_Share = Annotated[Number, Field(ge=0, le=1)]
_RATE, _MOMENTUM = 5e-4, 0.99
_LEAST = 1e-15  # of the loss that a change is divided by; as in the published code


class TAID(Divergence):
    """`T^2 * KL(p_t, q)` with `p_t = softmax((1 - t) z_q + t z_p)`; the student's logits in it have no gradient.

    t rises from `start` to `end`. Adaptive (the paper's algorithm): never behind the straight line over the steps,
    and before it by `alpha * sigmoid(m) * (1 - t)` a step, with m the running mean (of decay `beta`) of how much
    smaller the loss became, relative to what it was. So t is a function of the losses so far.
    """

    kind, title = "taid", "TAID"
    description = "KL to a mixture of both logits that moves to the teacher."
    reads = ("logits", "teacher_logits", "t")
    equation, source = "T^2 * KL(p_t, q), p_t = softmax((1 - t) z_q + t z_p), t scheduled", "arXiv 2501.16937"
    elsewhere = ("temporally_adaptive", "interpolated_kl")
    working, by_autograd = 7, 6

    start: Annotated[_Share, Field(description="t at the first step.")] = 0.4
    end: Annotated[_Share, Field(description="The largest t.")] = 1.0
    schedule: Annotated[
        Literal["adaptive", "linear"], Field(description="adaptive: t rises faster while the loss falls.")
    ] = "adaptive"
    alpha: Annotated[Number, Field(ge=0, description="Largest rise of t in a step beside the line (adaptive).")] = _RATE
    beta: Annotated[
        Number, Field(ge=0, lt=1, description="Decay of the running mean of the loss's changes (adaptive).")
    ] = _MOMENTUM

    def model_post_init(self, _: object) -> None:
        if self.end < self.start:
            raise ValueError(f"t rises from start to end, but end ({self.end:g}) is below start ({self.start:g})")
        if self.schedule == "linear" and (self.alpha, self.beta) != (_RATE, _MOMENTUM):
            raise ValueError("alpha and beta go with schedule: adaptive")

    def formula(self, logits_NV: "Tensor", teacher_logits_NV: "Tensor", t: float) -> "Tensor":  # type: ignore[override]  # t, too
        log_p_NV, log_q_NV = self.log_softmax(teacher_logits_NV), self.log_softmax(logits_NV)
        return self.temperature**2 * kl_divergence(_between(log_p_NV, log_q_NV.detach(), t), log_q_NV)

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor]":
        """q * dD/dq = -p_t."""
        log_between_NV = _between(log_p_NV, log_q_NV, t)
        between_NV = log_between_NV.exp()
        return kl_divergence(log_between_NV, log_q_NV, p_NV=between_NV), between_NV.neg_()

    def course(self, steps: int) -> Generator[float, float, None]:
        t, change, before, step = self.start, 0.0, math.nan, 0
        while True:
            value = yield t
            step += 1
            line = self.start + (self.end - self.start) * step / steps
            rise = 0.0
            if self.schedule == "adaptive" and step > 1:
                change = self.beta * change + (1 - self.beta) * (before - value) / (before + _LEAST)
                rise = self.alpha * _sigmoid(change) * (1 - t)
            before, t = value, min(self.end, max(line, t + rise))


def _between(log_p_NV: "Tensor", log_q_NV: "Tensor", t: float) -> "Tensor":
    """log softmax((1 - t) z_q + t z_p): log-probabilities are logits, too."""
    return log_q_NV.lerp(log_p_NV, t).log_softmax(dim=-1)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
