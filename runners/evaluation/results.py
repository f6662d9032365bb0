"""Write the results of one measured model: lm-eval's own format, tables, and items.

results.json   lm-eval's own results format, without what depends on the machine; `counts` of what was cut
table.csv      measure, metric, filter, value, stderr, higher_is_better, note; a number that is not finite has no
               value, and its note says why
items.csv      measure, metric, filter, item, weight, value: per document or window, for every metric that is
               a weighted mean of its items; two models are compared item by item with it
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from boomspec.core.json_text import json_text
from runners.evaluation.lm_eval_counts import Counted, members
from runners.runtime.context import Progress
from runners.runtime.tables import csv_text


class Item(NamedTuple):
    """One line of items.csv."""

    measure: str
    metric: str
    filter: str
    item: int
    weight: float
    value: float


class MetricRow(NamedTuple):
    """One line of table.csv."""

    measure: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    note: str


def write_results(
    folder: Path, results: dict[str, Any], items: list["Item"], counts: Counted, progress: Progress
) -> None:
    """Write the three files of one model; every note of a number is a warning of its task."""
    rows = table(results, counts)
    for note in dict.fromkeys(f"{row.measure}: {row.note}" for row in rows if row.note):
        progress.note(f"warning: {note}", once=note)  # of all models alike
    measured = {(row.measure, row.metric, row.filter) for row in rows if row.value is not None}
    text = json_text({**_without_missing(results, rows), "counts": counts.to_json()}, indent=1)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    items = [item for item in items if item[:3] in measured]
    (folder / "table.csv").write_text(csv_text(MetricRow._fields, rows), encoding="utf-8")
    (folder / "items.csv").write_text(csv_text(Item._fields, items), encoding="utf-8")


def table(results: dict[str, Any], counts: Counted | None = None) -> list[MetricRow]:
    """The numbers of lm-eval style results, one line per task (or group) and metric, in their order."""
    counts = Counted() if counts is None else counts
    lines, consists_of = [], members(results)
    for name, metrics in results["results"].items():
        better = results["higher_is_better"].get(name, {})
        unreal = counts.no_number(consists_of[name])
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not is_number(value):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            stderr = float(stderr) if is_number(stderr) and math.isfinite(stderr) else None
            missing = unreal or (None if math.isfinite(value) else f"it is not finite: {value}")
            notes = [f"no value: {missing}"] if missing else counts.notes(consists_of[name], key)
            line = MetricRow(name, metric, filter_name, float(value), stderr, better.get(metric), "; ".join(notes))
            lines.append(line._replace(value=None, stderr=None) if missing else line)
    return lines


def _without_missing(results: dict[str, Any], lines: list[MetricRow]) -> dict[str, Any]:
    """The results without the numbers that the lines say are missing; `missing` holds why."""
    missing: dict[str, dict[str, str]] = {}
    for line in lines:
        if line.value is None:
            missing.setdefault(line.measure, {})[f"{line.metric},{line.filter}"] = line.note
    shown = dict(results)
    for section in shown.keys() & {"results", "groups"}:
        shown[section] = {
            name: {key: None if key in missing.get(name, ()) else value for key, value in values.items()}
            for name, values in results[section].items()
        }
    return {**shown, "missing": missing}


def items_of(results: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> list[Item]:
    """The items of every metric whose value is the mean over the documents; others have no items."""
    items: list[Item] = []
    for name, metric, filter_name, value, *_ in table(results):
        documents = [s for s in samples.get(name, []) if s["filter"] == filter_name]
        values = [float(s[metric]) for s in documents if is_number(s.get(metric))]
        if value is None or not values or len(values) < len(documents):
            continue
        if math.isclose(sum(values) / len(values), value, abs_tol=1e-12):
            pairs = zip(documents, values, strict=True)
            items += [Item(name, metric, filter_name, document["doc_id"], 1, v) for document, v in pairs]
    return items


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def portable(value: Any, folder: str | None) -> Any:
    """`value` as plain JSON, without absolute paths and memory addresses."""
    if isinstance(value, dict):
        return {str(key): portable(item, folder) for key, item in value.items() if key != "config_source"}
    if isinstance(value, (list, tuple)):
        return [portable(item, folder) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = re.sub(r" at 0x[0-9a-f]+", "", str(value))
    return text if folder is None else text.replace(folder, ".")
