"""The task kinds: one frozen record each, holding exactly what identifies its result.

A record is the `params` of a task. Where its inputs come from (other tasks, sources), where it runs and
what it is called are not here: they live in the graph, outside the identity. `version` is part of the
identity: raise it when the body of a kind (in `runners/tasks/<kind>.py`) starts to give other results.

Layer plans are written as owner and index: "t4" is teacher layer 4, "s2" is student layer 2.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from boomspec.fields import Strict
from boomspec.losses import Losses

Precision = Literal["fp32", "bf16"]


class Record(Strict):
    """Parameters of one task. Subclasses set `kind` and `version`."""

    kind: ClassVar[str]
    version: ClassVar[int]


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

    @property
    def tokens(self) -> int:
        return self.steps * self.sequences * self.sequence_length


class TrainTokenizer(Strict):
    """A byte-level BPE tokenizer of `vocabulary` entries, trained on the first `bytes` bytes of the text."""

    vocabulary: int
    bytes: int


class Tokenize(Record):
    """Inputs: `text` (source), `tokenizer` (source; absent when `train_tokenizer` is given)."""

    kind: ClassVar[str] = "tokenize"
    version: ClassVar[int] = 1

    text_field: str
    train_tokenizer: TrainTokenizer | None = None
    skip: int  # documents passed over at the start
    max_tokens: int | None = None  # training tokens; None takes every document
    held_out_every: int  # every n-th document is held out; 0 holds out none
    held_out_offset: int


class Architecture(Strict):
    """A Llama decoder (see `boomspec/architecture.py` for its tensors)."""

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

    architecture: Architecture
    recipe: Recipe


class Distill(Record):
    """Inputs: `teacher` (source or task), `tokens`."""

    kind: ClassVar[str] = "distill"
    version: ClassVar[int] = 1

    kept: tuple[int, ...]
    initial: Literal["teacher", "random"]
    train_embedding: bool
    losses: Losses
    recipe: Recipe


class Interpolate(Record):
    """Inputs: `teacher`, `student`. `tied`: the result shares embedding and head, as the teacher does."""

    kind: ClassVar[str] = "interpolate"
    version: ClassVar[int] = 1

    plan: tuple[str, ...]
    tied: bool


class Baseline(Record):
    """A model made without training. Inputs: `teacher`."""

    kind: ClassVar[str] = "baseline"
    version: ClassVar[int] = 1

    method: Literal["naive_pruning"]
    plan: tuple[str, ...]


class HeldOut(Strict):
    """Loss per token, perplexity and bits per byte of the held-out text, in windows of `sequence_length`."""

    type: Literal["held_out"] = "held_out"
    sequence_length: int
    max_tokens: int | None = None


class LmEval(Strict):
    """One lm-eval task."""

    type: Literal["lm_eval"] = "lm_eval"
    task: str
    num_fewshot: int | None = None  # None: what the task says
    limit: int | None = None  # first n documents; None takes all
    seed: int


class Evaluate(Record):
    """Inputs: `model`; `tokens` for held-out text, `tasks` (source) for lm-eval."""

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 1

    measure: Annotated[HeldOut | LmEval, Discriminator("type")]
    precision: Precision


class Cell(Strict):
    """One number to be on the report: which model, measured how, and the input that holds it."""

    series: Literal["teacher", "student", "interpolated", "naive_pruning", "random_init"]
    layers: int
    parameters: int
    bytes: int
    measure: str  # "held_out" or the lm-eval task's name
    input: str


class Report(Record):
    """Inputs: one per cell, and the trainings whose curves are drawn."""

    kind: ClassVar[str] = "report"
    version: ClassVar[int] = 1

    cells: tuple[Cell, ...]
    trainings: dict[str, str]  # label -> input


KINDS: dict[str, type[Record]] = {
    record.kind: record for record in (Tokenize, Pretrain, Distill, Interpolate, Baseline, Evaluate, Report)
}
