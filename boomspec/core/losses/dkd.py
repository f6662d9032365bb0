"""KL taken apart at the token that follows (decoupled distillation, arXiv 2203.08679)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.closed_form import ClosedForm, Softmax
from boomspec.core.losses.divergence import Divergence
from boomspec.core.losses.kl import kl_divergence
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor


class DKD(Divergence):
    """`T^2 * (alpha * TCKD + beta * NCKD)`.

    TCKD is the KL of the two probabilities "the token that follows" and "any other one"; NCKD the KL of the
    distributions over the other tokens. KL itself is TCKD + (1 - p(y)) NCKD.
    """

    kind, title = "dkd", "decoupled KL"
    reads = ("logits", "teacher_logits", "labels")
    description = "KL of the token that follows and of the others, weighed apart."
    equation = "T^2 * (a KL((p(y), 1 - p(y)), (q(y), 1 - q(y))) + b KL(p / (1 - p(y)), q / (1 - q(y)) without y))"
    source = "arXiv 2203.08679"
    elsewhere = ("decoupled_kd", "decoupled", "nckd", "tckd")
    working, kept, by_autograd = 8, 5, 7

    alpha: Annotated[Number, Field(ge=0, description="Weight of the token that follows.")] = 1.0
    beta: Annotated[Number, Field(gt=0, description="Weight of the other tokens.")] = 8.0

    def closed_form(
        self, student: Softmax, teacher: Softmax | None, labels_N: "Tensor", t: float = 0.0
    ) -> ClosedForm | None:
        return None  # it reads the label, too

    def formula(  # type: ignore[override]  # it reads the label, too
        self, logits_NV: "Tensor", teacher_logits_NV: "Tensor", labels_N: "Tensor"
    ) -> "Tensor":
        """T^2 * (alpha * TCKD + beta * NCKD) at each of N positions."""
        from torch import stack

        at_N1, split = labels_N.unsqueeze(-1), []
        for logits in (teacher_logits_NV, logits_NV):
            log_NV = self.log_softmax(logits)
            others_NV = log_NV.scatter(-1, at_N1, -float("inf"))
            rest_N1 = others_NV.logsumexp(dim=-1, keepdim=True)
            both_N2 = stack((log_NV.gather(-1, at_N1), rest_N1), dim=-1).squeeze(1)
            # At the label both are minus infinity; a finite number there has no probability and no difference.
            split.append((both_N2, (others_NV - rest_N1).scatter(-1, at_N1, -1e4)))
        (p_both_N2, p_NV), (q_both_N2, q_NV) = split
        target_N, others_N = kl_divergence(p_both_N2, q_both_N2), kl_divergence(p_NV, q_NV)
        return self.temperature**2 * (self.alpha * target_N + self.beta * others_N)
