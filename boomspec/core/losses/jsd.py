"""The generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.divergence import Divergence, mixture
from boomspec.core.losses.kl import kl_divergence
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor


class JSD(Divergence):
    """`beta * KL(p, m) + (1 - beta) * KL(q, m)` with the mixture `m = beta * p + (1 - beta) * q`.

    beta 0 and 1 are the limits of D / beta and D / (1 - beta), as in GKD's own code: KL and reverse KL.
    """

    kind, title = "jsd", "Jensen-Shannon divergence"
    description = "Between KL (beta 0) and reverse KL (beta 1)."
    equation, source = "T^2 * (b KL(p, m) + (1 - b) KL(q, m)), m = b p + (1 - b) q", "arXiv 2306.13649"
    elsewhere = ("gkd", "js", "generalized_jsd", "generalised_jsd", "jensen_shannon", "liger_jsd")
    working, by_autograd = 6, 9
    over_bins = True

    beta: Annotated[Number, Field(ge=0, le=1, description="Share of the teacher in the mixture.")] = 0.5

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        if self.beta in (0, 1):
            return kl_divergence(log_q_NV, log_p_NV) if self.beta else kl_divergence(log_p_NV, log_q_NV)
        log_m_NV = mixture(log_p_NV, log_q_NV, self.beta)
        of_teacher_N = kl_divergence(log_p_NV, log_m_NV)
        return self.beta * of_teacher_N + (1 - self.beta) * kl_divergence(log_q_NV, log_m_NV)

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor]":
        """q * dD/dq = (1 - beta) q (log q - log m)."""
        from torch.linalg import vecdot

        if self.beta == 0:
            return kl_divergence(log_p_NV, log_q_NV, p_NV=p_NV), -p_NV
        if self.beta == 1:
            w_NV = log_q_NV.sub_(log_p_NV).mul_(q_NV)
            return w_NV.sum(dim=-1), w_NV
        log_m_NV = mixture(log_p_NV, log_q_NV, self.beta)
        w_NV = log_q_NV.sub_(log_m_NV).mul_(q_NV).mul_(1 - self.beta)
        return self.beta * vecdot(p_NV, log_p_NV.sub_(log_m_NV)) + w_NV.sum(dim=-1), w_NV
