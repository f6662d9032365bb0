"""KL and reverse KL, weighed by where the student differs from the teacher (AKL, arXiv 2404.02657)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.divergence import Divergence
from boomspec.core.losses.kl import kl_divergence
from boomspec.core.losses.truncated import nucleus
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor


class AdaptiveKL(Divergence):
    """`h * KL(p, q) + (1 - h) * KL(q, p)`, with h the share of `sum |p - q|` that lies in the teacher's head.

    The head of a position are the fewest tokens that have at least `mu` of the teacher's probability (the published
    code leaves out the last of them). h has no gradient.
    """

    kind, title = "adaptive_kl", "adaptive KL"
    description = "KL where the head differs, reverse KL where the tail does."
    equation = "T^2 * (h KL(p, q) + (1 - h) KL(q, p)), h = gap in the head / gap in all, gap = sum |p - q|"
    source = "arXiv 2404.02657"
    elsewhere = ("akl", "adaptive_kld")
    working, by_autograd = 9, 10  # where all tokens have to be sorted; three less where the first ones are enough

    mu: Annotated[Number, Field(gt=0, lt=1, description="Probability that the head has at least.")] = 0.5

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        head_N = self.head(log_p_NV.exp(), log_q_NV.detach().exp())
        return head_N * kl_divergence(log_p_NV, log_q_NV) + (1 - head_N) * kl_divergence(log_q_NV, log_p_NV)

    def head(self, p_NV: "Tensor", q_NV: "Tensor") -> "Tensor":
        """The share of the gap that lies in the head, at each of N positions; 1/2 where there is no gap."""
        gap_NV = (p_NV - q_NV).abs_()
        all_N = gap_NV.sum(dim=-1)
        in_head_N = gap_NV.mul_(nucleus(p_NV, self.mu)).sum(dim=-1)
        return (in_head_N / all_N).where(all_N > 0, 0.5)

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor]":
        """q * dD/dq = -h p + (1 - h) q (log q - log p) + (1 - h) q."""
        from torch.linalg import vecdot

        head_N = self.head(p_NV, q_NV)
        difference_NV = log_q_NV.sub_(log_p_NV)
        forward_N, reverse_N = -vecdot(p_NV, difference_NV), vecdot(q_NV, difference_NV)
        w_NV = difference_NV.mul_(q_NV).mul_(1 - head_N.unsqueeze(-1))
        w_NV.addcmul_(p_NV, head_N.unsqueeze(-1), value=-1.0)
        return head_N * forward_N + (1 - head_N) * reverse_N, w_NV
