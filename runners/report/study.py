"""The numbers of one experiment or several: the values from which figures, tables and sentences are made.

Vocabulary: a *cell* is one model measured in one way; it gives one row per metric, and more when its measure is an
lm-eval group (one per subtask, too). A *trial* is one experiment as it was read; a *group* is the trials that differ in
their seed only; a *curve* is what a group's numbers lie on: the family (student, interpolated sizes, teacher) or one
baseline; a *size* is a place on a curve that other groups may have, too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from boomspec.core.tasks import Cell
from boomspec.core.tasks.report import Begun
from runners.runtime.statistics import deviation

SERIES = {  # in the order in which they are shown
    "student": "student",
    "phase": "student after a phase",
    "interpolated": "interpolated",
    "teacher": "teacher",
    "naive_pruning": "naive pruning",
    "shortgpt": "ShortGPT",
    "laco": "LaCo",
    "standard_distillation": "standard distillation",
    "random_init": "random initialisation",
    "contiguous_drop": "contiguous drop",
    "contiguous_distilled": "contiguous drop, distilled",
    "linear_patch": "LinearPatch",
    "cross_patching": "cross-patching",
}
SEED = "seed"  # the axis whose values repeat an experiment
VARIANT, BASE = "variant", "base"
FAMILY = "family"
_FAMILY = ("student", "interpolated", "teacher")
UNITS = {
    "loss": "nats per token",
    "bits_per_byte": "bits per byte",
    "decode_tokens_per_second": "tokens/s",
    "prefill_tokens_per_second": "tokens/s",
    "first_token_seconds": "s",
    "peak_memory_bytes": "bytes",
    "weight_bytes": "bytes",
    "cache_bytes": "bytes",
}
SPEED = "speed"  # what cells are called that are no quality; others hold texts
MOST_IN_RANGE = 4  # of fewer than five values the standard deviation says little


class Size(NamedTuple):
    """A place on a curve. `nth` tells apart two members with as many layers."""

    layers: int
    nth: int = 0

    def __str__(self) -> str:
        return f"{self.layers} layers" + (f" ({self.nth + 1})" if self.nth else "")


@dataclass(frozen=True, eq=False)
class Row:
    """One number. `metric` is lm-eval's name, followed by a comma and its filter unless that is "none"."""

    cell: Cell
    size: Size
    artifact: Path
    yardstick: str  # what it was measured with: numbers of two yardsticks are not compared
    measure: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    note: str = ""  # what a reader has to know, such as contexts that were cut
    items: pd.DataFrame | None = None  # what it is the weighted mean of: columns item, weight, value


@dataclass(frozen=True)
class Missing:
    """A result that there is not: a whole cell, or those metrics of one measure in it that are not finite."""

    cell: Cell
    size: Size
    measure: str
    reason: str
    metrics: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        metrics = f" {', '.join(self.metrics)}" if self.metrics else ""
        return f"{series_name(self.cell)}, {self.cell.layers} layers, {self.measure}{metrics}"

    def concerns(self, measure: str, metric: str) -> bool:
        return self.measure == measure and (not self.metrics or metric in self.metrics)


class Text(NamedTuple):
    """A text that a model wrote. `ended`: by the model; else it was cut."""

    prompt: str
    sample: int
    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Written:
    """What one model wrote. `chat`: whether prompts stood in the chat template."""

    cell: Cell
    size: Size
    chat: bool
    texts: tuple[Text, ...]

    @property
    def model(self) -> str:
        """The model's label: "student", "interpolated 24 layers"."""
        return model_of(self.cell)


@dataclass(frozen=True)
class TrainingCurves:
    """`steps` as logged; `pairs`: cosine similarity of aligned states before and after (distillation only).

    `terms`: of the loss at the first step (`runners.report.loss_terms`). `phases`: where each has begun; of a training
    in one piece none. `held_out`: losses in front of steps and after the last one, in nats per token, where they were
    asked for: {"step": 50, "student": 3.2, "24 layers": 3.0}.
    """

    label: str
    steps: tuple[dict[str, float], ...]
    pairs: tuple[dict[str, Any], ...] = ()
    terms: tuple[dict[str, Any], ...] = ()
    phases: tuple[Begun, ...] = ()
    held_out: tuple[dict[str, float], ...] = ()


@dataclass(frozen=True)
class PatchSearch:
    """What a search for the patch order has tried: KL to the teacher by number of patched blocks."""

    label: str
    values: tuple[float, ...]  # of the chosen sets of 0, 1, 2, ... blocks
    sequential: dict[str, tuple[float, ...]]  # the same for the two sequential orders, by name
    candidates: tuple[tuple[int, float], ...]  # patched blocks, KL


class Point:
    """One metric of one size of one group: a row for each seed that has an artifact of its own."""

    def __init__(self, rows: Iterable[Row]) -> None:
        by_artifact = {row.artifact: row for row in rows}  # seeds that share an artifact are one value
        self.artifacts = frozenset(by_artifact)
        self.values = tuple(row.value for row in by_artifact.values())
        self.mean = float(np.mean(self.values))
        self.parameters = float(np.mean([row.cell.parameters for row in by_artifact.values()]))
        self.deviation = deviation(self.values) if len(self.values) > 1 else None
        self.spread: tuple[float, float] | None = None  # lowest and highest; of many, mean -+ standard deviation
        self.few = len(self.values) <= MOST_IN_RANGE
        if (reach := self.deviation) is not None:
            self.spread = (min(self.values), max(self.values)) if self.few else (self.mean - reach, self.mean + reach)


@dataclass(frozen=True, eq=False)
class Trial:
    """One experiment. `cells`: what its spec asks for, whether there are results or not.

    speeds: speed and memory of models, no quality: rows of the measure SPEED, whose `yardstick` says on what and how
    they were measured. written: the texts of models.
    """

    label: str
    axes: dict[str, str]
    cells: dict[Cell, Size]
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...] = ()
    speeds: tuple[Row, ...] = ()
    written: tuple[Written, ...] = ()

    def series(self, name: str, measure: str, metric: str) -> list[Row]:
        """The rows of FAMILY or of one series, by parameters."""
        wanted = _FAMILY if name == FAMILY else (name,)
        own = (row for row in self.rows if (row.measure, row.metric) == (measure, metric) and row.cell.series in wanted)
        return sorted(own, key=lambda row: (row.cell.parameters, row.cell.layers))


class Group:
    """The trials at one point of all axes but the seed."""

    def __init__(self, label: str, axes: dict[str, str], trials: Sequence[Trial]) -> None:
        self.label, self.axes, self.trials = label, axes, trials
        self.rows = [row for trial in trials for row in trial.rows]
        # Whether there is a result of a model of its own: teacher and baselines may be those of other groups.
        self.has_family = any(row.cell.series in ("student", "interpolated") for row in self.rows)
        found: dict[tuple[str, str, str], dict[Size, list[Row]]] = {}
        for row in self.rows:
            key = curve_of(row.cell), row.measure, row.metric
            found.setdefault(key, {}).setdefault(row.size, []).append(row)
        self._points = {k: {size: Point(rows) for size, rows in sorted(sizes.items())} for k, sizes in found.items()}

    def points(self, measure: str, metric: str, curve: str = FAMILY) -> dict[Size, Point]:
        """What the seeds give, by size."""
        return self._points.get((curve, measure, metric), {})

    def yardsticks(self, measure: str) -> frozenset[str]:
        """What the group was measured with: one, unless its seeds were measured differently."""
        return frozenset(row.yardstick for row in self.rows if row.measure == measure)

    def baselines(self, measure: str) -> tuple[str, ...]:
        """The baselines that have a result."""
        series = (row.cell.series for row in self.rows if row.measure == measure)
        return tuple(dict.fromkeys(name for name in series if name not in _FAMILY))


class Study:
    """The trials and their groups, in the order of the spec; the values of each axis (none of one experiment).

    measures: those that the specs ask for, the held-out text first; a tag of lm-eval counts as its tasks.
    primary: by measure the metric that is drawn and compared: the first that has a standard error, else the first.
    seeds: the smallest and the largest number of trials in a group. swept: the axes that tell groups apart.
    deltas: of a weight-delta transfer, by groups of tensors (`boomspec.models.transfer.Sums`).
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        axes: Mapping[str, Sequence[str]],
        trainings: Sequence[TrainingCurves] = (),
        searches: Sequence[PatchSearch] = (),
        deltas: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.deltas = deltas
        self.trials, self.axes, self.trainings, self.searches = trials, axes, trainings, searches
        self.rows = [row for trial in trials for row in trial.rows]
        self.speeds = [row for trial in trials for row in trial.speeds]
        self.missing = [(trial, missing) for trial in trials for missing in trial.missing]
        by_axes: dict[tuple[tuple[str, str], ...], list[Trial]] = {}
        for trial in trials:
            by_axes.setdefault(tuple((k, v) for k, v in trial.axes.items() if k != SEED), []).append(trial)
        label = {at: ",".join(v if k == VARIANT else f"{k}={v}" for k, v in at) or "every seed" for at in by_axes}
        self.groups = [Group(label[at], dict(at), members) for at, members in by_axes.items()]
        self.seeds = min(map(len, by_axes.values()), default=0), max(map(len, by_axes.values()), default=0)
        self.swept = [name for name in axes if name != SEED]
        asked: dict[str, None] = {}
        for trial in trials:
            for cell in dict.fromkeys(row.cell for row in trial.rows):
                own = dict.fromkeys(row.measure for row in trial.rows if row.cell == cell)
                asked |= {cell.measure: None} if cell.measure in own else own
        self.measures = sorted(asked, key=lambda name: name != "held_out")
        by_stderr = [row for trial in trials for row in sorted(trial.rows, key=lambda row: row.stderr is None)]
        self.primary = {row.measure: row.metric for row in reversed(by_stderr)}
        known = [(row.measure, row.metric, row.higher_is_better) for row in (*self.rows, *self.speeds)]
        self._better = {(m, metric): better for m, metric, better in reversed(known) if better is not None}

    @property
    def texts(self) -> dict[str, tuple[Text, ...]]:
        """The texts by the label of the model: "teacher"; of several experiments "no-kl: teacher"."""
        before = {trial.label: f"{trial.label}: " if self.axes else "" for trial in self.trials}
        return {before[trial.label] + one.model: one.texts for trial in self.trials for one in trial.written}

    @property
    def machines(self) -> tuple[str, ...]:
        """On what, and how, speed and memory were measured. Numbers of two of these are not compared."""
        return tuple(dict.fromkeys(row.yardstick for row in self.speeds))

    def higher_is_better(self, measure: str, metric: str = "") -> bool:
        """What the measure itself says of a metric (by default the primary one); where it says nothing, True."""
        return self._better.get((measure, metric or self.primary[measure]), True)

    def sign(self, measure: str) -> float:
        """1 where a higher value of the primary metric is better, else -1."""
        return 1.0 if self.higher_is_better(measure) else -1.0

    def arrow(self, measure: str, metric: str = "") -> str:
        return "↑" if self.higher_is_better(measure, metric) else "↓"

    def name(self, measure: str) -> str:
        """A measure's name for people: "held-out loss", "arc_easy acc"."""
        return f"{'held-out' if measure == 'held_out' else measure} {self.primary[measure]}"

    def unit(self, measure: str, before: str = "") -> str:
        """The unit of the primary metric, with `before` in front; empty where it has none."""
        return f"{before}{UNITS[metric]}" if (metric := self.primary[measure]) in UNITS else ""

    def points(self, group: Group, measure: str, curve: str = FAMILY) -> dict[Size, Point]:
        """A group's points of a measure's primary metric."""
        return group.points(measure, self.primary[measure], curve)

    def sizes(self, measure: str) -> tuple[Size, ...]:
        """The sizes that any family has."""
        return tuple(sorted({size for group in self.groups for size in self.points(group, measure)}))

    def reference(self, group: Group) -> Group | None:
        """What a group is compared with: the file's own experiment at the same point, else the first group.

        Where that has no results, the first one that has some: one that failed does not keep the others apart.
        """
        found = wanted = self._wanted_reference(group)
        if wanted is not None and not wanted.has_family:
            point = {**wanted.axes, VARIANT: ""}  # without variants all groups stand in for each other
            alike = (g for g in self.groups if VARIANT not in wanted.axes or {**g.axes, VARIANT: ""} == point)
            found = next((other for other in alike if other.has_family), wanted)
        # What a failed group shares with another, such as its teacher, says nothing about the two.
        failed = found is not None and found.has_family and not group.has_family
        return None if found is group or failed else found

    @property
    def stand_ins(self) -> dict[str, str]:
        """By label of a reference without results: the group that stands in for it."""
        pairs = [(self._wanted_reference(group), self.reference(group)) for group in self.groups]
        return {wanted.label: other.label for wanted, other in pairs if wanted and other and wanted is not other}

    def _wanted_reference(self, group: Group) -> Group | None:
        axes = {**group.axes, VARIANT: BASE} if VARIANT in group.axes else self.groups[0].axes
        return next((other for other in self.groups if other.axes == axes), None)


def series_name(cell: Cell) -> str:
    """What a model's series is called: "interpolated", "student after phase web"."""
    return SERIES[cell.series] if cell.phase is None else f"student after phase {cell.phase}"


def curve_of(cell: Cell) -> str:
    return FAMILY if cell.series in _FAMILY else cell.series


def model_of(cell: Cell) -> str:
    """What tells a cell's model from others: two members of a family may have one size."""
    return cell.input.rpartition("/")[0]
