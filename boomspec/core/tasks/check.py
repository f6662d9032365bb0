"""The kind `check`: every size of a family is tried on tiny random weights before anything is trained."""

from typing import Literal

from boomspec.core.layers import PlanText
from boomspec.core.tasks.record import Record
from boomspec.core.types import Strict


class Outline(Strict):
    """A model without its weights."""

    config: str  # as JSON
    tensors: tuple[str, ...]  # rows of `boomspec.models.outline`
    tied: bool  # its head is its embedding: not where its files hold another head, whatever the config says


class BuiltSize(Strict):
    """A model that is to be built: its layer plan, and whether head and embedding are one."""

    plan: PlanText
    tied: bool


class Check(Record):
    """Inputs: `teacher` and `student` (sources) where these bring code of their own, which then runs; else none."""

    kind, version = "check", 1
    reads_models = False
    decides_results = False  # no other task reads its result

    teacher: Outline
    student: Outline | None = None  # one that exists; else it begins as the teacher's `kept` layers
    kept: tuple[int, ...]
    sizes: tuple[BuiltSize, ...]
    alone: Literal[True] | None = None  # layers of the teacher are run and trained by themselves, too
    apart: Literal[True] | None = None  # documents of one row are kept apart, too
    merged: Literal[True] | None = None  # layers of the teacher are added up, too: all must be of one kind
    transformers: str  # its version: what is asked is what its classes do
