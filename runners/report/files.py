"""The tables that lie beside a page, for programs: results.csv and results.json, and what a comparison adds.

groups.csv        one row per size and metric of each group of experiments: mean and spread over its seeds
differences.csv   one row per size and measure of each group that is compared with another
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from boomspec.core.json_text import json_text
from runners.report import comparison_findings
from runners.report.collect import HEADER, Missing, Results, tidy
from runners.report.comparison import FAMILY, Study
from runners.report.differences import differences
from runners.report.findings import findings, outcome

_SIZE = ("series", "layers", "nth", "parameters")
_GROUP = (*_SIZE, "measure", "metric", "seeds", "mean", "lowest", "highest", "deviation")
_DIFFERENCE = (
    "against", "layers", "nth", "parameters", "measure", "metric",
    "seeds", "gain", "lowest", "highest", "interval", "items_stderr", "clear",
)  # fmt: skip


def report_files(results: Results, title: str) -> dict[str, str]:
    """The texts of results.csv and results.json, by name."""
    content = {
        "title": title,
        "outcome": outcome(results),
        "findings": findings(results),
        "results": tidy(results.rows),
        "missing": [_missing(missing) for missing in results.missing],
    }
    return {"results.csv": _csv(HEADER, tidy(results.rows)), "results.json": _json(content)}


def comparison_files(study: Study, title: str) -> dict[str, str]:
    """The texts of results.csv, groups.csv, differences.csv and results.json, by name.

    Every axis has a column of its own; one that is called as another column has "axis " before its name.
    """
    rows = [
        {"experiment": trial.label, "axes": trial.axes, **row}
        for trial in study.trials
        for row in tidy(trial.results.rows)
    ]
    groups, compared = list(_groups(study)), list(_differences(study))
    content = {
        "title": title,
        "outcome": comparison_findings.outcome(study),
        "findings": comparison_findings.findings(study),
        "axes": study.axes,
        "results": rows,
        "groups": groups,
        "differences": compared,
        "missing": [{"experiment": trial.label, **_missing(missing)} for trial, missing in study.missing],
    }
    swept = study.swept
    return {
        "results.csv": _csv(*_with_axes("experiment", study.axes, HEADER, rows)),
        "groups.csv": _csv(*_with_axes("group", swept, _GROUP, groups)),
        "differences.csv": _csv(*_with_axes("group", swept, _DIFFERENCE, compared)),
        "results.json": _json(content),
    }


def _groups(study: Study) -> Iterator[dict[str, Any]]:
    for group in study.groups:
        rows = [row for trial in group.trials for row in trial.results.rows]
        for measure, metric in dict.fromkeys((row.measure, row.metric) for row in rows):
            for curve in (FAMILY, *group.baselines(measure)):
                for size, point in group.points(measure, metric, curve).items():
                    yield {
                        "group": group.label,
                        "axes": group.axes,
                        **dict(zip(_SIZE, (curve, size.layers, size.nth, point.parameters), strict=True)),
                        "measure": measure,
                        "metric": metric,
                        "seeds": len(point.values),
                        "mean": point.mean,
                        "lowest": min(point.values),
                        "highest": max(point.values),
                        "deviation": point.deviation if len(point.values) > 1 else None,
                    }


def _differences(study: Study) -> Iterator[dict[str, Any]]:
    for group in study.groups:
        other = study.reference(group)
        for measure in study.measures if other is not None else ():
            assert other is not None
            for found in differences(study, group, other, measure):
                if not found.same:
                    yield {
                        "group": group.label,
                        "axes": group.axes,
                        "against": other.label,
                        "layers": found.size.layers,
                        "nth": found.size.nth,
                        "parameters": found.parameters,
                        "measure": measure,
                        "metric": study.primary(measure),
                        "seeds": len(found.gains),
                        "gain": found.gain,
                        "lowest": min(found.gains),
                        "highest": max(found.gains),
                        "interval": found.interval,
                        "items_stderr": found.items,
                        "clear": found.clear,
                    }


def _missing(missing: Missing) -> dict[str, Any]:
    cell = missing.cell.model_dump(include={"series", "layers", "parameters", "measure"})
    metrics = list(missing.metrics)
    return {**cell, "measure": missing.measure, "metrics": metrics, "name": missing.name, "reason": missing.reason}


def _with_axes(
    first: str, axes: Iterable[str], rest: Sequence[str], rows: Iterable[dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """The header and the rows of a table in which the axes are columns behind the first."""
    columns = {axis: f"axis {axis}" if axis in {first, *rest} else axis for axis in axes}
    header = [first, *columns.values(), *rest]
    flat = [
        {column: row["axes"].get(axis, "") for axis, column in columns.items()}
        | {name: value for name, value in row.items() if name != "axes"}
        for row in rows
    ]
    return header, flat


def _csv(header: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json(content: dict[str, Any]) -> str:
    return json_text(content, indent=1, ensure_ascii=False) + "\n"
