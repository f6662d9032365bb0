"""The total variation distance of the next-token distributions (f-DISTILL, arXiv 2307.15190)."""

from typing import TYPE_CHECKING

from boomspec.core.losses.divergence import Divergence

if TYPE_CHECKING:
    from torch import Tensor


class TVD(Divergence):
    """`1/2 sum |p - q|`: the largest difference of the probabilities that the two give to any set of tokens."""

    kind, title, unit = "tvd", "total variation", "probability"
    description = "On the teacher's probabilities."
    equation, source = "T^2 * 1/2 sum |p - q|", "arXiv 2307.15190"
    elsewhere = ("total_variation", "tv", "total_variation_distance")
    working, by_autograd = 5, 5
    over_bins = True

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        return (log_p_NV.exp() - log_q_NV.exp()).abs().sum(dim=-1) / 2

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor]":
        """q * dD/dq = 1/2 q sign(q - p)."""
        difference_NV = q_NV - p_NV
        values_N = difference_NV.abs().sum(dim=-1) / 2
        return values_N, difference_NV.sign_().mul_(q_NV).div_(2)
