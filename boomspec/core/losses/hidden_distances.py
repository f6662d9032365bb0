"""Distances of the student's hidden states from the teacher's: in all, by their sizes, or by their magnitudes alone."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.pairs import Projection
from boomspec.core.losses.state_loss import StateLoss
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor

_SHORTEST = 1e-8  # a norm below it counts as it: of a state of zeros there is no logarithm, and no direction


class HiddenMSE(StateLoss):
    """The mean square of the difference of two states over their channels (FitNets, arXiv 1412.6550; PKD, 1908.09355).

    Channels of large magnitude outweigh all others.
    """

    kind, title, unit = "hidden_mse", "hidden MSE", "squared difference"
    reads = ("states", "teacher_states")
    description = "On the teacher's hidden states: the mean squared difference."
    equation, source = "mean (x - y)^2", "arXiv 1412.6550, 1908.09355"
    elsewhere = ("hs_mse", "mse", "pkd", "fitnet")
    working, kept = 1, 1  # the difference

    projection: Projection = None

    def formula(self, student_BTD: "Tensor", teacher_BTD: "Tensor") -> "Tensor":
        """mean over D of (x - y)^2 at each of B x T positions, for one pair."""
        return (student_BTD.float() - teacher_BTD.float()).square().mean(dim=-1)


class HiddenNMSE(StateLoss):
    """`|x - y|^2 / |y|^2` of student state x and teacher state y: 0 where they are equal, 1 for a student of zeros.

    It is the normalised MSE of blockwise search and distillation (Puzzle, arXiv 2411.19146), here for each position.
    """

    kind, title, unit = "hidden_nmse", "normalised hidden MSE", "share of the teacher's square"
    reads = ("states", "teacher_states")
    description = "On the teacher's hidden states: the squared difference over the square of the teacher's state."
    equation, source = "|x - y|^2 / |y|^2", "arXiv 2411.19146"
    elsewhere = ("nmse", "normalised_mse", "normalized_mse")
    working, kept = 1, 1  # the difference

    projection: Projection = None

    def formula(self, student_BTD: "Tensor", teacher_BTD: "Tensor") -> "Tensor":
        """|x - y|^2 / |y|^2 at each of B x T positions, for one pair."""
        teacher_BTD = teacher_BTD.float()
        squares_BT = teacher_BTD.square().sum(dim=-1).clamp(min=_SHORTEST**2)
        return (student_BTD.float() - teacher_BTD).square().sum(dim=-1) / squares_BT


class HiddenSmoothL1(StateLoss):
    """The mean over channels of `d^2 / (2 beta)` where |d| < beta, else `|d| - beta / 2`, with d = x - y (1504.08083).

    Large differences count by their size, not by its square.
    """

    kind, title, unit = "hidden_smooth_l1", "hidden smooth L1", "difference"
    reads = ("states", "teacher_states")
    description = "On the teacher's hidden states: squared for small differences, linear for large ones."
    equation, source = "d^2 / (2 beta) where |d| < beta, else |d| - beta / 2", "arXiv 1504.08083"
    elsewhere = ("smooth_l1", "hs_smooth_l1", "huber")
    working, kept = 1, 1  # the teacher's state in fp32

    beta: Annotated[Number, Field(gt=0, description="The difference where square and linear part meet.")] = 1.0
    projection: Projection = None

    def formula(self, student_BTD: "Tensor", teacher_BTD: "Tensor") -> "Tensor":
        """The mean over D at each of B x T positions, for one pair."""
        from torch.nn.functional import smooth_l1_loss

        return smooth_l1_loss(student_BTD.float(), teacher_BTD.float(), reduction="none", beta=self.beta).mean(dim=-1)


class LogNorm(StateLoss):
    """`(log |x| - log |y|)^2`: the magnitudes of student state x and teacher state y, whatever their directions.

    With `hidden_cosine`, which sees directions alone, it aligns whole states without giving large ones more weight.
    """

    kind, title, unit = "log_norm", "log-norm difference", "squared nats"
    reads = ("states", "teacher_states")
    description = "On the magnitudes of the teacher's hidden states; with hidden_cosine: direction and magnitude."
    equation, source = "(log |x| - log |y|)^2", "-"
    elsewhere = ("norm", "magnitude")
    working, kept = 1, 0

    projection: Projection = None

    def formula(self, student_BTD: "Tensor", teacher_BTD: "Tensor") -> "Tensor":
        """(log |x| - log |y|)^2 at each of B x T positions, for one pair."""
        from torch.linalg import vector_norm

        norms = (
            vector_norm(states_BTD.float(), dim=-1).clamp(min=_SHORTEST) for states_BTD in (student_BTD, teacher_BTD)
        )
        student_BT, teacher_BT = (norms_BT.log() for norms_BT in norms)
        difference_BT: Tensor = student_BT - teacher_BT
        return difference_BT.square()
