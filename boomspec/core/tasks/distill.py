"""The kind `distill`: some of a teacher's layers are trained as a student of it."""

from typing import ClassVar, Literal

from boomspec.core.losses import Losses
from boomspec.core.tasks.recipe import Determinism, Recipe
from boomspec.core.tasks.record import Record
from boomspec.core.types import Strict


class Faithful(Strict):
    """What the published code (arXiv 2510.05064) does otherwise; see `boomspec.spec.sections.training.FaithfulSpec`."""

    padding: bool
    kl_on_padding: bool
    summed_micro_batches: int


class Distill(Record):
    """Inputs: `teacher` (source or task), `tokens`."""

    kind: ClassVar[str] = "distill"
    version: ClassVar[int] = 2
    trains: ClassVar[bool] = True
    numbers: ClassVar[tuple[str, ...]] = ("metrics.jsonl", "similarity.json")
    usual_work: ClassVar[int] = 1000

    kept: tuple[int, ...]
    initial: Literal["teacher", "random"]
    train_embedding: bool
    losses: Losses
    recipe: Recipe
    faithful: Faithful | None = None
    determinism: Determinism | None = None
