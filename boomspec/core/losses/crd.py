"""Contrastive representation distillation: which of a sequence's positions a state of the teacher belongs to."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.pairs import PairShape, Trained
from boomspec.core.losses.relation_loss import RelationLoss
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor


class CRD(RelationLoss):
    """Contrastive distillation (arXiv 1910.10699, eq. 17 to 19): -log h of the equal position, -log(1 - h) of all
    others.

    h(x, y) = e^s / (e^s + N / M), where s is the product of the embeddings of x and y, of length 1, over the
    temperature. The embeddings are trained linear maps of student and teacher. The paper draws N negatives from a
    memory of all M samples of the data; here the negatives of a position are the other P - 1 of its sequence, and M is
    P. The mean is over positions.
    """

    kind, title, unit = "crd", "contrastive representation", "nats per position"
    reads = ("states", "teacher_states")
    description = "On telling the teacher's hidden state of a position from those of others in the sequence."
    equation, source = "-log h(x, y) - sum over others log(1 - h(x, y'))", "arXiv 1910.10699"
    elsewhere = ("contrastive",)

    temperature: Annotated[Number, Field(gt=0, description="The products of embeddings are divided by it.")] = 0.07
    size: Annotated[int, Field(gt=0, description="Of the embeddings.")] = 128

    def trained(self, hidden: int) -> dict[str, Trained]:
        heads = {"student_weight", "teacher_weight"}
        biases = {"student_bias", "teacher_bias"}
        return {
            **{name: Trained((self.size, hidden), "uniform") for name in sorted(heads)},
            **{name: Trained((self.size,), 0.0) for name in sorted(biases)},
        }

    def formula(self, student_PD: "Tensor", teacher_PD: "Tensor", **trained: "Tensor") -> "Tensor":
        """One number: the mean over P positions. `trained`: weights_ED and biases_E of both embeddings."""
        from math import log

        from torch.nn.functional import linear, logsigmoid, normalize

        student_PE, teacher_PE = (
            normalize(linear(states_PD, trained[f"{whose}_weight"], trained[f"{whose}_bias"]), dim=1)
            for whose, states_PD in (("student", student_PD), ("teacher", teacher_PD))
        )
        count = len(student_PD)
        # h is the sigmoid of this.
        odds_PP = student_PE @ teacher_PE.T / self.temperature - log((count - 1) / count)
        right, wrong = logsigmoid(odds_PP.diagonal()).sum(), logsigmoid(-odds_PP)
        return -(right + wrong.sum() - wrong.diagonal().sum()) / count

    def pair_flops(self, shape: PairShape) -> int:
        taken = self.taken(shape)
        # Embeddings forward, gradients of weights, and of the student's states; products and their two gradients.
        embedded = taken * self.size * shape.hidden * (2 * 4 + 2)
        return (embedded + 6 * taken**2 * self.size) // shape.length
