"""Read what a comparison shows: the numbers of every experiment, and which experiments differ in their seed only.

In: a `comparison` record and, for each of its inputs, a folder or the reason why there is none.
Out: a `Study`, plain values that figures, tables and findings are made from. Draws and judges nothing.

Vocabulary: a *trial* is one experiment as it was read; a *group* is the trials that differ in their seed only;
a *curve* is what a group's numbers lie on: the family (student, interpolated sizes, teacher) or one baseline;
a *size* is a place on a curve that other groups may have, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from boomspec.core.tasks import Cell, Comparison
from runners.report.collect import Find, Missing, Results, Row, collect_cells, measured

SEED = "seed"  # the axis whose values repeat an experiment
VARIANT, BASE = "variant", "base"
FAMILY = "family"
_FAMILY = ("student", "interpolated", "teacher")
_OWN = ("student", "interpolated")
MOST_IN_RANGE = 4  # of fewer than five values the standard deviation says little


class Size(NamedTuple):
    """A place on a curve. `nth` tells two members of as many layers apart."""

    layers: int
    nth: int = 0

    def __str__(self) -> str:
        return f"{self.layers} layers" + (f" ({self.nth + 1})" if self.nth else "")


@dataclass(frozen=True)
class Point:
    """One metric of one size of one group: a value for each seed whose artifact is its own."""

    parameters: float
    values: tuple[float, ...]
    artifacts: frozenset[Path]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def spread(self) -> tuple[float, float] | None:
        """Lowest and highest value of up to four, mean -+ standard deviation of more; None of one."""
        if len(self.values) < 2:
            return None
        if len(self.values) <= MOST_IN_RANGE:
            return min(self.values), max(self.values)
        return self.mean - self.deviation, self.mean + self.deviation

    @property
    def deviation(self) -> float:
        """The standard deviation of the values, as an estimate of that of all seeds."""
        return float(np.std(self.values, ddof=1))


@dataclass(frozen=True)
class Trial:
    """One experiment; of each cell that is not missing, which artifact holds it, and with what it was measured."""

    label: str
    axes: dict[str, str]
    results: Results
    sizes: dict[Cell, Size]
    artifacts: dict[Cell, Path]
    yardsticks: dict[Cell, str]

    @property
    def seed(self) -> str:
        return self.axes.get(SEED, "")

    @cached_property
    def _curves(self) -> dict[tuple[str, str, str], dict[Size, Row]]:
        curves: dict[tuple[str, str, str], dict[Size, Row]] = {}
        for row in self.results.rows:
            curves.setdefault((curve_of(row.cell), row.measure, row.metric), {})[self.sizes[row.cell]] = row
        return {key: dict(sorted(rows.items())) for key, rows in curves.items()}

    def curve(self, curve: str, measure: str, metric: str) -> dict[Size, Row]:
        """The rows of FAMILY or of one baseline, by size."""
        return self._curves.get((curve, measure, metric), {})


@dataclass(frozen=True)
class Group:
    """The trials at one point of all axes but the seed."""

    label: str
    axes: dict[str, str]
    trials: tuple[Trial, ...]
    _known: dict[tuple[str, str, str], dict[Size, Point]] = field(default_factory=dict, init=False, repr=False)

    def points(self, measure: str, metric: str, curve: str = FAMILY) -> dict[Size, Point]:
        """What the seeds give, by size. Seeds that share an artifact are one value: it is not repeated."""
        key = measure, metric, curve
        if key not in self._known:  # a page asks for them many times
            self._known[key] = self._points(*key)
        return self._known[key]

    def _points(self, measure: str, metric: str, curve: str) -> dict[Size, Point]:
        found: dict[Size, dict[Path, Row]] = {}
        for trial in self.trials:
            for size, row in trial.curve(curve, measure, metric).items():
                found.setdefault(size, {})[trial.artifacts[row.cell]] = row
        return {size: _point(rows) for size, rows in sorted(found.items())}

    @cached_property
    def has_family(self) -> bool:
        """Whether there is a result of a model of its own: the teacher and baselines may be those of others."""
        return any(row.cell.series in _OWN for trial in self.trials for row in trial.results.rows)

    @cached_property
    def asked(self) -> frozenset[Size]:
        """The sizes of the family that the spec asks for, whether there are results or not."""
        return frozenset(
            size for trial in self.trials for cell, size in trial.sizes.items() if curve_of(cell) == FAMILY
        )

    def yardsticks(self, measure: str) -> frozenset[str]:
        """With what the group was measured: one, unless its seeds were measured differently."""
        rows = ((trial, row) for trial in self.trials for row in trial.results.rows if row.measure == measure)
        return frozenset(trial.yardsticks[row.cell] for trial, row in rows)

    def baselines(self, measure: str) -> tuple[str, ...]:
        """The baselines that have a result."""
        rows = (row for trial in self.trials for row in trial.results.rows if row.measure == measure)
        return tuple(dict.fromkeys(row.cell.series for row in rows if row.cell.series not in _FAMILY))


@dataclass(frozen=True)
class Study:
    """All trials and their groups, in the order of the spec. `axes`: the values of each axis."""

    trials: tuple[Trial, ...]
    groups: tuple[Group, ...]
    axes: dict[str, tuple[str, ...]]
    compared: dict[tuple[str, str, str], Any] = field(default_factory=dict, init=False, repr=False)  # by `differences`

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """The measures that any trial has, the held-out text first."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.results.measures)
        return tuple(sorted(names, key=lambda name: name != "held_out"))

    @cached_property
    def _primary(self) -> dict[str, tuple[str, bool]]:
        found: dict[str, tuple[str, bool]] = {}
        for trial in self.trials:
            for measure in trial.results.measures:
                if measure not in found:
                    metric = trial.results.primary(measure)
                    found[measure] = metric, trial.results.higher_is_better(measure, metric)
        return found

    def primary(self, measure: str) -> str:
        """The metric that is drawn and compared."""
        return self._primary[measure][0]

    def higher_is_better(self, measure: str) -> bool:
        return self._primary[measure][1]

    def points(self, group: Group, measure: str, curve: str = FAMILY) -> dict[Size, Point]:
        """A group's points of a measure's primary metric."""
        return group.points(measure, self.primary(measure), curve)

    def sizes(self, measure: str) -> tuple[Size, ...]:
        """The sizes that any family has."""
        return tuple(sorted({size for group in self.groups for size in self.points(group, measure)}))

    def reference(self, group: Group) -> Group | None:
        """What a group is compared with: the file's own experiment at the same point, else the first group.

        Where that has no results, the first one that has some: what has failed does not keep others from each other.
        """
        found = self._asked_for(group)
        if found is not None and not found.has_family:
            found = next((other for other in self.groups if other.has_family and _alike(other, found)), found)
        # What a failed one shares with another, such as its teacher, says nothing about the two.
        failed = found is not None and found.has_family and not group.has_family
        return None if found is group or failed else found

    @property
    def stand_ins(self) -> dict[str, str]:
        """Of groups without results with which others were to be compared: what they are compared with, by label."""
        pairs = [(self._asked_for(group), self.reference(group)) for group in self.groups]
        return {asked.label: other.label for asked, other in pairs if asked and other and asked is not other}

    def _asked_for(self, group: Group) -> Group | None:
        axes = {**group.axes, VARIANT: BASE} if VARIANT in group.axes else self.groups[0].axes
        return next((other for other in self.groups if other.axes == axes), None)

    @property
    def missing(self) -> tuple[tuple[Trial, Missing], ...]:
        return tuple((trial, missing) for trial in self.trials for missing in trial.results.missing)

    @property
    def seeds(self) -> tuple[int, int]:
        """The smallest and the largest number of trials in a group."""
        counts = [len(group.trials) for group in self.groups]
        return min(counts, default=0), max(counts, default=0)

    @property
    def swept(self) -> tuple[str, ...]:
        """The axes that tell groups apart."""
        return tuple(name for name in self.axes if name != SEED)


def study(record: Comparison, find: Find) -> Study:
    """Read the artifacts of all experiments. Raises nothing for what is missing: it is listed."""
    read, measured_with = cache(measured), cache(_yardstick)  # experiments share artifacts
    trials: list[Trial] = []
    for experiment in record.experiments:
        folders = {cell: find(f"{experiment.label}/{cell.input}") for cell in experiment.cells}
        roles = {cell.input: folder for cell, folder in folders.items()}
        results = collect_cells(experiment.cells, roles.__getitem__, read)
        made = {cell: folder for cell, folder in folders.items() if isinstance(folder, Path)}
        yardsticks = {cell: measured_with(folder) for cell, folder in made.items()}
        sizes = _sizes(experiment.cells)
        trials.append(Trial(experiment.label, experiment.axes, results, sizes, made, yardsticks))
    axes: dict[str, dict[str, None]] = {}
    for trial in trials:
        for name, value in trial.axes.items():
            axes.setdefault(name, {})[value] = None
    return Study(tuple(trials), _groups(trials), {name: tuple(values) for name, values in axes.items()})


def _alike(one: Group, other: Group) -> bool:
    """Whether two groups are at the same point, but for their variant; without variants all are."""
    if VARIANT not in one.axes:
        return True
    return {**one.axes, VARIANT: ""} == {**other.axes, VARIANT: ""}


def _yardstick(folder: Path) -> str:
    """What a model was measured with: the held-out text and its windows, or the lm-eval task and how it was asked.

    Numbers of different yardsticks are not to be compared. Another amount of data, say, can hold out other text.
    """
    task = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["task"]
    measure = {name: value for name, value in task["params"]["measure"].items() if name != SEED}
    if measure["type"] == "held_out":
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))["configs"]["held_out"]
        return json.dumps([measure["sequence_length"], found["tokens"], found["bytes"]])
    return json.dumps([measure, task["inputs"]["tasks"]], sort_keys=True)


def _groups(trials: Iterable[Trial]) -> tuple[Group, ...]:
    found: dict[tuple[tuple[str, str], ...], list[Trial]] = {}
    for trial in trials:
        found.setdefault(tuple((k, v) for k, v in trial.axes.items() if k != SEED), []).append(trial)
    return tuple(Group(_label(dict(axes)), dict(axes), tuple(members)) for axes, members in found.items())


def _label(axes: dict[str, str]) -> str:
    return ",".join(v if k == VARIANT else f"{k}={v}" for k, v in axes.items()) or "every seed"


def curve_of(cell: Cell) -> str:
    return FAMILY if cell.series in _FAMILY else cell.series


def _sizes(cells: Iterable[Cell]) -> dict[Cell, Size]:
    """The size of each cell; from all cells, so that one that is missing does not rename its twin."""
    seen: Counter[tuple[str, str, int]] = Counter()
    sizes: dict[Cell, Size] = {}
    for cell in cells:
        place = curve_of(cell), cell.measure, cell.layers
        sizes[cell] = Size(cell.layers, seen[place])
        seen[place] += 1
    return sizes


def _point(rows: Mapping[Path, Row]) -> Point:
    parameters = float(np.mean([row.cell.parameters for row in rows.values()]))
    return Point(parameters, tuple(row.value for row in rows.values()), frozenset(rows))
