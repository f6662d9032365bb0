"""KL on the tokens that the teacher finds likeliest; all others are one more outcome, the rest.

Without the rest the student would not learn how much probability the others have together, and the loss would be
biased (arXiv 2503.16870). With it, the gradient of the others is that of their sum.
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.divergence import Divergence
from boomspec.core.types import Count, Number

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_OF_A_NUCLEUS = 64  # tokens that are sorted at first; more where they do not have the mass


class _Truncated(Divergence):
    def likeliest(self, p_NV: "Tensor") -> "Tensor":
        """Where (bool_NV) the tokens are that stay apart."""
        raise NotImplementedError

    def divergence(self, log_p_NV: "Tensor", log_q_NV: "Tensor") -> "Tensor":
        p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
        apart_NV = self.likeliest(p_NV)
        apart_N = (p_NV * (log_p_NV - log_q_NV)).masked_fill(~apart_NV, 0.0).sum(dim=-1)
        rest_p_N, rest_q_N = (_rest(probabilities, apart_NV) for probabilities in (p_NV, q_NV))
        return apart_N + rest_p_N * (rest_p_N / rest_q_N).log()

    def slope(
        self, p_NV: "Tensor", q_NV: "Tensor", log_p_NV: "Tensor", log_q_NV: "Tensor", t: float
    ) -> "tuple[Tensor, Tensor]":
        """q * dD/dq = -p of tokens that stay apart, and -q P / Q of the others, with P, Q their probability."""
        from torch.linalg import vecdot

        apart_NV = self.likeliest(p_NV)
        rest_p_N, rest_q_N = (_rest(probabilities, apart_NV) for probabilities in (p_NV, q_NV))
        ratio_N = rest_p_N / rest_q_N
        values_N = vecdot(p_NV, log_p_NV.sub_(log_q_NV).mul_(apart_NV)) + rest_p_N * ratio_N.log()
        return values_N, p_NV.where(apart_NV, q_NV * ratio_N.unsqueeze(-1)).neg_()


class TopKKL(_Truncated):
    """`KL` of the teacher's k likeliest tokens and the rest; k of all tokens is `kl`."""

    kind, title = "top_k_kl", "top-k KL"
    description = "KL on the teacher's likeliest tokens, a fixed number of them."
    equation = "T^2 * (sum over the top k of p log(p / q) + P log(P / Q)), P, Q: probability of all others"
    source = "arXiv 2410.16215, 2503.16870"
    elsewhere = ("topk", "top_k", "topk_kl", "topk_kd")
    working, by_autograd = 6, 7

    k: Annotated[Count, Field(gt=0, description="Tokens of each position.")] = 64

    def likeliest(self, p_NV: "Tensor") -> "Tensor":
        top = p_NV.topk(min(self.k, p_NV.shape[-1]), dim=-1, sorted=False).indices
        return _marked(p_NV, top)


class TopPKL(_Truncated):
    """`KL` of the fewest tokens that have at least `mass` of the teacher's probability, and the rest."""

    kind, title = "top_p_kl", "top-p KL"
    description = "KL on the teacher's likeliest tokens, as many as have a given probability."
    equation = "T^2 * (sum over the nucleus of p log(p / q) + P log(P / Q)), P, Q: probability of all others"
    source = "arXiv 2410.16215, 2503.16870"
    elsewhere = ("topp", "top_p", "topp_kl", "nucleus_kl")
    working, by_autograd = 8, 9  # where all tokens have to be sorted; three less where the first ones are enough

    mass: Annotated[Number, Field(gt=0, le=1, description="Probability that the tokens have at least.")] = 0.9

    def likeliest(self, p_NV: "Tensor") -> "Tensor":
        return nucleus(p_NV, self.mass)


def nucleus(p_NV: "Tensor", mass: float) -> "Tensor":
    """Where (bool_NV) the fewest tokens are that have at least so much of the probability, at each of N positions."""
    vocabulary = p_NV.shape[-1]
    sorted_first = min(_FIRST_OF_A_NUCLEUS, vocabulary)
    while True:
        top = p_NV.topk(sorted_first, dim=-1)
        before_NK = top.values.cumsum(dim=-1) - top.values  # of the likelier ones
        if sorted_first == vocabulary or bool((before_NK[:, -1] >= mass).all()):
            return _marked(p_NV, top.indices, before_NK < mass)
        sorted_first = min(8 * sorted_first, vocabulary)


def _marked(p_NV: "Tensor", indices_NK: "Tensor", values_NK: "Tensor | None" = None) -> "Tensor":
    from torch import bool as boolean

    marked_NV = p_NV.new_zeros(p_NV.shape, dtype=boolean)
    return marked_NV.scatter_(-1, indices_NK, True if values_NK is None else values_NK)


def _rest(probabilities_NV: "Tensor", apart_NV: "Tensor") -> "Tensor":
    """Of all tokens that do not stay apart, at each of N positions; never 0, so that it has a logarithm."""
    from torch import finfo

    return probabilities_NV.masked_fill(apart_NV, 0.0).sum(dim=-1).clamp(min=finfo(probabilities_NV.dtype).tiny)
