"""The kinds `pretrain` and `distill`: a small Llama is trained as a teacher, or layers of a teacher as a student."""

from dataclasses import replace
from typing import Literal

from boomspec.core.layers import teacher_layers
from boomspec.core.losses import CrossEntropy, Losses
from boomspec.core.tasks.record import (
    Architecture,
    Balance,
    Cost,
    Determinism,
    Faithful,
    LayerPlanShape,
    Prices,
    Recipe,
    Record,
    TextCounts,
)
from boomspec.core.tasks.teacher_outputs import Stored


class Pretrain(Record):
    """Inputs: `tokens`."""

    kind, version = "pretrain", 2
    trains = True
    reads_models = False
    numbers = ("metrics.jsonl",)
    usual_work = 1000

    architecture: Architecture
    recipe: Recipe
    determinism: Determinism | None = None

    def model(self) -> Architecture:
        return self.architecture

    def cost(self, prices: Prices) -> Cost:
        return prices.training(self.recipe, Losses(cross_entropy=CrossEntropy()))

    def text_tokens(self) -> int:
        return self.recipe.tokens


class Distill(Record):
    """Inputs: `teacher` (source or task), `tokens`; `start` where the student begins as layers of another model;
    `outputs` with `teacher_outputs`.

    `held_out`: of which tokens the similarity of states is measured, where those that it trains on have no such text.
    """

    kind, version = "distill", 3
    trains = True
    numbers = ("metrics.jsonl", "similarity.json")
    usual_work = 1000

    kept: tuple[int, ...]  # of the teacher's layers; the student's are compared with the blocks that these begin
    start: tuple[int, ...] | None = None  # of the layers of the input `start`: what the student begins as
    passed_steps: int | None = None  # of the text, on which `start`, the student itself, was trained: it goes on there
    initial: Literal["teacher", "random"]
    train_embedding: bool
    losses: Losses
    balance: Balance | None = None
    recipe: Recipe
    faithful: Faithful | None = None
    determinism: Determinism | None = None
    teacher_outputs: Stored | None = None  # what is stored of the teacher's outputs, which is not run then

    @property
    def begins(self) -> tuple[int, ...]:
        """The layers that the student begins as: of the input `start`, else of the teacher."""
        return self.kept if self.start is None else self.start

    def model(self) -> LayerPlanShape:
        role = "teacher" if self.start is None else "start"
        return LayerPlanShape(teacher_layers(self.begins), teacher=role)

    def cost(self, prices: Prices) -> Cost:
        runs = ("teacher",) if self.teacher_outputs is None else ()
        settings = self.recipe, self.losses, self.faithful
        frozen, balanced = not self.train_embedding, self.balance is not None
        cost = prices.training(*settings, frozen=frozen, balanced=balanced, teachers=runs)
        if self.teacher_outputs is None:
            return cost
        stored = self.teacher_outputs.bytes(prices.models["teacher"].vocabulary)
        return replace(cost, read=cost.read + self.recipe.tokens * stored)

    def counted(self, cost: Cost, text: TextCounts) -> Cost:
        if self.faithful is None or not self.faithful.padding:
            return cost
        rows = self.recipe.steps * self.recipe.sequences  # each is one document
        return cost.counted(round(rows * text.mean_labels(self.recipe.sequence_length)))

    def pace(self) -> tuple[str, ...]:
        return (self.recipe.precision,)

    def text_tokens(self) -> int:
        return 0 if self.faithful is not None and self.faithful.padding else self.recipe.tokens
