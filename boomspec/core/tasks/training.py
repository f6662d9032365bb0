"""The kinds `pretrain` and `distill`: a small Llama is trained as a teacher, or layers of a teacher as a student."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from boomspec.core.layers import STUDENT, LayerPlan, PlanText, patchable, plan_of, teacher_layers
from boomspec.core.losses import CrossEntropy, Losses
from boomspec.core.model_costs import LayerCosts, ModelCosts
from boomspec.core.tasks.check import BuiltSize
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
from boomspec.core.work_sizes import KEPT_CHECKPOINTS

BEFORE = "before"  # the input of a phase that is the phase before it
HELD_OUT = "held_out."  # what columns of the metrics begin with that are held-out losses
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


class Phase(Strict):
    """The steps of a training that one task takes, where other tasks take those in front of them and behind them.

    The schedule, the optimiser, the metrics and everything else that depends on the step are those of the whole. The
    rows of the text are drawn in one stream for each text: where phases before it have trained on the same one, a phase
    goes on behind them (`passed`).
    """

    first: int  # of the steps of the whole training, whose number is the recipe's
    steps: int
    passed: int  # steps of phases before it that have drawn from the same text


class During(Strict):
    """The loss on held-out text is measured in front of every `every`-th step, and after the last one.

    Of the student, and of models that are made with it as it is then: their plans, and whether head and embedding are
    one. It changes nothing of the training.
    """

    every: int
    sizes: tuple[BuiltSize, ...]
    max_tokens: int  # of the text at most

    def points(self, steps: range, of: int) -> int:
        """How often it is measured in these steps, of so many in all."""
        return sum(step % self.every == 0 for step in steps) + (steps.stop == of)

    def flops_per_token(self, student: ModelCosts, teacher: ModelCosts | None, length: int) -> int:
        """Operations of one token in all models."""
        found = student.forward(length) + student.head()
        for size in self.sizes:
            assert teacher is not None
            owners = [student if layer.owner == STUDENT else teacher for layer in size.plan]
            layers = (of.layers[layer.index] for of, layer in zip(owners, size.plan, strict=True))
            found += sum(_forward(layer, length) for layer in layers) + owners[-1].head()
        return found


class Distill(Record):
    """Inputs: `teacher` (source or task), `tokens`; `start` where the student begins as layers of another model;
    `outputs` with `teacher_outputs`; `before`, the phase before it, of a phase that is not the first.

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
    during: During | None = None  # what is measured while it trains
    phase: Phase | None = None  # None: the task is the whole training

    @property
    def steps(self) -> range:
        """The steps that the task takes, of those of the whole training."""
        if self.phase is None:
            return range(self.recipe.steps)
        return range(self.phase.first, self.phase.first + self.phase.steps)

    @property
    def hands_on(self) -> bool:
        """Whether a phase follows, which needs the state of the training, too."""
        return self.steps.stop < self.recipe.steps

    @property
    def draws(self) -> int:
        """What is added to a step for its number in the text: batch 0 of a text is its first."""
        if self.phase is not None:
            return self.phase.passed - self.phase.first
        return self.passed_steps or 0

    @property
    def own_recipe(self) -> Recipe:
        """The recipe with as many steps as the task takes: what its cost follows from."""
        return self.recipe.model_copy(update={"steps": len(self.steps)})

    @property
    def begins(self) -> tuple[int, ...]:
        """The layers that the student begins as: of the input `start`, else of the teacher."""
        return self.kept if self.start is None else self.start

    def model(self) -> LayerPlanShape:
        role = "teacher" if self.start is None else "start"
        return LayerPlanShape(teacher_layers(self.begins), teacher=role)

    def cost(self, prices: Prices) -> Cost:
        runs = ("teacher", *(self.others.roles if self.others else ())) if self.teacher_outputs is None else ()
        recipe = self.own_recipe
        settings = recipe, self.losses, self.faithful
        frozen, balanced = not self.train_embedding, self.balance is not None and self.steps.start == 0
        cost = prices.training(*settings, frozen=frozen, balanced=balanced, teachers=runs)
        state = cost.scratch // (KEPT_CHECKPOINTS + 1)  # bytes of weights and moments: what a checkpoint has
        if self.hands_on:
            cost = replace(cost, disk=cost.disk + state)
        if self.steps.start:
            cost = replace(cost, read=cost.read + state)
        if self.during is not None:
            models = prices.models[MADE], prices.models.get("teacher")
            each = self.during.flops_per_token(*models, self.recipe.sequence_length)
            each *= self.during.points(self.steps, self.recipe.steps)
            cost = replace(cost, flops=cost.flops + each * self.during.max_tokens, flops_per_held_out_token=each)
        if self.on_policy is not None:
            return self.on_policy.cost(cost, recipe, prices)
        if self.patched is not None:
            cost = self._with_patched(self.patched, cost, prices)
        if self.teacher_outputs is None:
            return cost
        stored = self.teacher_outputs.bytes(prices.models["teacher"].vocabulary)
        return replace(cost, read=cost.read + recipe.tokens * stored)

    def _with_patched(self, patched: Patched, cost: Cost, prices: Prices) -> Cost:
        """The cost with that of the larger models: the mean over the steps, and the largest one's memory."""
        student, teacher, length = prices.models[MADE], prices.models["teacher"], self.recipe.sequence_length
        again, steps = prices.options.activation_checkpointing, self.steps[:_COUNTED]
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
            cost, flops=cost.flops + round(self.own_recipe.tokens * more), memory=memory, model_flops_per_token=needed
        )

    def counted(self, cost: Cost, text: TextCounts) -> Cost:
        if self.during is not None and cost.flops_per_held_out_token:
            fewer = max(0, self.during.max_tokens - text.held_out())
            flops = cost.flops - fewer * cost.flops_per_held_out_token
            cost = replace(cost, flops=flops, flops_per_held_out_token=0)
        if self.faithful is None or not self.faithful.padding:
            return cost
        rows = len(self.steps) * self.recipe.sequences  # each is one document
        return cost.counted(round(rows * text.mean_labels(self.recipe.sequence_length)))

    def pace(self) -> tuple[str, ...]:
        return (self.recipe.precision,)

    def text_tokens(self) -> int:
        if self.faithful is not None and self.faithful.padding:
            return 0
        passed = 0 if self.phase is None else self.phase.passed
        return (passed + len(self.steps)) * self.recipe.sequences * self.recipe.sequence_length


def _forward(layer: LayerCosts, length: int) -> int:
    return 2 * layer.matrices + 4 * length * layer.queries


def _trained(layer: LayerCosts, length: int, *, again: bool, frozen: bool = False) -> int:
    """Operations of a layer for a token, forward and backward; of frozen weights there is no gradient."""
    backward = (2 if frozen else 4) * layer.matrices + 10 * length * layer.queries
    return backward + (2 if again else 1) * _forward(layer, length)
