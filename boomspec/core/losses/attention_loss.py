"""The base class of losses on the attention of layers: on scores, or relations, between positions of one sequence.

What is captured are the queries, keys and values that the model's own attention function is given (after rotary), and
its frame: mask and scaling. A relation of two of them is a score for each pair of positions: the products of the row's
vector and the column's, times a scale. Scores exist for a few heads and rows of one sequence at a time: the runners
call the formula block by block, and take the gradient of each in the forward pass.

One mask for all: a row is a position that has a label; its columns are those that the model's attention lets it see, of
student and teacher both. So a value belongs to a position, as that of any other loss.
Shapes: H heads, R rows, T columns (positions of one sequence).
"""

from typing import TYPE_CHECKING, ClassVar

from boomspec.core.losses.pairs import PairLoss, PairShape

if TYPE_CHECKING:
    from torch import Tensor

Relation = tuple[str, str]  # of what the rows are, and the columns
QUERIES_KEYS = "queries", "keys"


class AttentionLoss(PairLoss):
    """The mean over pairs, the sum over relations, and of each the mean over heads."""

    relations: ClassVar[tuple[Relation, ...]]
    working: ClassVar[int] = 8  # of a score in a block: both scores, what the formula makes of them, gradients
    kept: ClassVar[int] = 0

    def heads(self, relation: Relation) -> int | None:
        """Into how many heads both sides of a relation are cut; None: their own."""
        return None

    def scores_formula(self, scores_HRT: "Tensor", teacher_HRT: "Tensor", allowed_RT: "Tensor") -> "Tensor":
        """The loss of each head and row, values_HR. Scores are in fp32, and scaled; `allowed_RT`: columns of a row."""
        raise NotImplementedError

    def pair_flops(self, shape: PairShape) -> int:
        # Scores of student and teacher, and two gradients of the student's.
        widths = {"queries": shape.queries, "keys": shape.keys, "values": shape.keys}
        return sum(8 * shape.length * widths[rows] for rows, _ in self.relations)

    def kept_bytes(self, shape: PairShape) -> int:
        # The gradients, in fp32; what they are of, the student's attention keeps.
        widths = {"queries": shape.queries, "keys": shape.keys, "values": shape.keys}
        return sum(4 * (widths[rows] + widths[columns]) for rows, columns in self.relations)

    def block_bytes(self, shape: PairShape, tile: int) -> int:
        return 4 * self.working * min(max(tile, shape.length), shape.heads * shape.length**2)
