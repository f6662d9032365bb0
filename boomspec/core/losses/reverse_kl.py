"""The KL divergence of the teacher's next-token distribution from the student's (MiniLLM, arXiv 2306.08543)."""

from typing import TYPE_CHECKING

from boomspec.core.losses.divergence import Divergence
from boomspec.core.losses.kl import kl_divergence

if TYPE_CHECKING:
    from torch import Tensor


class ReverseKL(Divergence):
    """`T^2 * KL(student || teacher)`: it forgives a student that leaves out some of what the teacher says."""

    kind, title = "reverse_kl", "reverse KL"
    description = "KL with student and teacher exchanged."
    equation, source = "T^2 * sum q log(q / p)", "arXiv 2306.08543"
    elsewhere = ("rkl", "rev_kl", "minillm")
    working, by_autograd = 4, 5
    over_bins = True

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        return kl_divergence(log_q_NV, log_p_NV)

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor]":
        """q * dD/dq = q (log q - log p) + q."""
        w_NV = log_q_NV.sub_(log_p_NV).mul_(q_NV)
        return w_NV.sum(dim=-1), w_NV
