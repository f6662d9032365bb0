"""The kinds `pretrain` and `distill`: a small Llama is trained as a teacher, or layers of a teacher as a student."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from boomspec.core.layers import STUDENT, LayerPlan, PlanText, patchable, plan_of, teacher_layers
from boomspec.core.losses import CrossEntropy, Losses
from boomspec.core.model_costs import LayerCosts
from boomspec.core.tasks.generate import SAMPLED_BYTES, Sampling
from boomspec.core.tasks.record import (
    MADE,
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
from boomspec.core.types import Strict

_HELD = ("weights", "optimizer", "teacher")  # in memory all the time; "teacher 2" and others are, too
_COUNTED = 1000  # steps whose draws a cost is estimated from


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


class OnPolicy(Strict):
    """In a share of the steps the student is trained on what it writes itself behind prompts of the text."""

    share: float
    prompt_tokens: int  # of the step's sequences; 0: it begins as every text does
    new_tokens: int
    sampling: Sampling
    teacher_share: float | None = None  # of the distribution that is drawn from; None: the student alone writes
    long_range: float | None = None  # factor of the long-range term of the reverse KL, beside that of `reverse_kl`

    def cost(self, cost: Cost, recipe: Recipe, prices: Prices) -> Cost:
        """That of a training, of which so large a share of the steps is on-policy, in expectation."""
        student, teacher = prices.models[MADE], prices.models["teacher"]
        length = max(1, self.prompt_tokens) + self.new_tokens
        writers = [student, teacher] if self.teacher_share else [student]
        rows = round(recipe.steps * recipe.sequences * self.share)
        kept = 1 - self.share * (1 - length / recipe.sequence_length)  # of the tokens, where rows are shorter
        flops = round(cost.flops * kept)
        flops += rows * sum(length * of.forward(length) + self.new_tokens * of.head() for of in writers)
        if self.long_range is not None:  # both read what was written; then forward, again, and backward of the head
            read = sum(length * of.forward(length) + self.new_tokens * of.head() for of in (student, teacher))
            flops += rows * (read + 4 * self.new_tokens * student.head())
        width, batch = 2 if recipe.precision == "bf16" else 4, min(prices.options.micro_batch, recipe.sequences)
        held = {name: size for name, size in cost.memory.items() if name.startswith(_HELD)}
        writing = held | {
            "cache": batch * length * width * sum(of.cache_elements for of in writers),
            "head": SAMPLED_BYTES * batch * student.vocabulary * len(writers),
        }
        memory = max(cost.memory, writing, key=lambda moment: sum(moment.values()))
        tokens = round(cost.tokens * kept)
        return replace(cost, flops=flops, memory=memory, tokens=tokens, real_tokens=tokens)


class OtherTeachers(Strict):
    """Teachers beside the family's own, which has the weight that theirs leave of 1 (`runners/training/teachers.py`).

    Inputs: `teacher 2`, `teacher 3`, ...
    """

    weights: tuple[float, ...]
    combine: Literal["losses", "mixture"]

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(f"teacher {number}" for number in range(2, 2 + len(self.weights)))


class Patched(Strict):
    """Of `share` of the steps, drawn with the seed, but never the first: a larger model is trained, in which layers of
    the teacher, which stay what they are, stand in the place of some of the student's.
    """

    share: float
    plans: tuple[PlanText, ...] | None = None  # one of them is drawn; None: blocks, each number of them as likely

    def drawn(self, seed: int, step: int, kept: Sequence[int], layers: int) -> LayerPlan | None:
        """The layer plan of a step; None: the student itself."""
        numbers = Random(f"{seed} patched {step}")
        if step == 0 or numbers.random() >= self.share:  # what the terms are at the start is the student's
            return None
        if self.plans is not None:
            return self.plans[numbers.randrange(len(self.plans))]
        available = patchable(kept, layers)
        some = numbers.sample(available, numbers.randrange(1, max(2, len(available))))
        return plan_of(kept, layers, [block in some for block in range(len(kept))])


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
    on_policy: OnPolicy | None = None
    faithful: Faithful | None = None
    determinism: Determinism | None = None
    others: OtherTeachers | None = None
    patched: Patched | None = None
    teacher_outputs: Stored | None = None  # what is stored of the teacher's outputs, which is not run then

    @property
    def begins(self) -> tuple[int, ...]:
        """The layers that the student begins as: of the input `start`, else of the teacher."""
        return self.kept if self.start is None else self.start

    def model(self) -> LayerPlanShape:
        role = "teacher" if self.start is None else "start"
        return LayerPlanShape(teacher_layers(self.begins), teacher=role)

    def cost(self, prices: Prices) -> Cost:
        runs = ("teacher", *(self.others.roles if self.others else ())) if self.teacher_outputs is None else ()
        settings = self.recipe, self.losses, self.faithful
        frozen, balanced = not self.train_embedding, self.balance is not None
        cost = prices.training(*settings, frozen=frozen, balanced=balanced, teachers=runs)
        if self.on_policy is not None:
            return self.on_policy.cost(cost, self.recipe, prices)
        if self.patched is not None:
            cost = self._with_patched(self.patched, cost, prices)
        if self.teacher_outputs is None:
            return cost
        stored = self.teacher_outputs.bytes(prices.models["teacher"].vocabulary)
        return replace(cost, read=cost.read + self.recipe.tokens * stored)

    def _with_patched(self, patched: Patched, cost: Cost, prices: Prices) -> Cost:
        """The cost with that of the larger models: the mean over the steps, and the largest one's memory."""
        student, teacher, length = prices.models[MADE], prices.models["teacher"], self.recipe.sequence_length
        again, steps = prices.options.activation_checkpointing, range(min(_COUNTED, self.recipe.steps))
        seed = self.recipe.seed
        drawn = Counter(patched.drawn(seed, step, self.kept, teacher.depth) for step in steps)
        more, deepest = 0.0, student.depth
        of_student = sum(_trained(layer, length, again=again) for layer in student.layers)
        for plan, times in drawn.items():
            if plan is None:
                continue
            first = next(place for place, layer in enumerate(plan) if layer.owner == STUDENT)
            own = 0
            for place, layer in enumerate(plan):
                costs = student.layers[layer.index] if layer.owner == STUDENT else teacher.layers[layer.index]
                frozen = layer.owner != STUDENT
                # What is in front of the student's first layer takes no gradient.
                own += _forward(costs, length) if place < first else _trained(costs, length, again=again, frozen=frozen)
            more += (own - of_student) * times / len(steps)
            deepest = max(deepest, len(plan) - first)
        memory = dict(cost.memory)
        if "activations" in memory:
            memory["activations"] = round(memory["activations"] * deepest / student.depth)
        needed = max(0, cost.model_flops_per_token + round(more))
        return replace(
            cost, flops=cost.flops + round(self.recipe.tokens * more), memory=memory, model_flops_per_token=needed
        )

    def counted(self, cost: Cost, text: TextCounts) -> Cost:
        if self.faithful is None or not self.faithful.padding:
            return cost
        rows = self.recipe.steps * self.recipe.sequences  # each is one document
        return cost.counted(round(rows * text.mean_labels(self.recipe.sequence_length)))

    def pace(self) -> tuple[str, ...]:
        return (self.recipe.precision,)

    def text_tokens(self) -> int:
        return 0 if self.faithful is not None and self.faithful.padding else self.recipe.tokens


def _forward(layer: LayerCosts, length: int) -> int:
    return 2 * layer.matrices + 4 * length * layer.queries


def _trained(layer: LayerCosts, length: int, *, again: bool, frozen: bool = False) -> int:
    """Operations of a layer for a token, forward and backward; of frozen weights there is no gradient."""
    backward = (2 if frozen else 4) * layer.matrices + 10 * length * layer.queries
    return backward + (2 if again else 1) * _forward(layer, length)
