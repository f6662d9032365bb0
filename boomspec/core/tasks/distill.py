"""The kind `distill`: some of a teacher's layers are trained as a student of it."""

from typing import ClassVar, Literal

from boomspec.core.layers import teacher_layers
from boomspec.core.losses import Losses
from boomspec.core.tasks.cost import Cost, Prices, TextCounts
from boomspec.core.tasks.recipe import Determinism, Recipe
from boomspec.core.tasks.record import LayerPlanShape, Record
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

    def model(self) -> LayerPlanShape:
        return LayerPlanShape(teacher_layers(self.kept))

    def cost(self, prices: Prices) -> Cost:
        return prices.training(
            self.recipe,
            self.losses,
            frozen_embedding=not self.train_embedding,
            padding=self.pads,
            kl_on_padding=self.faithful is not None and self.faithful.kl_on_padding,
        )

    def counted(self, cost: Cost, text: TextCounts) -> Cost:
        rows = self.recipe.steps * self.recipe.sequences
        return cost.counted(round(rows * text.mean_labels(self.recipe.sequence_length))) if self.pads else cost

    def pace(self) -> tuple[str, ...]:
        return (self.recipe.precision,)

    def text_tokens(self) -> int:
        return 0 if self.pads else self.recipe.tokens

    @property
    def pads(self) -> bool:
        """Whether each row is one document with padding."""
        return self.faithful is not None and self.faithful.padding
