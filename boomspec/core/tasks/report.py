"""The kinds `report` and `comparison`: the numbers of one experiment, or of all of a spec, on a page."""

from typing import Literal

from boomspec.core.tasks.record import Record
from boomspec.core.types import Strict

Series = Literal[
    "teacher",
    "student",
    "phase",
    "interpolated",
    "naive_pruning",
    "random_init",
    "standard_distillation",
    "shortgpt",
    "laco",
    "contiguous_drop",
    "contiguous_distilled",
    "linear_patch",
    "cross_patching",
]


class Cell(Strict):
    """One number to be on the report: which model, measured how, and the input that holds it."""

    series: Series
    layers: int
    parameters: int
    bytes: int
    measure: str  # "held_out", or what the lm-eval task is called; of `deployed` the kind of the task
    input: str
    task: str | None = None  # the lm-eval task's own name, where it is called otherwise
    phase: str | None = None  # of the series "phase": the name of the one that the student has just ended


class Begun(Strict):
    """A phase of a training, and the step with which it begins."""

    name: str
    step: int


class Report(Record):
    """Inputs: one per cell, the trainings whose curves are drawn, the searches that are shown, the transfer."""

    kind, version = "report", 1
    reads_models = False
    shows_numbers = True

    cells: tuple[Cell, ...]
    trainings: dict[str, str]  # label -> input
    searches: dict[str, str] = {}  # noqa: RUF012 - pydantic copies defaults; label -> input
    deployed: tuple[Cell, ...] | None = None  # what is no quality: speed and memory, and texts; None: nothing
    transfer: str | None = None  # input: how the student was made, where it was by a transfer
    phases: dict[str, tuple[Begun, ...]] | None = None  # label of a training -> its phases


class Compared(Strict):
    """One experiment of a comparison: its coordinates ({"variant": "no-kl", "seed": "1"}) and its numbers."""

    label: str
    axes: dict[str, str]
    cells: tuple[Cell, ...]
    deployed: tuple[Cell, ...] | None = None  # as of a report


class Comparison(Record):
    """The experiments of one spec on one page. Inputs: those of the cells."""

    kind, version = "comparison", 1
    reads_models = False
    shows_numbers = True

    experiments: tuple[Compared, ...]


def shown_measure(measured: str, *, task: str | None, called: str) -> str:
    """What pages and tables call a measure, where a spec asks one lm-eval task in several ways.

    `measured`: its name in lm-eval, the task's own or that of a member. `called`: the name in the spec.
    """
    if task in (None, called):
        return measured
    if measured == task:
        return called
    return f"{measured}{called.removeprefix(task)}" if called.startswith(f"{task} (") else f"{measured} ({called})"
