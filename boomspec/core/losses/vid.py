"""Variational information distillation: the teacher's state under a Gaussian whose mean the student's state gives."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from boomspec.core.losses.pairs import Trained
from boomspec.core.losses.state_loss import StateLoss
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-5  # of a variance, as in the authors' code


class VariationalInformation(StateLoss):
    """The mean over channels of `1/2 ((y - W x)^2 / v + log v)`, with a trained variance v for each channel (eq. 5, 6).

    It is the negative log-likelihood of the teacher's state y, less a constant: it may be negative. The mean is a
    linear map W of the student's state, the identity at first; the paper's is a small convolutional network. The
    variance is softplus of what is trained, and `variance` at first.
    """

    kind, title, unit = "vid", "variational information", "nats per channel"
    reads = ("states", "teacher_states")
    description = "On the likelihood of the teacher's hidden states, given the student's."
    equation, source = "mean (log v + (y - W x)^2 / v) / 2", "arXiv 1904.05835"
    elsewhere = ("variational_information",)
    signed = True
    working, kept = 3, 3  # W x, the difference, and its quotient

    variance: Annotated[Number, Field(gt=_LEAST, description="Of each channel, at first.")] = 5.0

    def trained(self, hidden: int) -> dict[str, Trained]:
        from math import expm1, log

        return {
            "mean": Trained((hidden, hidden), "identity"),
            "spread": Trained((hidden,), log(expm1(self.variance - _LEAST))),
        }

    def formula(self, student_BTD: "Tensor", teacher_BTD: "Tensor", **trained: Any) -> "Tensor":
        """The mean over D at each of B x T positions, for one pair. `trained`: mean_DD and spread_D."""
        from torch.nn.functional import linear, softplus

        variance_D = softplus(trained["spread"]) + _LEAST
        difference_BTD = teacher_BTD.float() - linear(student_BTD, trained["mean"]).float()
        values_BTD: Tensor = (difference_BTD.square() / variance_D + variance_D.log()) / 2
        return values_BTD.mean(dim=-1)
