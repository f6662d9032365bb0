"""The kind `pretrain`: a small Llama is trained from scratch, as a teacher."""

from typing import ClassVar

from boomspec.core.tasks.recipe import Determinism, Recipe
from boomspec.core.tasks.record import Record
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


class Pretrain(Record):
    """Inputs: `tokens`."""

    kind: ClassVar[str] = "pretrain"
    version: ClassVar[int] = 1
    trains: ClassVar[bool] = True
    reads_models: ClassVar[bool] = False
    numbers: ClassVar[tuple[str, ...]] = ("metrics.jsonl",)
    usual_work: ClassVar[int] = 1000

    architecture: Architecture
    recipe: Recipe
    determinism: Determinism | None = None
