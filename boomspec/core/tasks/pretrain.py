"""The kind `pretrain`: a small Llama is trained from scratch, as a teacher."""

from typing import ClassVar

from boomspec.core.losses import CrossEntropy, Losses
from boomspec.core.tasks.cost import Cost, Prices
from boomspec.core.tasks.recipe import Determinism, Recipe
from boomspec.core.tasks.record import Architecture, Record


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

    def model(self) -> Architecture:
        return self.architecture

    def cost(self, prices: Prices) -> Cost:
        return prices.training(self.recipe, Losses(cross_entropy=CrossEntropy()))

    def text_tokens(self) -> int:
        return self.recipe.tokens
