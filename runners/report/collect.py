"""Read the artifacts of a `report` or `comparison` into a `Study`: numbers, trainings, and what is missing.

In: a record and, for each of its inputs, a folder or the reason why there is none. Draws and judges nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from boomspec.core.tasks import Cell, Comparison, Report
from boomspec.core.tasks.report import shown_measure
from runners.report.study import (
    SEED,
    SERIES,
    Items,
    Missing,
    PatchSearch,
    Row,
    Size,
    Study,
    Training,
    Trial,
    curve_of,
    groups_of,
)
from runners.runtime.tables import read_frame, read_table

Find = Callable[[str], Path | str]
"""From the role of an input to the folder of its artifact, or to the reason why there is none."""
Tables = tuple[list[dict[str, str]], dict[tuple[str, str], Items]]
"""What one `evaluate` artifact holds: the rows of its table, and items by measure and metric."""


def collect(record: Report | Comparison, find: Find) -> Study:
    """Read the artifacts of all cells and trainings. Raises nothing for what is missing: it is listed."""
    read, measured_with = cache(_read_tables), cache(_yardstick)  # experiments share artifacts
    if isinstance(record, Report):
        trial = _trial("", {}, record.cells, find, read, lambda folder: "")
        trainings = [
            _training(label, f) for label, role in record.trainings.items() if isinstance(f := find(role), Path)
        ]
        searches = [_search(label, f) for label, role in record.searches.items() if isinstance(f := find(role), Path)]
        return Study((trial,), groups_of([trial]), {}, tuple(trainings), tuple(s for s in searches if s is not None))
    trials = []
    for one in record.experiments:

        def find_own(role: str, label: str = one.label) -> Path | str:
            return find(f"{label}/{role}")

        trials.append(_trial(one.label, one.axes, one.cells, find_own, read, measured_with))
    axes = {
        name: tuple(dict.fromkeys(t.axes[name] for t in trials if name in t.axes)) for t in trials for name in t.axes
    }
    return Study(tuple(trials), groups_of(trials), axes)


def _trial(
    label: str,
    axes: dict[str, str],
    cells: Iterable[Cell],
    find: Find,
    read: Callable[[Path], Tables],
    measured_with: Callable[[Path], str],
) -> Trial:
    sizes, rows, missing = _sizes(cells), list[Row](), list[Missing]()
    for cell, size in sorted(sizes.items(), key=lambda item: (list(SERIES).index(item[0].series), item[0].parameters)):
        folder = find(cell.input)
        if isinstance(folder, str):
            missing.append(Missing(cell, size, folder))
            continue
        table, items = read(folder)
        yardstick = measured_with(folder)
        lost: dict[tuple[str, str], list[str]] = {}  # metrics by measure and reason
        for line in table:
            measure, metric = shown_measure(line["measure"], task=cell.task, called=cell.measure), _metric(line)
            value, stderr = _finite(line["value"]), _finite(line["stderr"])
            if value is None:
                reason = line.get("note") or f"it is not finite: {line['value']}"
                lost.setdefault((measure, reason), []).append(metric)
                continue
            better, note = {"True": True, "False": False}.get(line["higher_is_better"]), line.get("note", "")
            own = items.get((line["measure"], metric))
            rows.append(Row(cell, size, folder, yardstick, measure, metric, value, stderr, better, note, own))
        missing += [Missing(cell, size, reason, name, tuple(metrics)) for (name, reason), metrics in lost.items()]
    return Trial(label, axes, sizes, *_distinct(rows, missing))


def _finite(text: str) -> float | None:
    return value if text and math.isfinite(value := float(text)) else None


def _metric(line: dict[str, str]) -> str:
    return line["metric"] if line["filter"] == "none" else f"{line['metric']},{line['filter']}"


def _distinct(rows: list[Row], missing: list[Missing]) -> tuple[tuple[Row, ...], tuple[Missing, ...]]:
    """Give names of their own to measures of one name that are asked in several ways.

    A task may be measured by itself and as a member of a group: then that of the group is followed by its name.
    """
    asked = {row.cell.measure for row in rows} | {lost.cell.measure for lost in missing}
    users: dict[str, set[str]] = {}
    for row in rows:
        users.setdefault(row.measure, set()).add(row.cell.measure)

    def name(cell: Cell, measure: str) -> str:
        others = users.get(measure, set()) | ({measure} & asked)
        return measure if measure == cell.measure or others <= {cell.measure} else f"{measure} ({cell.measure})"

    return (
        tuple(replace(row, measure=name(row.cell, row.measure)) for row in rows),
        tuple(replace(m, part=name(m.cell, m.part)) if m.part else m for m in missing),
    )


def _sizes(cells: Iterable[Cell]) -> dict[Cell, Size]:
    """The size of each cell; from all cells, so that one that is missing does not rename its twin."""
    seen: Counter[tuple[str, str, int]] = Counter()
    sizes: dict[Cell, Size] = {}
    for cell in cells:
        place = curve_of(cell), cell.measure, cell.layers
        sizes[cell] = Size(cell.layers, seen[place])
        seen[place] += 1
    return sizes


def _read_tables(folder: Path) -> Tables:
    """Read the folder of an `evaluate` artifact."""
    items = read_frame(folder / "items.csv").astype({"item": "int64", "weight": "float64", "value": "float64"})
    ordered = items.sort_values(["item", "weight", "value"])
    arrays = {
        (str(measure), _metric({"metric": str(metric), "filter": str(name)})): Items(
            *(own[column].to_numpy() for column in ("item", "weight", "value"))
        )
        for (measure, metric, name), own in ordered.groupby(["measure", "metric", "filter"])
    }
    return read_table(folder / "table.csv"), arrays


def _yardstick(folder: Path) -> str:
    """What a model was measured with: the held-out text and its windows, or the lm-eval task and how it was asked.

    Another amount of data, say, can hold out other text.
    """
    task = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["task"]
    measure = {name: value for name, value in task["params"]["measure"].items() if name != SEED}
    if measure["type"] == "held_out":
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))["configs"]["held_out"]
        return json.dumps([measure["sequence_length"], found["tokens"], found["bytes"]])
    return json.dumps([measure, task["inputs"]["tasks"]], sort_keys=True)


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
