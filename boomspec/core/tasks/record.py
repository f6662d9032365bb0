"""The base class of all task records: what the planner, the executor and the reports ask of a kind."""

from dataclasses import dataclass
from typing import Any, ClassVar

from boomspec.core.layers import Plan
from boomspec.core.tasks.cost import Cost, Prices, TextCounts
from boomspec.core.tasks.recipe import Determinism, Precision
from boomspec.core.types import Strict


class Architecture(Strict):
    """A Llama decoder (see `boomspec/models/architecture.py` for its tensors)."""

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
class Assembled:
    """A model made of layers of the inputs `teacher` and `student`.

    `tied`: whether head and embedding are one; None: as in the teacher. `merged`: each layer is a sum of several.
    """

    plan: Plan
    tied: bool | None = None
    merged: bool = False


@dataclass(frozen=True)
class Copied:
    """A model with the layers of the model that is the input `role`."""

    role: str


class Record(Strict):
    """Parameters of one task. Subclasses set `kind` and `version`, and answer what their kind does not as usual.

    `version` is part of the identity: raise it when the body of a kind starts to give other results.
    """

    kind: ClassVar[str]
    version: ClassVar[int]

    trains: ClassVar[bool] = False  # a model: it has workers and checkpoints, and writes metrics.jsonl
    reads_models: ClassVar[bool] = True  # else its body needs only what lies beside the models of its inputs
    shows_numbers: ClassVar[bool] = False  # of other tasks, on a page, and makes none of its own
    decides_results: ClassVar[bool] = True  # else no other task reads it, and the graph's id leaves it out
    numbers: ClassVar[tuple[str, ...]] = ()  # its files that hold numbers, where it writes a model beside them
    usual_work: ClassVar[int] = 1  # beside that of other kinds, where the costs of two tasks leave them equal
    # Bytes that one core reads in a second, where that takes longer than copying them.
    bytes_a_second: ClassVar[float | None] = None

    def to_json(self) -> dict[str, Any]:
        """The `params` of its task."""
        return self.model_dump(mode="json", exclude_none=True)

    def model(self) -> Assembled | Copied | Architecture | None:
        """What the model that it makes consists of; None where it makes none."""
        return None

    def cost(self, prices: Prices) -> Cost:
        """What it takes, as far as that follows from the record and the shapes of models."""
        return Cost()

    def counted(self, cost: Cost, text: TextCounts) -> Cost:
        """Its cost with what is known of the text in its input `tokens`."""
        return cost

    def work(self, cost: Cost) -> float | None:
        """What the time of such a task grows with: operations, or bytes; None where it is unknown."""
        if cost.flops:
            return float(cost.flops)
        if cost.unknown and self.bytes_a_second is None:
            return None
        return float(cost.read + cost.disk) or (1.0 if self.shows_numbers else None)

    def pace(self) -> tuple[str, ...]:
        """Tasks of the same kind and pace take the same time for the same work."""
        return ("",)

    def text_tokens(self) -> int:
        """Tokens of the input `tokens` that it goes through, where it may do so more than once."""
        return 0

    def computes_in(self) -> tuple[Precision, Determinism | None]:
        """The precision and the kernels of its operations, by its fields of these names; None: the usual kernels."""
        return getattr(getattr(self, "recipe", self), "precision", "bf16"), getattr(self, "determinism", None)
