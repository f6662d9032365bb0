"""The task kinds: one frozen record each, holding exactly what identifies its result.

A record is the `params` of a task. Where its inputs come from (other tasks, sources), where it runs and
what it is called are not here: they live in the graph, outside the identity. `version` is part of the
identity: raise it when the body of a kind (in `runners/tasks/<kind>.py`) starts to give other results.

Layer plans are written as owner and index: "t4" is teacher layer 4, "s2" is student layer 2.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from boomspec.core.checks import Check
from boomspec.core.losses import Losses
from boomspec.core.task_record import Record as Record
from boomspec.core.types import Strict

Precision = Literal["fp32", "bf16"]
Algorithms = Literal["deterministic", "strict", "any"]


class Determinism(Strict):
    """Which kernels a task computes with (`runners.runtime.device.kernels`). Records leave it out for the defaults."""

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

    @property
    def tokens(self) -> int:
        return self.steps * self.sequences * self.sequence_length


class TrainTokenizer(Strict):
    """A byte-level BPE tokenizer of `vocabulary` entries, trained on the first `bytes` bytes of the text."""

    vocabulary: int
    bytes: int


class Tokenize(Record):
    """Sources: `text`, `tokenizer` (not with `train_tokenizer`), `held_out` (only where it has files of its own)."""

    kind: ClassVar[str] = "tokenize"
    version: ClassVar[int] = 2

    text_field: str
    train_tokenizer: TrainTokenizer | None = None
    skip: int  # documents passed over at the start
    max_tokens: int | None = None  # training tokens; None takes every document
    held_out_every: int  # every n-th document is held out; 0 holds out none
    held_out_offset: int
    bos: bool | None = None  # whether a document begins with the token for that; None: as the tokenizer itself does it
    on_bad_row: Literal["skip"] | None = None  # None: a row without text is an error


class Dequantize(Record):
    """A model that is quantised, written out in `dtype`, its config without quantisation. Inputs: `model` (source)."""

    kind: ClassVar[str] = "dequantize"
    version: ClassVar[int] = 1

    dtype: Literal["bfloat16", "float16", "float32"]


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

    architecture: Architecture
    recipe: Recipe
    determinism: Determinism | None = None


class Faithful(Strict):
    """What the published code (arXiv 2510.05064) does otherwise; see `boomspec.spec.sections.training.FaithfulSpec`."""

    padding: bool
    kl_on_padding: bool
    summed_micro_batches: int


class Distill(Record):
    """Inputs: `teacher` (source or task), `tokens`."""

    kind: ClassVar[str] = "distill"
    version: ClassVar[int] = 2

    kept: tuple[int, ...]
    initial: Literal["teacher", "random"]
    train_embedding: bool
    losses: Losses
    recipe: Recipe
    faithful: Faithful | None = None
    determinism: Determinism | None = None


class Calibration(Strict):
    """Windows of the training text on which a search measures: the first `sequences` of the seeded order."""

    sequences: int
    sequence_length: int
    seed: int


class PatchOrder(Strict):
    """Choose, for every number of patched blocks, which ones (arXiv 2607.08170). Inputs: teacher, student, tokens.

    klpatch: greedy; at each size the block whose patching leaves the smallest KL to the teacher.
    beam: the `width` best sets of each size are extended. exact: every subset of the patchable blocks.
    """

    type: Literal["patch_order"] = "patch_order"
    method: Literal["klpatch", "beam", "exact"]
    kept: tuple[int, ...]
    width: int | None = None
    direction: Literal["teacher_to_candidate", "candidate_to_teacher"]  # KL(first || second)
    positions: Literal["all", "last"]
    reduction: Literal["token_mean", "sequence_max"]


class LayerChoice(Strict):
    """Score the teacher's layers and keep `count` of them. Inputs: teacher, tokens.

    block_influence: BI_l = 1 - E[cos(x_l, x_{l+1})] (ShortGPT, arXiv 2403.03853); the highest are kept.
    cosine_greedy: layers are dropped one by one, each time the one whose absence leaves the final hidden
    state most similar to the teacher's.
    """

    type: Literal["layer_choice"] = "layer_choice"
    method: Literal["block_influence", "cosine_greedy"]
    count: int


class Search(Record):
    """A choice that needs data. Writes `search.json`; the compiler reads it and goes on with integers."""

    kind: ClassVar[str] = "search"
    version: ClassVar[int] = 1

    choice: Annotated[PatchOrder | LayerChoice, Discriminator("type")]
    calibration: Calibration
    precision: Precision
    determinism: Determinism | None = None


class Interpolate(Record):
    """Inputs: `teacher`, `student`. `tied`: the result shares embedding and head, as the teacher does."""

    kind: ClassVar[str] = "interpolate"
    version: ClassVar[int] = 2

    plan: tuple[str, ...]
    tied: bool
    rest: Literal[True] | None = None  # with the teacher's other parts, as the model that the teacher is


class Subset(Strict):
    """Some of the teacher's layers, as they are (naive pruning, ShortGPT). Inputs: `teacher`."""

    type: Literal["subset"] = "subset"
    plan: tuple[str, ...]
    rest: Literal[True] | None = None  # as of an interpolation


class LaCo(Strict):
    """Layers collapsed into one, W_l + sum_k (W_{l+k} - W_l), until `layers` are left (arXiv 2402.11187).

    Slides from the top: `merge` following layers are collapsed into one, and the merge is kept while the final
    hidden states' mean cosine to the teacher's on the calibration text is above `threshold`; after a merge that
    is kept the pointer moves down by `interval` layers, else by one. Inputs: `teacher`, `tokens`.
    """

    type: Literal["laco"] = "laco"
    layers: int
    merge: int
    lowest: int  # layers [lowest, highest) may be merged
    highest: int
    interval: int
    threshold: float
    calibration: Calibration
    precision: Precision
    determinism: Determinism | None = None


class Baseline(Record):
    """A model made without training."""

    kind: ClassVar[str] = "baseline"
    version: ClassVar[int] = 2

    build: Annotated[Subset | LaCo, Discriminator("type")]


class HeldOut(Strict):
    """Loss per token, perplexity and bits per byte of the held-out text, in windows of `sequence_length`."""

    type: Literal["held_out"] = "held_out"
    sequence_length: int
    max_tokens: int | None = None


class LmEval(Strict):
    """One lm-eval task. What cannot change its numbers is left out (see `boomspec.compile.lm_eval_chance`)."""

    type: Literal["lm_eval"] = "lm_eval"
    task: str
    num_fewshot: int | None = None  # None: what the task says
    limit: int | None = None  # first n documents; None takes all
    seed: int | None = None  # None: nothing is drawn at random
    bootstrap_iters: int | None = None  # None: no standard error is bootstrapped; 0: there are none at all


class Evaluate(Record):
    """Inputs: `model`; `tokens` for held-out text, `tasks` (source) for lm-eval."""

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2

    measure: Annotated[HeldOut | LmEval, Discriminator("type")]
    precision: Precision
    determinism: Determinism | None = None


Series = Literal[
    "teacher", "student", "interpolated", "naive_pruning", "random_init", "standard_distillation", "shortgpt", "laco"
]


class Cell(Strict):
    """One number to be on the report: which model, measured how, and the input that holds it."""

    series: Series
    layers: int
    parameters: int
    bytes: int
    measure: str  # "held_out", or what the lm-eval task is called
    input: str
    task: str | None = None  # the lm-eval task's own name, where it is called otherwise


class Report(Record):
    """Inputs: one per cell, the trainings whose curves are drawn, the searches that are shown."""

    kind: ClassVar[str] = "report"
    version: ClassVar[int] = 1

    cells: tuple[Cell, ...]
    trainings: dict[str, str]  # label -> input
    searches: dict[str, str] = {}  # noqa: RUF012 - pydantic copies defaults; label -> input


class Compared(Strict):
    """One experiment of a comparison: its coordinates ({"variant": "no-kl", "seed": "1"}) and its numbers."""

    label: str
    axes: dict[str, str]
    cells: tuple[Cell, ...]


class Comparison(Record):
    """The experiments of one spec on one page. Inputs: those of the cells."""

    kind: ClassVar[str] = "comparison"
    version: ClassVar[int] = 1

    experiments: tuple[Compared, ...]


_RECORDS = (Dequantize, Tokenize, Pretrain, Check, Distill, Search, Interpolate, Baseline, Evaluate, Report, Comparison)
KINDS: dict[str, type[Record]] = {record.kind: record for record in _RECORDS}
