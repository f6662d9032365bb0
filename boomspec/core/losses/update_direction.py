"""The direction in which a student's layer changes its state, against that of the teacher's block."""

from typing import TYPE_CHECKING

from boomspec.core.losses.hidden_cosine import cosine
from boomspec.core.losses.pairs import PairLoss, Projection

if TYPE_CHECKING:
    from torch import Tensor


class UpdateDirection(PairLoss):
    """`1 - cos(output - input)` of student layer i, against that of the teacher's block i: its dynamics, not its state.

    Outputs are raw, never after the final norm: what is added to the residual stream. A layer may start from another
    state than its block and still be aligned: a patched model adds what the blocks add.
    """

    kind, title, unit = "update_direction", "update direction", "1 - cosine"
    reads = ("inputs", "states", "teacher_inputs", "teacher_states")
    description = "On what a layer adds to its input, against what the teacher's block adds."
    equation, source = "1 - cos(x_out - x_in, y_out - y_in)", "-"
    elsewhere = ("feature_dynamics", "delta_cosine")
    working, kept = 3, 3  # both differences, and the teacher's normalised

    projection: Projection = None

    def formula(
        self, student_in_BTD: "Tensor", student_BTD: "Tensor", teacher_in_BTD: "Tensor", teacher_BTD: "Tensor"
    ) -> "Tensor":
        """1 - cos of the two differences at each of B x T positions, for one pair."""
        return 1 - cosine(student_BTD.float() - student_in_BTD.float(), teacher_BTD.float() - teacher_in_BTD.float())
