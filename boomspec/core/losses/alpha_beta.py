"""The alpha-beta divergence (ABKD, arXiv 2505.04560; Cichocki et al. 2011)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.divergence import Divergence
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor

_Exponent = Annotated[Number, Field(ge=0, le=2)]


class AlphaBeta(Divergence):
    """`1/(a b) sum (a/(a+b) p^(a+b) + b/(a+b) q^(a+b) - p^a q^b)`, and its limits where an exponent is 0.

    alpha 1, beta 0 is KL; alpha 0, beta 1 reverse KL; both 1/2 is four times the squared Hellinger distance.
    """

    kind, title, unit = "alpha_beta", "alpha-beta divergence", "divergence"
    description = "Between KL (alpha 1, beta 0) and reverse KL (alpha 0, beta 1)."
    equation = "T^2 * 1/(a b) sum (a/(a+b) p^(a+b) + b/(a+b) q^(a+b) - p^a q^b)"
    source = "arXiv 2505.04560"
    elsewhere = ("ab_div", "abkd", "ab", "ab_divergence")
    working, by_autograd = 5, 8

    alpha: Annotated[_Exponent, Field(description="Exponent of the teacher: larger minds large differences more.")] = (
        0.2
    )
    beta: Annotated[_Exponent, Field(description="Exponent of the student: larger minds the student's own modes.")] = (
        0.7
    )

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        a, b = self.alpha, self.beta
        if a == b == 0:
            return (log_p_NV - log_q_NV).square().sum(dim=-1) / 2
        p_NV, q_NV = ((log_NV * (a + b)).exp() for log_NV in (log_p_NV, log_q_NV))
        if b == 0:
            return (a * p_NV * (log_p_NV - log_q_NV) - p_NV + q_NV).sum(dim=-1) / a**2
        if a == 0:
            return (b * q_NV * (log_q_NV - log_p_NV) - q_NV + p_NV).sum(dim=-1) / b**2
        both_NV = (a * log_p_NV + b * log_q_NV).exp()
        return (a * p_NV + b * q_NV - (a + b) * both_NV).sum(dim=-1) / (a * b * (a + b))

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor]":
        """q * dD/dq = (q^(a+b) - p^a q^b) / a; where a is 0, q^b (log q - log p)."""
        a, b = self.alpha, self.beta
        if a == 0:
            return self.divergence(log_p_NV, log_q_NV), (log_q_NV - log_p_NV).mul_((b * log_q_NV).exp_())
        if b == 0:
            values_N = self.divergence(log_p_NV, log_q_NV)
            return values_N, log_q_NV.mul_(a).exp_().sub_(log_p_NV.mul_(a).exp_()).div_(a)
        both_NV = (a * log_p_NV).add_(log_q_NV, alpha=b).exp_()
        teacher_NV, student_NV = log_p_NV.mul_(a + b).exp_(), log_q_NV.mul_(a + b).exp_()
        p_N, q_N, both_N = (powers_NV.sum(dim=-1) for powers_NV in (teacher_NV, student_NV, both_NV))
        values_N = (a * p_N + b * q_N - (a + b) * both_N) / (a * b * (a + b))
        return values_N, student_NV.sub_(both_NV).div_(a)
