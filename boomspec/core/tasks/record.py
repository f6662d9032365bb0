"""What records of tasks consist of: hyperparameters, shapes of models, the estimated cost, and the base class `Record`.

`boomspec.compile.cost` knows the prices that a cost is worked out from; they follow from the shapes of models.
`boomspec.plan.rates` fills in what is known only once the text has been tokenized.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from boomspec.core.execution import TrainingOptions
from boomspec.core.layers import LayerPlan
from boomspec.core.losses import Losses
from boomspec.core.model_costs import ModelCosts
from boomspec.core.types import Strict

AFTER_TOKENIZE = "how many tokens the text has: known after tokenize"
MADE = "made"  # in `Prices.models`: the model that the task makes
Precision = Literal["fp32", "bf16"]
Algorithms = Literal["deterministic", "strict", "any"]
Balance = Literal["start", "running"]  # by which sizes of the terms a loss is balanced: runners/training/weighting.py


class Determinism(Strict):
    """Which kernels a task computes with (`runners.runtime.device`). Records leave it out for the defaults."""

    algorithms: Algorithms
    tf32: bool


class Optimizer(Strict):
    """AdamW; weight decay acts on matrices only (biases and norms have none)."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip: float  # largest global gradient norm; 0 means no clipping


class Schedule(Strict):
    """Linear warm-up to the peak, then `kind` down to `final` times the peak at the last step."""

    kind: Literal["cosine", "linear", "constant"]
    warmup_steps: int
    final: float


class Recipe(Strict):
    """How a model is trained. `sequences` x `sequence_length` tokens make one optimiser step."""

    seed: int
    steps: int
    sequences: int
    sequence_length: int
    optimizer: Optimizer
    schedule: Schedule
    precision: Precision
    isolate: Literal[True] | None = None  # documents of a row do not see each other

    @property
    def tokens(self) -> int:
        return self.steps * self.sequences * self.sequence_length


class Faithful(Strict):
    """What the published code (arXiv 2510.05064) does otherwise; see `boomspec.spec.sections.training.FaithfulSpec`."""

    padding: bool
    kl_on_padding: bool
    summed_micro_batches: int


@dataclass(frozen=True)
class Cost:
    """What one task takes, as far as it is known beforehand. Never part of an identity."""

    flops: int = 0  # floating-point operations, a multiply-add counted as two
    # Bytes of the largest moment, by what holds them: "weights", "gradients", "optimizer", "activations", "head", ...
    memory: dict[str, int] = field(default_factory=dict)
    disk: int = 0  # bytes of the artifact
    read: int = 0  # bytes
    tokens: int = 0  # that go through the model
    real_tokens: int | None = 0  # of these; None: not known before a run
    flops_per_real_token: int = 0  # that `flops` counts for each of `tokens`, and that padding does not take
    flops_per_held_out_token: int = 0  # that `flops` counts for each token that a training is measured on meanwhile
    scratch: int = 0  # bytes of disk while it runs, beside the artifact: checkpoints
    host_memory: int = 0  # bytes of main memory beside that of a GPU: what a checkpoint is written from
    model_flops_per_token: int = 0  # that a training needs for a real token, nothing counted that it computes again
    unknown: str = ""  # what is not known, and why; then `flops` and `tokens` are what is known of them

    @property
    def peak(self) -> int:
        """Bytes of memory in the largest moment."""
        return sum(self.memory.values())

    def counted(self, real: int, **changes: Any) -> "Cost":
        """The cost for `real` real tokens, where all were counted before."""
        flops = self.flops + self.flops_per_real_token * (real - self.tokens)
        return replace(self, flops=flops, real_tokens=real, flops_per_real_token=0, **changes)


@dataclass(frozen=True)
class Prices(ABC):
    """What a record works its cost out from, beside its own fields."""

    models: Mapping[str, ModelCosts]  # by the role of the input that each is; `MADE`
    options: TrainingOptions
    batch_size: int  # of a forward pass, where nothing is trained
    on_gpu: bool
    text_bytes: int  # of the files of the input `text`
    token_bytes: int  # of one token id of the input `tokenizer`
    rest_bytes: int  # of what the teacher has beside its decoder

    def written(self, *, buffer: int, rest: bool = False) -> Cost:
        """The cost of writing a model that consists of others, `buffer` bytes at a time."""
        size = self.models[MADE].bytes + (self.rest_bytes if rest else 0)
        return Cost(memory={"buffers": buffer}, disk=size, read=size)

    @abstractmethod
    def training(
        self,
        recipe: Recipe,
        losses: Losses,
        faithful: Faithful | None = None,
        *,
        frozen: bool = False,
        balanced: bool = False,
        teachers: Sequence[str] = ("teacher",),
    ) -> Cost:
        """The cost of training the model.

        frozen: its embedding is. balanced: the sizes of the terms are measured in front of the first step. teachers:
        the inputs that are run beside it, where they are there; those after the first for their logits.
        """

    @abstractmethod
    def layer_training(self, recipe: Recipe, losses: Losses, *, block: range, stored: bool) -> Cost:
        """The cost of training the first of these layers of the teacher alone, against the output of the last.

        `stored`: the states in front of the block and behind it are inputs; else they are computed again.
        """

    @abstractmethod
    def layerwise(self, layers: range, *, tokens: int, length: int, bf16: bool, from_tokens: bool) -> Cost:
        """The cost of running layers of the teacher one after the other, each over all tokens, and storing the states.

        `from_tokens`: the embedding comes first. `length`: tokens of a sequence.
        """


@dataclass(frozen=True)
class TextCounts:
    """What is known of the text in an input `tokens` once it is there."""

    held_out: Callable[[], int]  # tokens
    mean_labels: Callable[[int], float]  # of the mean row, where each is a document, padded or cut to so many tokens
    windows: Callable[[int], int]  # of so many tokens, in the training text


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
    """A model made of layers of the inputs `teacher` (or the one called so) and `student`."""

    plan: LayerPlan
    tied: bool | None = None  # whether head and embedding are one; None: as in the teacher
    merged: bool = False  # each layer is a sum of several
    teacher: str = "teacher"


class Record(Strict):
    """Parameters of one task. A subclass sets `kind` and `version`, and overrides what is not as usual for its kind."""

    kind: ClassVar[str]
    version: ClassVar[int]  # Part of the identity: raise it when the body of a kind starts to give other results.

    trains: ClassVar[bool] = False  # It trains a model: it may have several workers, and writes metrics.jsonl.
    reads_models: ClassVar[bool] = True  # Its body opens the models of its inputs, not only the numbers beside them.
    shows_numbers: ClassVar[bool] = False  # It draws the numbers of other tasks, and computes none.
    decides_results: ClassVar[bool] = True  # Results depend on it. If not, the graph's id leaves it out.
    repeatable: ClassVar[bool] = True  # Made again, it comes out the same. If not, nobody calls another result broken.
    exclusive: ClassVar[bool] = False  # It measures the machine: nothing else of its run is computed meanwhile.
    numbers: ClassVar[tuple[str, ...]] = ()  # Its files without its model, for kinds that write one.
    usual_work: ClassVar[int] = 1  # Which of two tasks starts first where their costs do not decide: that with more.
    bytes_a_second: ClassVar[float | None] = None  # What one core reads; None: as much as it copies.

    def to_json(self) -> dict[str, Any]:
        """The `params` of its task."""
        return self.model_dump(mode="json", exclude_none=True)

    def model(self) -> LayerPlanShape | str | Architecture | None:
        """The model that it makes; a text: the role of the input whose layers it has. None where it makes none."""
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
