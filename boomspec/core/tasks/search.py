"""The kind `search`: a choice of layers or of a patch order that needs data."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from boomspec.core.tasks.recipe import Determinism, Precision
from boomspec.core.tasks.record import Record
from boomspec.core.types import Strict


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
    usual_work: ClassVar[int] = 100

    choice: Annotated[PatchOrder | LayerChoice, Discriminator("type")]
    calibration: Calibration
    precision: Precision
    determinism: Determinism | None = None
