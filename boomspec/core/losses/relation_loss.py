"""The base class of losses on relations between the positions of one sequence.

The papers relate the samples of a batch, each of them one vector. Here a sample is a position, and only positions of
one sequence are related: so a value belongs to a sequence, and does not depend on how a batch is cut into micro
batches. In the mean over the positions that have a label a sequence counts with all of its own. Sequences with fewer
than two such positions have no relation, and count as 0.

Relations cost the square of the positions, some the cube: of each sequence `positions` of those that have a label are
taken, as evenly spaced as they come.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from boomspec.core.losses.pairs import PairShape
from boomspec.core.losses.state_loss import StateLoss

if TYPE_CHECKING:
    from torch import Tensor

_AT_MOST = Field(ge=2, description="At most so many positions of a sequence, evenly spaced.")
Positions = Annotated[int, _AT_MOST]


class RelationLoss(StateLoss):
    """The mean over pairs, and over sequences by their labelled positions."""

    power: ClassVar[int] = 2  # its working tensors are of so many positions
    working: ClassVar[int] = 8  # such tensors at once, of student and teacher, with their gradients
    kept: ClassVar[int] = 1  # the gradient

    positions: Positions = 256

    def formula(self, student_PD: "Tensor", teacher_PD: "Tensor", **trained: "Tensor") -> "Tensor":
        """The loss of one sequence, one number, from P of its positions, in fp32."""
        raise NotImplementedError

    def taken(self, shape: PairShape) -> int:
        """Positions of a sequence that are related."""
        return min(self.positions, shape.length)

    def products(self) -> int:
        """Products of all positions with all positions, through their states, that student and teacher take together.

        Each is of two models, and has a gradient for both of its sides in the student's.
        """
        return 1

    def pair_flops(self, shape: PairShape) -> int:
        taken = self.taken(shape)
        # Of a position: 2 P D for the student, as much for the teacher, twice that for the student's gradients.
        return 8 * self.products() * taken * taken * shape.hidden // shape.length

    def block_bytes(self, shape: PairShape, tile: int) -> int:
        taken = self.taken(shape)
        related: int = taken**self.power
        return 4 * (self.working * related + 6 * taken * shape.hidden)
