"""The KL divergence of the student's next-token distribution from the teacher's (arXiv 1503.02531)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.closed_form import ClosedForm, Softmax
from boomspec.core.losses.loss import Loss, Weight
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor


class KL(Loss):
    """`T^2 * KL(teacher || student)` of the next-token distributions at temperature T, in nats per token."""

    kind, title, unit = "kl", "KL divergence", "nats per token"
    reads = ("logits", "teacher_logits")
    description = "On the teacher's distribution."
    usual = True
    working = 3  # both softmaxes and the difference
    kept = 0
    over_bins = over_samples = True

    weight: Weight = 0.1
    temperature: Annotated[Number, Field(gt=0, description="Both logits are divided by it before the softmax.")] = 1.0

    def formula(self, logits_NV: "Tensor", teacher_logits_NV: "Tensor") -> "Tensor":
        """T^2 * KL(teacher || student) of the softmaxes at temperature T, at each of N positions."""
        from torch.nn.functional import log_softmax

        student_NV, teacher_NV = (
            # Dividing by 1 would only copy.
            log_softmax(logits.float() if self.temperature == 1 else logits.float() / self.temperature, dim=-1)
            for logits in (logits_NV, teacher_logits_NV)
        )
        return self.temperature**2 * kl_divergence(teacher_NV, student_NV)

    def closed_form(self, student: Softmax, teacher: Softmax | None, labels_N: "Tensor") -> ClosedForm:
        """With p, q of teacher and student: sum p (log p - log q) = sum p (z_p - z_q) / T + log-sums; T (q - p)."""
        from torch.linalg import vecdot

        assert teacher is not None
        (q_NV, log_q_sum_N), (p_NV, log_p_sum_N) = student.at(self.temperature), teacher.at(self.temperature)
        mean_N = vecdot(p_NV, teacher.logits_NV - student.logits_NV) / self.temperature
        values_N = self.temperature**2 * (mean_N + (log_q_sum_N - log_p_sum_N))
        return ClosedForm(values_N, ((self.temperature, q_NV), (-self.temperature, p_NV)))


def kl_divergence(log_p_NV: "Tensor", log_q_NV: "Tensor", *, p_NV: "Tensor | None" = None) -> "Tensor":
    """KL(p || q) = sum p (log p - log q), in nats, at each of N positions. `p_NV`, where at hand, spares a pass."""
    difference_NV = log_p_NV - log_q_NV
    if p_NV is None:
        return (log_p_NV.exp() * difference_NV).sum(dim=-1)
    from torch.linalg import vecdot

    divergence_N: Tensor = vecdot(p_NV, difference_NV)
    return divergence_N
