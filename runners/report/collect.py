"""Read what a report shows: the numbers of every cell, the trainings, and what is missing.

In: a `report` record and, for each of its inputs, a folder or the reason why there is none.
Out: `Results`, plain values that figures, tables and findings are made from. Draws and judges nothing.

Vocabulary: a *cell* is one model measured in one way; it gives one row per metric, and more when its
measure is an lm-eval group (one per subtask, too).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boomspec.core.tasks import Cell, Report
from boomspec.core.tasks.report import shown_measure

SERIES = {  # in the order in which they are shown
    "student": "student",
    "interpolated": "interpolated",
    "teacher": "teacher",
    "naive_pruning": "naive pruning",
    "shortgpt": "ShortGPT",
    "laco": "LaCo",
    "standard_distillation": "standard distillation",
    "random_init": "random initialisation",
}
HEADER = (
    "series", "layers", "parameters", "bytes", "measure", "metric", "value", "stderr", "higher_is_better", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One number. `metric` is lm-eval's name, with its filter behind a comma unless that is "none".

    `note`: what has to be known of it, such as contexts that were cut; mostly nothing.
    """

    cell: Cell
    measure: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    note: str = ""


@dataclass(frozen=True)
class Items:
    """What a row is the weighted mean of: arrays of one length, sorted by item."""

    item: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Missing:
    """A result that there is not: of a whole cell, or some metrics of one measure in it (which are not finite)."""

    cell: Cell
    reason: str
    part: str = ""  # the measure whose metrics are missing
    metrics: tuple[str, ...] = ()

    @property
    def measure(self) -> str:
        return self.part or self.cell.measure

    @property
    def name(self) -> str:
        metrics = f" {', '.join(self.metrics)}" if self.metrics else ""
        return f"{SERIES[self.cell.series]}, {self.cell.layers} layers, {self.measure}{metrics}"

    def concerns(self, measure: str, metric: str) -> bool:
        return self.measure == measure and (not self.metrics or metric in self.metrics)


@dataclass(frozen=True)
class Training:
    """`steps` as logged; `pairs`: cosine similarity of aligned states before and after (distillation only)."""

    label: str
    steps: tuple[dict[str, float], ...]
    pairs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class PatchSearch:
    """What a search for the patch order has tried. `values[k]`: KL to the teacher of the chosen set of k blocks.

    `sequential`: the same for the two sequential orders, by name.
    """

    label: str
    values: tuple[float, ...]
    sequential: dict[str, tuple[float, ...]]
    candidates: tuple[tuple[int, float], ...]  # patched blocks, KL to the teacher


@dataclass(frozen=True)
class Results:
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...] = ()
    trainings: tuple[Training, ...] = ()
    searches: tuple[PatchSearch, ...] = ()
    items: dict[tuple[Cell, str, str], Items] = field(default_factory=dict, repr=False)

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """The measures that were asked for, in their order; a tag of lm-eval counts as its tasks."""
        names: dict[str, None] = {}
        for cell in dict.fromkeys(row.cell for row in self.rows):
            own = dict.fromkeys(row.measure for row in self.rows if row.cell == cell)
            names |= {cell.measure: None} if cell.measure in own else own
        return tuple(sorted(names, key=lambda name: name != "held_out"))  # stable: the held-out text goes first

    def metrics(self, measure: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.metric for row in self.rows if row.measure == measure))

    def primary(self, measure: str) -> str:
        """The metric that is drawn: the first that has a standard error, else the first."""
        rows = [row for row in self.rows if row.measure == measure]
        return next((row.metric for row in rows if row.stderr is not None), rows[0].metric)

    def higher_is_better(self, measure: str, metric: str) -> bool:
        """What the measure itself says; where it says nothing, higher."""
        rows = (row for row in self.rows if (row.measure, row.metric) == (measure, metric))
        return next((row.higher_is_better for row in rows if row.higher_is_better is not None), True)

    def series(self, name: str, measure: str, metric: str) -> tuple[Row, ...]:
        """The rows of one series, by size."""
        wanted = (name, measure, metric)
        rows = [row for row in self.rows if (row.cell.series, row.measure, row.metric) == wanted]
        return tuple(sorted(rows, key=lambda row: (row.cell.parameters, row.cell.layers)))


@dataclass(frozen=True)
class Measured:
    """What one `evaluate` artifact holds: the lines of its table, and the items of its metrics that have some."""

    table: list[dict[str, str]]
    items: dict[tuple[str, str], Items]


Find = Callable[[str], Path | str]
"""From the role of an input to the folder of its artifact, or to the reason why there is none."""


def collect(record: Report, find: Find) -> Results:
    """Read the artifacts of all cells and trainings. Raises nothing for what is missing: it is listed."""
    results = collect_cells(record.cells, find)
    folders = {label: find(role) for label, role in record.trainings.items()}
    trainings = [_training(label, folder) for label, folder in folders.items() if isinstance(folder, Path)]
    found = {label: find(role) for label, role in record.searches.items()}
    searches = [_search(label, folder) for label, folder in found.items() if isinstance(folder, Path)]
    return replace(results, trainings=tuple(trainings), searches=tuple(s for s in searches if s))


def collect_cells(cells: Iterable[Cell], find: Find, read: Callable[[Path], Measured] | None = None) -> Results:
    """The numbers of `cells`. `read` stands in for `measured`, to read what experiments share once."""
    rows: list[Row] = []
    missing: list[Missing] = []
    items: dict[tuple[Cell, str, str], Items] = {}
    for cell in sorted(cells, key=_place):
        folder = find(cell.input)
        if isinstance(folder, str):
            missing.append(Missing(cell, folder))
            continue
        found = (read or measured)(folder)
        rows += _rows(cell, found.table)
        missing += _not_finite(cell, found.table)
        items |= {(cell, _shown(cell, name), metric): values for (name, metric), values in found.items.items()}
    return _told_apart(Results(tuple(rows), tuple(missing), items=items))


def _shown(cell: Cell, measured: str) -> str:
    return shown_measure(measured, task=cell.task, called=cell.measure)


def _told_apart(results: Results) -> Results:
    """The same numbers, where measures of one name that were asked in several ways have names of their own.

    A task may be measured by itself and as a member of a group: then that of the group has the group's name behind it.
    """
    asked = {row.cell.measure for row in results.rows} | {missing.cell.measure for missing in results.missing}
    users: dict[str, set[str]] = {}
    for row in results.rows:
        users.setdefault(row.measure, set()).add(row.cell.measure)

    def name(cell: Cell, measure: str) -> str:
        others = users.get(measure, set()) | ({measure} & asked)
        return measure if measure == cell.measure or others <= {cell.measure} else f"{measure} ({cell.measure})"

    rows = tuple(replace(row, measure=name(row.cell, row.measure)) for row in results.rows)
    missing = tuple(replace(m, part=name(m.cell, m.part)) if m.part else m for m in results.missing)
    items = {(cell, name(cell, measure), metric): values for (cell, measure, metric), values in results.items.items()}
    return replace(results, rows=rows, missing=missing, items=items)


def measured(folder: Path) -> Measured:
    """Read the folder of an `evaluate` artifact."""
    return Measured(_read_csv(folder / "table.csv"), _items(folder / "items.csv"))


def _place(cell: Cell) -> tuple[int, int]:
    return list(SERIES).index(cell.series), cell.parameters


def _rows(cell: Cell, table: list[dict[str, str]]) -> list[Row]:
    return [
        Row(
            cell,
            _shown(cell, line["measure"]),
            _metric(line),
            float(line["value"]),
            error if line["stderr"] and math.isfinite(error := float(line["stderr"])) else None,
            {"True": True, "False": False}.get(line["higher_is_better"]),
            line.get("note", ""),
        )
        for line in table
        if _finite(line)
    ]


def _finite(line: dict[str, str]) -> bool:
    return bool(line["value"]) and math.isfinite(float(line["value"]))


def _not_finite(cell: Cell, table: list[dict[str, str]]) -> list[Missing]:
    """The numbers of a cell that are none: those of one measure that are missing for one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in table:
        if not _finite(line):
            reason = line.get("note") or f"it is not finite: {line['value']}"
            found.setdefault((_shown(cell, line["measure"]), reason), []).append(_metric(line))
    return [Missing(cell, reason, measure, tuple(metrics)) for (measure, reason), metrics in found.items()]


def _items(table: Path) -> dict[tuple[str, str], Items]:
    found: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for line in _read_csv(table):
        key = line["measure"], _metric(line)
        found.setdefault(key, []).append((int(line["item"]), float(line["weight"]), float(line["value"])))
    return {key: _arrays(sorted(lines)) for key, lines in found.items()}


def _arrays(lines: list[tuple[int, float, float]]) -> Items:
    item, weight, value = zip(*lines, strict=True)
    return Items(np.array(item), np.array(weight, dtype=np.float64), np.array(value, dtype=np.float64))


def _metric(line: dict[str, str]) -> str:
    return line["metric"] if line["filter"] == "none" else f"{line['metric']},{line['filter']}"


def _training(label: str, folder: Path) -> Training:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    similarity = folder / "similarity.json"
    pairs = json.loads(similarity.read_text(encoding="utf-8"))["pairs"] if similarity.exists() else []
    return Training(label, tuple(json.loads(line) for line in lines), tuple(pairs))


def _search(label: str, folder: Path) -> PatchSearch | None:
    """A search for the patch order; None for one that chose layers."""
    content = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    if "sets" not in content:
        return None
    candidates = tuple((len(c["patched"]), float(c["value"])) for c in content["candidates"])
    sequential = {name: tuple(map(float, values)) for name, values in content["sequential"].items()}
    return PatchSearch(label, tuple(map(float, content["values"])), sequential, candidates)


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tidy(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as plain records with the fields of HEADER: what results.csv and results.json hold."""
    return [
        {
            **row.cell.model_dump(include={"series", "layers", "parameters", "bytes"}),
            "measure": row.measure,
            "metric": row.metric,
            "value": row.value,
            "stderr": row.stderr,
            "higher_is_better": row.higher_is_better,
            "note": row.note,
        }
        for row in rows
    ]
