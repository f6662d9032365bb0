"""The KL divergence of the student's next-token distribution from the teacher's (arXiv 1503.02531)."""

from typing import TYPE_CHECKING

from boomspec.core.losses.closed_form import ClosedForm, Softmax
from boomspec.core.losses.divergence import Divergence
from boomspec.core.losses.weight import Weight

if TYPE_CHECKING:
    from torch import Tensor


class KL(Divergence):
    """`T^2 * KL(teacher || student)` of the next-token distributions at temperature T, in nats per token."""

    kind, title = "kl", "KL divergence"
    description = "On the teacher's distribution."
    usual = True
    equation, source = "T^2 * sum p log(p / q)", "arXiv 1503.02531"
    elsewhere = ("forward_kl", "fkl", "kd", "kld", "kl_div", "soft_loss", "vanilla_kd")
    working, by_autograd = 3, 5  # the teacher's softmax, the difference, a product
    over_bins = over_samples = True

    weight: Weight = 0.1

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        return kl_divergence(log_p_NV, log_q_NV)

    def closed_form(
        self, student: Softmax, teacher: Softmax | None, labels_N: "Tensor", t: float = 0.0
    ) -> ClosedForm | None:
        """With p, q of teacher and student: sum p (log p - log q) = sum p (z_p - z_q) / T + log-sums; T (q - p)."""
        from torch.linalg import vecdot

        if self.standardise:
            return None
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
