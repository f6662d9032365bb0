"""Read the artifacts of a `report` or `comparison` into a `Study`: numbers, trainings, and what is missing.

In: a record and, for each of its inputs, a folder or the reason why there is none. Draws and judges nothing.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from boomspec.core.files import read_json
from boomspec.core.tasks import Cell, Compared, Comparison, Report
from boomspec.core.tasks.report import shown_measure
from boomspec.core.tasks.training import HELD_OUT
from boomspec.core.tasks.transfer import DELTAS
from runners.report.loss_terms import first_step, terms_at_start
from runners.report.study import (
    SEED,
    SERIES,
    SPEED,
    Missing,
    PatchSearch,
    Row,
    Size,
    Study,
    Text,
    TrainingCurves,
    Trial,
    Written,
    curve_of,
)
from runners.runtime.tables import read_frame, read_table

Find = Callable[[str], Path | str]
"""From the role of an input to the folder of its artifact, or to the reason why there is none."""


def collect(record: Report | Comparison, find: Find) -> Study:
    """Read the artifacts of all cells and trainings. Raises nothing for what is missing: it is listed."""
    read = cache(_Evaluation)  # experiments share artifacts
    if isinstance(record, Comparison):
        found = [_trial(one, f"{one.label}/", find, read) for one in record.experiments]
        axes: dict[str, dict[str, None]] = {}
        for name, value in (axis for trial in found for axis in trial.axes.items()):
            axes.setdefault(name, {})[value] = None
        return Study(found, {name: tuple(values) for name, values in axes.items()})
    trial = _trial(Compared(label="", axes={}, cells=record.cells, deployed=record.deployed), "", find, read)
    trainings, searches = (
        [(label, folder) for label, role in roles.items() if isinstance(folder := find(role), Path)]
        for roles in (record.trainings, record.searches)
    )
    curves = []
    for label, folder in trainings:
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        params, begun = read_json(folder / "artifact.json")["task"]["params"], (record.phases or {}).get(label, ())
        called = f"{label}, phase {begun[-1].name}" if begun else label
        terms = tuple(terms_at_start(called, params, steps[first_step(params)])) if steps else ()
        pairs = read_json(folder / "similarity.json")["pairs"] if (folder / "similarity.json").exists() else ()
        steps, held_out = _apart(steps)
        curves.append(TrainingCurves(label, tuple(steps), tuple(pairs), terms, begun, tuple(held_out)))
    tried = []
    for label, content in ((label, read_json(folder / "search.json")) for label, folder in searches):
        if "sets" in content:  # else it chose layers
            sequential = {name: tuple(map(float, values)) for name, values in content["sequential"].items()}
            candidates = tuple((len(c["patched"]), float(c["value"])) for c in content["candidates"])
            tried.append(PatchSearch(label, tuple(map(float, content["values"])), sequential, candidates))
    made = find(record.transfer) if record.transfer is not None else ""
    deltas = read_json(made / DELTAS)["groups"] if isinstance(made, Path) else ()
    return Study([trial], {}, curves, tried, deltas)


def _apart(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of a training's metrics the rows of its steps, and those of the held-out losses that were measured meanwhile."""
    steps, held_out = [], []
    for row in rows:
        found = {name.removeprefix(HELD_OUT): row[name] for name in row if name.startswith(HELD_OUT)}
        if found:
            held_out.append({"step": row["step"], **found})
        own = {name: value for name, value in row.items() if not name.startswith(HELD_OUT)}
        if own.keys() - {"step", "tokens"}:  # after the last step there is nothing else
            steps.append(own)
    return steps, held_out


class _Evaluation:
    """What one `evaluate` artifact holds: the rows of its table, its items by measure and metric, its yardstick."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = read_table(folder / "table.csv")
        items = read_frame(folder / "items.csv").astype({"item": "int64", "weight": "float64", "value": "float64"})
        columns = ["item", "weight", "value"]
        self.items: dict[tuple[str, str], pd.DataFrame] = {
            (measure, _metric(metric, name)): own.sort_values(columns, ignore_index=True)[columns]
            for (measure, metric, name), own in items.groupby(["measure", "metric", "filter"])
        }

    @cached_property
    def yardstick(self) -> str:
        """What the model was measured with: which held-out text (more data can hold out another) or lm-eval task."""
        task = read_json(self.folder / "artifact.json")["task"]
        measure = {name: value for name, value in task["params"]["measure"].items() if name != SEED}
        if measure["type"] != "held_out":
            return json.dumps([measure, task["inputs"]["tasks"]], sort_keys=True)
        found = read_json(self.folder / "results.json")["configs"]["held_out"]
        return json.dumps([measure["sequence_length"], found["tokens"], found["bytes"]])


def _trial(experiment: Compared, prefix: str, find: Find, read: Callable[[Path], _Evaluation]) -> Trial:
    sizes, seen = dict[Cell, Size](), Counter[Any]()
    for cell in (
        *experiment.cells,
        *(experiment.deployed or ()),
    ):  # of all cells, so that one that is missing does not rename its twin
        place = curve_of(cell), cell.measure, cell.layers
        sizes[cell] = Size(cell.layers, seen[place])
        seen[place] += 1
    rows, missing, speeds, written = list[Row](), list[Missing](), list[Row](), list[Written]()
    deployed = set(experiment.deployed or ())
    for cell, size in sorted(sizes.items(), key=lambda item: (list(SERIES).index(item[0].series), item[0].parameters)):
        folder = find(prefix + cell.input)
        if isinstance(folder, str):
            missing.append(Missing(cell, size, cell.measure, folder))
            continue
        if cell in deployed:
            if cell.measure == SPEED:
                speeds += _speeds(cell, size, folder)
            else:
                written.append(_written(cell, size, folder))
            continue
        evaluation = read(folder)
        yardstick = evaluation.yardstick if experiment.axes else ""  # one experiment is compared with no other
        lost: dict[tuple[str, str], list[str]] = {}  # metrics by measure and reason
        for line in evaluation.rows:
            measure = shown_measure(line["measure"], task=cell.task, called=cell.measure)
            metric = _metric(line["metric"], line["filter"])
            value, stderr = _finite(line["value"]), _finite(line["stderr"])
            if value is None:
                reason = line.get("note") or f"it is not finite: {line['value']}"
                lost.setdefault((measure, reason), []).append(metric)
                continue
            better, note = {"True": True, "False": False}.get(line["higher_is_better"]), line.get("note", "")
            items = evaluation.items.get((line["measure"], metric))
            rows.append(Row(cell, size, folder, yardstick, measure, metric, value, stderr, better, note, items))
        missing += [Missing(cell, size, *key, tuple(metrics)) for key, metrics in lost.items()]

    # A task may be measured by itself and as a member of a group: then that of the group is followed by its name.
    asked = {row.cell.measure for row in rows} | {lost.cell.measure for lost in missing}
    users: dict[str, set[str]] = {}
    for row in rows:
        users.setdefault(row.measure, set()).add(row.cell.measure)

    def name(cell: Cell, measure: str) -> str:
        others = users.get(measure, set()) | ({measure} & asked)
        return measure if measure == cell.measure or others <= {cell.measure} else f"{measure} ({cell.measure})"

    own_rows = tuple(replace(row, measure=name(row.cell, row.measure)) for row in rows)
    own_missing = tuple(replace(m, measure=name(m.cell, m.measure)) if m.metrics else m for m in missing)
    shown = tuple(speeds), tuple(written)
    return Trial(experiment.label, experiment.axes, sizes, own_rows, own_missing, *shown)


def _speeds(cell: Cell, size: Size, folder: Path) -> Iterator[Row]:
    """The numbers of a `speed` artifact."""
    found = read_json(folder / "speed.json")
    threads = f" with {found['threads']} thread{'s' * (found['threads'] > 1)}" if "threads" in found else ""
    lengths = f"{found['prompt_tokens']:,} + {found['new_tokens']:,} tokens, batch {found['batch']:,}"
    yardstick = f"{found['device']}{threads}, {found['precision']}, {lengths}, {found['engine']}"
    for name, metric in found["metrics"].items():
        if metric["value"] is not None:
            value, better = float(metric["value"]), bool(metric["higher_is_better"])
            yield Row(cell, size, folder, yardstick, SPEED, name, value, None, better, metric["note"])


def _written(cell: Cell, size: Size, folder: Path) -> Written:
    """The texts of a `texts` artifact."""
    found = read_json(folder / "texts.json")
    texts = tuple(Text(*(text[name] for name in Text._fields)) for text in found["texts"])
    return Written(cell, size, bool(found["chat"]), texts)


def _finite(text: str) -> float | None:
    return value if text and math.isfinite(value := float(text)) else None


def _metric(name: str, filter_name: str) -> str:
    return name if filter_name == "none" else f"{name},{filter_name}"
