"""Base class of task records: the hashed parameters of one task kind, with its cost."""

from dataclasses import dataclass
from typing import Any, ClassVar

from boomspec.core.layers import LayerPlan
from boomspec.core.tasks.cost import Cost, Prices, TextCounts
from boomspec.core.tasks.recipe import Determinism, Precision
from boomspec.core.types import Strict


class Architecture(Strict):
    """A Llama decoder (see `llama_facts of boomspec/models/facts.py` for its tensors)."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    vocabulary: int
    context: int
    tied: bool
    initializer_range: float


@dataclass(frozen=True)
class LayerPlanShape:
    """A model made of layers of the inputs `teacher` and `student`.

    `tied`: whether head and embedding are one; None: as in the teacher. `merged`: each layer is a sum of several.
    """

    plan: LayerPlan
    tied: bool | None = None
    merged: bool = False


@dataclass(frozen=True)
class SameShape:
    """A model with the layers of the model that is the input `role`."""

    role: str


class Record(Strict):
    """Parameters of one task. A subclass sets `kind` and `version`, and overrides what is not as usual for its kind.

    `version` is part of the identity: raise it when the body of a kind starts to give other results.
    """

    kind: ClassVar[str]
    version: ClassVar[int]

    trains: ClassVar[bool] = False  # It trains a model: it may have several workers, and writes metrics.jsonl.
    reads_models: ClassVar[bool] = True  # Its body opens the models of its inputs, not only the numbers beside them.
    shows_numbers: ClassVar[bool] = False  # It draws the numbers of other tasks, and computes none.
    decides_results: ClassVar[bool] = True  # Results depend on it. If not, the graph's id leaves it out.
    numbers: ClassVar[tuple[str, ...]] = ()  # Its files without its model, for kinds that write one.
    usual_work: ClassVar[int] = 1  # Which of two tasks starts first where their costs do not decide: that with more.
    bytes_a_second: ClassVar[float | None] = None  # What one core reads; None: as much as it copies.

    def to_json(self) -> dict[str, Any]:
        """The `params` of its task."""
        return self.model_dump(mode="json", exclude_none=True)

    def model(self) -> LayerPlanShape | SameShape | Architecture | None:
        """The model that it makes; None where it makes none."""
        return None

    def cost(self, prices: Prices) -> Cost:
        """What it takes, as far as that follows from the record and from the shapes of models."""
        return Cost()

    def counted(self, cost: Cost, text: TextCounts) -> Cost:
        """Its cost with what is known of the text in its input `tokens`."""
        return cost

    def work(self, cost: Cost) -> float | None:
        """What its time is proportional to: operations, or bytes without any; None where that is unknown."""
        if cost.flops:
            return float(cost.flops)
        if cost.unknown and self.bytes_a_second is None:
            return None
        return float(cost.read + cost.disk) or (1.0 if self.shows_numbers else None)

    def pace(self) -> tuple[str, ...]:
        """A key: tasks of the same kind and key take the same time for the same work."""
        return ("",)

    def text_tokens(self) -> int:
        """Tokens of its input `tokens` that it trains on; 0 where it does not train, or their number is unknown."""
        return 0

    def computes_in(self) -> tuple[Precision, Determinism | None]:
        """The precision and the kernels of its operations, by its fields of these names; None: the usual kernels."""
        return getattr(getattr(self, "recipe", self), "precision", "bf16"), getattr(self, "determinism", None)
