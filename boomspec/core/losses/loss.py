"""The base classes of a loss: all that the spec, the training, the costs and the report ask of one.

A loss is one class in one module of this folder. Its fields are what a spec may set; its formula gives a value for each
position, of which the training takes the sum over the positions that have a label, divided by the number of such
positions in the whole effective batch (`runners/training/losses.py`).
"""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from boomspec.core.losses.closed_form import ClosedForm, Softmax
from boomspec.core.losses.weight import Weight, weight_at
from boomspec.core.types import Strict

if TYPE_CHECKING:
    from torch import Tensor

# What a formula may read. Shapes: N positions of any sequence, V vocabulary, B sequences, T positions, D hidden size.
#   logits           logits_NV of the student
#   teacher_logits   logits_NV of the teacher, without a graph
#   labels           labels_N: the token that follows
#   t                a number that changes over the steps; see `course`
# Of a loss on pairs (`pairs.py`), of each pair, those of the teacher without a graph:
#   states, teacher_states         hidden_BTD of student and teacher at two aligned places
#   inputs, teacher_inputs         hidden_BTD that the student's layer, and the teacher's block, have read
#   queries, keys, values, frame, and teacher_queries, ...   of the attention of a layer: see `attention_loss.py`
Read = Literal[
    "logits", "teacher_logits", "labels", "t",
    "states", "teacher_states", "inputs", "teacher_inputs",
    "queries", "keys", "values", "frame", "teacher_queries", "teacher_keys", "teacher_values", "teacher_frame",
]  # fmt: skip


class Loss(Strict):
    """A term of the loss. `reads` names the arguments of `formula`, in their order."""

    kind: ClassVar[str]  # its key in a spec
    title: ClassVar[str]  # what the report calls it
    unit: ClassVar[str]
    reads: ClassVar[tuple[Read, ...]]
    description: ClassVar[str]  # of its key, for editors
    signed: ClassVar[bool] = False  # its value may be negative
    usual: ClassVar[bool] = False  # part of a distillation whose spec names no losses
    # For docs/losses.md. p, q: distributions of teacher and student at temperature T; z: logits; y: the label.
    equation: ClassVar[str] = ""
    source: ClassVar[str] = ""
    elsewhere: ClassVar[tuple[str, ...]] = ()  # what others call it; an unknown key of such a name proposes this one

    # What it adds to a training step, beside reading: tensors in fp32, each of a number for every logit of a tile
    # (of losses that read logits) or for every element of a pair's states (of losses that read states).
    # Of a closed form beside the student's softmax, which cross-entropy counts and all share.
    working: ClassVar[int]  # while the formula, or the closed form in its place, is computed
    kept: ClassVar[int]  # until its backward pass

    # Whether it may be computed from what is stored of the teacher's outputs, in place of its logits: over bins of
    # tokens in place of single ones (a divergence of two distributions), or as an expectation under the teacher.
    over_bins: ClassVar[bool] = False
    over_samples: ClassVar[bool] = False

    weight: Weight = 1.0

    @property
    def reads_teacher(self) -> bool:
        return any(what.startswith("teacher_") for what in self.reads)

    @classmethod
    def example(cls) -> dict[str, float]:
        """Its numbers with their defaults, for editors."""
        return {name: f.default for name, f in cls.model_fields.items() if isinstance(f.default, float)}

    def formula(self, *args: Any, **kwargs: Any) -> "Tensor":
        """The loss at each position, without its weight. Softmaxes and norms are computed in fp32."""
        raise NotImplementedError  # each loss has its own arguments, which no abstract method could declare

    def closed_form(
        self, student: Softmax, teacher: Softmax | None, labels_N: "Tensor", t: float = 0.0
    ) -> ClosedForm | None:
        """What the formula gives, with its gradient, of losses that read logits; None: autograd takes the gradient.

        Only for speed: a loss is whole without it. Tests compare it with the formula.
        """
        return None

    def tensors(self) -> tuple[int, int]:
        """`working` and `kept` of the loss with these fields."""
        return self.working, self.kept

    def course(self, steps: int) -> Generator[float, float, None] | None:
        """Of a loss that reads `t`: yields it for each step, and is sent the loss's value at that step."""
        return None

    def weight_at(self, step: int, steps: int) -> float:
        """The factor of this term in the total loss, at one of `steps` steps."""
        return weight_at(self.weight, step, steps)

    def flops(self, hidden: int) -> int:
        """Operations of its own for each token, a multiply-add counted as two; element-wise ones are not counted."""
        return 0

    def not_from_stored(self, how: Literal["top_k", "samples"]) -> str | None:
        """Why it cannot be computed from stored outputs of the teacher; None where it can."""
        if not {"teacher_logits", "labels", "t"}.issuperset({*self.reads} - {"logits"}):
            return "they are logits alone, and it reads more of the teacher"
        if "teacher_logits" not in self.reads:
            return None
        if not (self.over_bins if how == "top_k" else self.over_samples):
            needed = "every logit" if how == "top_k" else "the teacher's whole distribution"
            return f"it needs {needed}, and of each position {how} is stored"
        if getattr(self, "temperature", 1.0) != 1:
            return "they are of temperature 1, and what is not stored has no other"
        return None

    def completed(self, *, train_embedding: bool, balanced: bool = False) -> Self:
        """The loss as it is computed: with the defaults that follow from other sections of the spec."""
        # Default weights make the terms of a usual training about equal, which balance does by itself.
        return self.model_copy(update={"weight": 1.0}) if balanced and "weight" not in self.model_fields_set else self
