"""The KL divergences to a mixture of student and teacher (DistiLLM, arXiv 2402.03898)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.divergence import Divergence, mixture
from boomspec.core.losses.kl import kl_divergence
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor

_Alpha = Annotated[Number, Field(ge=0, lt=1, description="Share of the first distribution in the mixture.")]


class SkewKL(Divergence):
    """`KL(p, alpha * p + (1 - alpha) * q)`: finite where the student gives a token no probability."""

    kind, title = "skew_kl", "skew KL"
    description = "KL to a mixture with a little of the teacher."
    equation, source = "T^2 * KL(p, a p + (1 - a) q)", "arXiv 2402.03898"
    elsewhere = ("skl", "sfkl", "skew_forward_kl", "distillm")
    working, by_autograd = 6, 8
    over_bins = True

    alpha: _Alpha = 0.1

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        return kl_divergence(log_p_NV, mixture(log_p_NV, log_q_NV, self.alpha))

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor]":
        """q * dD/dq = -(1 - alpha) p q / m."""
        log_m_NV = mixture(log_p_NV, log_q_NV, self.alpha)
        values_N = kl_divergence(log_p_NV, log_m_NV, p_NV=p_NV)
        return values_N, (log_q_NV - log_m_NV).exp_().mul_(p_NV).mul_(self.alpha - 1)


class SkewReverseKL(Divergence):
    """`KL(q, (1 - alpha) * p + alpha * q)`."""

    kind, title = "skew_reverse_kl", "skew reverse KL"
    description = "Reverse KL to a mixture with a little of the student."
    equation, source = "T^2 * KL(q, (1 - a) p + a q)", "arXiv 2402.03898"
    elsewhere = ("srkl", "skew_rkl")
    working, by_autograd = 6, 9
    over_bins = True

    alpha: _Alpha = 0.1

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        return kl_divergence(log_q_NV, mixture(log_p_NV, log_q_NV, 1 - self.alpha))

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor]":
        """q * dD/dq = q (log q - log m) + q - alpha q^2 / m."""
        from torch.linalg import vecdot

        log_q_NV.sub_(mixture(log_p_NV, log_q_NV, 1 - self.alpha))  # log(q / m)
        values_N = vecdot(q_NV, log_q_NV)
        return values_N, log_q_NV.sub_(log_q_NV.exp().mul_(self.alpha)).mul_(q_NV)
