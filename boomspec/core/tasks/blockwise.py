"""The kinds of blockwise distillation: every layer of a student is trained alone on what the teacher's block reads and
gives, and the student is put together of these layers.

    block_states    the teacher's hidden states at one boundary of blocks, computed with one layer in memory at a time
    distill_block   one student layer, trained on the states in front of its block and behind it
    join_blocks     the student: the trained layers, and the teacher's embedding, final norm and head

What every one of them reads is the same windows of the text, in the order that the recipe draws.
"""

from dataclasses import replace
from typing import Literal

from boomspec.core.layers import teacher_layers
from boomspec.core.losses import Losses
from boomspec.core.tasks.record import Cost, Determinism, LayerPlanShape, Precision, Prices, Recipe, Record, TextCounts
from boomspec.core.work_sizes import COPY_BUFFER


class BlockStates(Record):
    """What the teacher's layer `layer` reads, or what its last one gives, on the first `sequences` windows.

    Inputs: `teacher`, `tokens`, and `states`, those that layer `begin` reads; None: it starts from the tokens.
    They are stored as they are computed: fp32, or bf16 where that is the precision.
    """

    kind, version = "block_states", 1
    usual_work = 500

    layer: int
    begin: int | None = None
    seed: int
    sequences: int  # drawn by a training: each of its windows is there once
    sequence_length: int
    isolate: Literal[True] | None = None  # documents of a row do not see each other
    precision: Precision
    determinism: Determinism | None = None

    def cost(self, prices: Prices) -> Cost:
        tokens = self.sequences * self.sequence_length
        return prices.layerwise(
            range(self.begin or 0, self.layer),
            tokens=tokens,
            length=self.sequence_length,
            bf16=self.precision == "bf16",
            from_tokens=self.begin is None,
        )

    def counted(self, cost: Cost, text: TextCounts) -> Cost:
        """Text that is read again is there once."""
        rows = min(self.sequences, text.windows(self.sequence_length))
        tokens, share = rows * self.sequence_length, rows / self.sequences
        scaled = {name: round(getattr(cost, name) * share) for name in ("flops", "disk")}
        return replace(cost, tokens=tokens, real_tokens=tokens, **scaled)

    def pace(self) -> tuple[str, ...]:
        return (self.precision,)

    def text_tokens(self) -> int:
        return self.sequences * self.sequence_length


class DistillBlock(Record):
    """One layer that takes the place of the teacher's layers [first, end). Inputs: `teacher`, `tokens`.

    And `states` and `targets`, what layer `first` reads and what layer end - 1 gives; without them both are computed
    again, layer by layer, a part of the windows at a time.
    """

    kind, version = "distill_block", 1
    trains = True
    numbers = ("metrics.jsonl",)
    usual_work = 1000

    first: int
    end: int
    stored: bool
    initial: Literal["random"] | None = None  # None: it begins as the teacher's layer `first`
    losses: Losses  # of hidden states, all of them
    recipe: Recipe
    determinism: Determinism | None = None

    def cost(self, prices: Prices) -> Cost:
        return prices.layer_training(self.recipe, self.losses, block=range(self.first, self.end), stored=self.stored)

    def pace(self) -> tuple[str, ...]:
        return (self.recipe.precision, "stored" if self.stored else "streamed")

    def text_tokens(self) -> int:
        return self.recipe.tokens


class JoinBlocks(Record):
    """The student of `kept` layers. Inputs: `teacher`, and by "block i" layer i of the student where it was trained.

    A layer without an input is the teacher's own.
    """

    kind, version = "join_blocks", 1
    numbers = ("metrics.jsonl", "blocks.json")
    usual_work = 10

    kept: tuple[int, ...]

    def model(self) -> LayerPlanShape:
        return LayerPlanShape(teacher_layers(self.kept))

    def cost(self, prices: Prices) -> Cost:
        return prices.written(buffer=COPY_BUFFER)


def block_role(index: int) -> str:
    """The input of a join that is layer `index` of the student."""
    return f"block {index}"
