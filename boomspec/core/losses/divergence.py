"""The base of losses that compare the next-token distributions of student and teacher.

A divergence D(p, q) of the teacher's distribution p and the student's q is a function of their logarithms. Where its
derivative is known, the gradient with respect to the logits z = T * (log q + constant) follows, for any D:

    w_i = q_i * dD/dq_i        T * dD/dz_i = w_i - q_i * sum w

Shapes: N positions of any sequence, V vocabulary.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from boomspec.core.losses.closed_form import ClosedForm, Softmax
from boomspec.core.losses.loss import Loss, Read
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor

Temperature = Annotated[Number, Field(gt=0, description="Both logits are divided by it before the softmax.")]
# False is the same as nothing, which is not written into a record.
Standardise = Annotated[
    bool | None,
    AfterValidator(lambda on: on or None),
    Field(description="Mean 0 and deviation 1 for the logits of each position before the temperature (2403.01427)."),
]
_LEAST_DEVIATION = 1e-7  # as in the code of arXiv 2403.01427


class Divergence(Loss):
    """`T^2 * D(p, q)` of the next-token distributions at temperature T, at each position."""

    unit = "nats per token"
    reads: ClassVar[tuple[Read, ...]] = ("logits", "teacher_logits")
    kept = 0
    by_autograd: ClassVar[int]  # tensors at the largest moment where autograd takes the gradient of the formula

    temperature: Temperature = 1.0
    standardise: Standardise = None

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        """D(p, q) at each of N positions."""
        raise NotImplementedError  # not abstract: DKD has a formula of its own in its place

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor] | None":
        """D(p, q) at each of N positions, and w_NV = q * dD/dq, up to a multiple of q. None: it has no closed form."""
        return None

    def formula(self, logits_NV: "Tensor", teacher_logits_NV: "Tensor") -> "Tensor":
        """T^2 * D(p, q) of the softmaxes at temperature T, at each of N positions."""
        divergence_N = self.divergence(self.log_softmax(teacher_logits_NV), self.log_softmax(logits_NV))
        return self.temperature**2 * divergence_N

    def log_softmax(self, logits_NV: "Tensor") -> "Tensor":
        """The logarithms of the softmax at temperature T, in fp32, of logits that are standardised where asked for."""
        from torch.nn.functional import log_softmax

        logits_NV = logits_NV.float()
        if self.standardise:
            centred_NV = logits_NV - logits_NV.mean(dim=-1, keepdim=True)
            logits_NV = centred_NV / (logits_NV.std(dim=-1, correction=0, keepdim=True) + _LEAST_DEVIATION)
        # Dividing by 1 would only copy.
        return log_softmax(logits_NV if self.temperature == 1 else logits_NV / self.temperature, dim=-1)

    def closed_form(
        self, student: Softmax, teacher: Softmax | None, labels_N: "Tensor", t: float = 0.0
    ) -> ClosedForm | None:
        if self.standardise:
            return None
        assert teacher is not None
        p_NV, q_NV = teacher.at(self.temperature)[0], student.at(self.temperature)[0]
        found = self.slope(p_NV, q_NV, teacher.logs(self.temperature), student.logs(self.temperature), t)
        if found is None:
            return None
        values_N, w_NV = found
        gradient_NV = w_NV.addcmul_(q_NV, w_NV.sum(dim=-1, keepdim=True), value=-1.0)
        return ClosedForm(self.temperature**2 * values_N, ((self.temperature, gradient_NV),))

    def not_from_stored(self, how: Literal["top_k", "samples"]) -> str | None:
        return (
            "it standardises all logits, and only some are stored" if self.standardise else super().not_from_stored(how)
        )

    def tensors(self) -> tuple[int, int]:
        if not self.standardise:
            return self.working, self.kept
        return self.by_autograd + 1, self.by_autograd - 2  # one more, of standardised logits


def mixture(log_p_NV: "Tensor", log_q_NV: "Tensor", share: float) -> "Tensor":
    """log(share * p + (1 - share) * q); a share of 0 or 1 is q or p itself."""
    from math import log

    if share in (0, 1):
        return log_p_NV if share else log_q_NV
    from torch import logaddexp

    return logaddexp(log_p_NV + log(share), log_q_NV + log(1 - share))
