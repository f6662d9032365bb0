"""The base classes of a loss: all that the spec, the training, the costs and the report ask of one.

A loss is one class in one module of this folder. Its fields are what a spec may set; its formula gives a value for each
position, of which the training takes the sum over the positions that have a label, divided by the number of such
positions in the whole effective batch (`runners/training/losses.py`).
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from boomspec.core.losses.closed_form import ClosedForm, Softmax
from boomspec.core.types import Number, Strict

if TYPE_CHECKING:
    from torch import Tensor

# What a formula may read. Shapes: N positions of any sequence, V vocabulary, B sequences, T positions, D hidden size.
#   logits           logits_NV of the student
#   teacher_logits   logits_NV of the teacher, without a graph
#   labels           labels_N: the token that follows
#   states           hidden_BTD of the student at one end of a pair of aligned points
#   teacher_states   hidden_BTD of the teacher at the other end, without a graph
Read = Literal["logits", "teacher_logits", "labels", "states", "teacher_states"]
Weight = Annotated[Number, Field(gt=0, description="Factor of this term in the total loss.")]


class Loss(Strict):
    """A term of the loss. `reads` names the arguments of `formula`, in their order."""

    kind: ClassVar[str]  # its key in a spec
    title: ClassVar[str]  # what the report calls it
    unit: ClassVar[str]
    reads: ClassVar[tuple[Read, ...]]
    description: ClassVar[str]  # of its key, for editors
    usual: ClassVar[bool] = False  # part of a distillation whose spec names no losses

    # What it adds to a training step, beside reading: tensors in fp32, each of a number for every logit of a tile
    # (of losses that read logits) or for every element of a pair's states (of losses that read states).
    working: ClassVar[int]  # while the formula, or the closed form in its place, is computed
    kept: ClassVar[int]  # until its backward pass

    weight: Weight = 1.0

    @classmethod
    def example(cls) -> dict[str, float]:
        """Its numbers with their defaults, for editors."""
        return {name: f.default for name, f in cls.model_fields.items() if isinstance(f.default, float)}

    def formula(self, *args: Any, **kwargs: Any) -> "Tensor":
        """The loss at each position, without its weight. Softmaxes and norms are computed in fp32."""
        raise NotImplementedError  # each loss has its own arguments, which no abstract method could declare

    def closed_form(self, student: Softmax, teacher: Softmax | None, labels_N: "Tensor") -> ClosedForm | None:
        """What the formula gives, with its gradient, of losses that read logits; None: autograd takes the gradient.

        Only for speed: a loss is whole without it. Tests compare it with the formula.
        """
        return None

    def flops(self, hidden: int) -> int:
        """Operations of its own for each token, a multiply-add counted as two; element-wise ones are not counted."""
        return 0

    def completed(self, *, train_embedding: bool) -> Self:
        """The loss as it is computed: with the defaults that follow from other sections of the spec."""
        return self


class StateLoss(Loss):
    """The mean over pairs of hidden states: student layer i's output, and the teacher's at the end of block i."""

    embedding: Annotated[bool, Field(description="Also align the embedding output (a frozen one never counts).")] = True
    final_norm: Annotated[
        bool, Field(description="Take the last pair after the final norm (else the raw output of the last layer).")
    ] = True

    def completed(self, *, train_embedding: bool) -> Self:
        # A frozen embedding is the teacher's: its pair is always equal and would only dilute the mean.
        return self if train_embedding else self.model_copy(update={"embedding": False})

    def pairs(self, layers: int) -> int:
        """How many pairs there are in a student of so many layers."""
        return layers + self.embedding
