"""Make the page of one experiment: tables and drawings from `Results`, set into `page.html.jinja`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from boomspec.core.tasks import Cell
from runners.report.collect import SERIES, Results, Row
from runners.report.figures import size_figure
from runners.report.findings import UNITS, compare, findings, label, outcome
from runners.report.format import count, number, signed, size
from runners.report.frame import NO_PROVENANCE, Drawing, Provenance, file_name, rendered
from runners.report.marks import Marks
from runners.report.process_figures import search_figure, similarity_figure, training_figure

GROUPS = ("hero", "sizes", "searches", "trainings", "similarities")


def draw(results: Results) -> list[Drawing]:
    """All figures that the results allow, in the order of the page: the main measure is the large one."""
    main, others = results.measures[:1], results.measures[1:]
    drawings = [_size_drawing(results, measure) for measure in main]
    small = {"width": 5.4, "height": 3.9} if len(others) > 1 else {}
    drawings += [_size_drawing(results, measure, **small) for measure in others]
    for search in results.searches:
        caption = "KL of each candidate to the teacher on the calibration text, by how many blocks are patched."
        drawings.append(
            Drawing("searches", file_name("search", search.label), search.label, caption, search_figure(search))
        )
    for training in results.trainings:
        if training.steps:
            caption = "Every optimiser step (faint) and its running mean. Terms are drawn without their weights."
            figure = training_figure(training)
            drawings.append(
                Drawing("trainings", file_name("training", training.label), training.label, caption, figure)
            )
    for training in results.trainings:
        if training.pairs:
            caption = (
                "Mean cosine similarity of aligned hidden states, before and after distillation, on the same text."
            )
            figure = similarity_figure(training)
            name = file_name("similarity", training.label)
            drawings.append(Drawing("similarities", name, training.label, caption, figure))
    return told_apart(drawings)


def told_apart(drawings: Sequence[Drawing]) -> list[Drawing]:
    """The same drawings; of those that would lie in one file the later ones have a number behind their name."""
    used: Counter[str] = Counter()
    found = []
    for drawing in drawings:
        used[drawing.name] += 1
        times = used[drawing.name]
        found.append(replace(drawing, name=f"{drawing.name}-{times}") if times > 1 else drawing)
    return found


def _size_drawing(results: Results, measure: str, **shape: float) -> Drawing:
    name = label(results, measure)
    caption = f"Model size against {name}."
    if results.measures[0] == measure:
        caption += (
            " The blue line is one family: the student, the sizes built from it without training, and the teacher."
            " Dashed lines mark student and teacher."
        )
        if any(results.series(name, measure, results.primary(measure)) for name in ("random_init", "shortgpt", "laco")):
            caption += " Where the control is out of view, an arrow gives its value."
    if any(row.stderr for row in results.rows if row.measure == measure):
        caption += " Bars are one standard error."
    group = "hero" if results.measures[0] == measure else "sizes"
    return Drawing(group, file_name("size", measure), name, caption, size_figure(results, measure, **shape))


def render(
    results: Results,
    *,
    title: str,
    drawings: Sequence[Drawing],
    files: Mapping[str, str],
    question: Sequence[str] = (),
    spec: str = "",
    resolved: dict[str, Any] | None = None,
    provenance: Provenance = NO_PROVENANCE,
) -> str:
    """The page's HTML. `files`: texts of the files that it offers for download, by name."""
    measures = list(dict.fromkeys([*results.measures, *(missing.measure for missing in results.missing)]))
    others = [name for name in dict.fromkeys(row.measure for row in results.rows) if name not in measures]
    return rendered(
        "page.html.jinja",
        kind="report",
        title=title,
        question=question,
        outcome=outcome(results),
        findings=findings(results),
        missing=results.missing,
        series=SERIES,
        **{group: [d for d in drawings if d.group == group] for group in GROUPS},
        numbers_table=numbers_table(results, measures),
        subtasks_table=numbers_table(results, others),
        gains=gains_table(results),
        downloads=files,
        spec=spec,
        resolved=yaml.safe_dump(resolved, sort_keys=False, default_flow_style=None, width=110) if resolved else "",
        provenance=provenance,
    )


def numbers_table(results: Results, measures: Sequence[str]) -> dict[str, Any]:
    """One line per model, by size; one column per measure and metric."""
    rows = {(_model(row.cell), row.measure, row.metric): row for row in results.rows}
    marks = Marks()
    columns = [(name, results.metrics(name) or ("",)) for name in measures]
    cells = [row.cell for row in results.rows] + [missing.cell for missing in results.missing]
    models = {(c.layers, list(SERIES).index(c.series), _model(c)): c for c in cells}
    lines: list[dict[str, Any]] = []
    for (layers, _, model), cell in sorted(models.items(), key=lambda item: item[0]):
        values = []
        for measure, metrics in columns:
            missing = [m for m in results.missing if _model(m.cell) == model]
            for metric in metrics:
                row, reasons = rows.get((model, measure, metric)), [m for m in missing if m.concerns(measure, metric)]
                reason = reasons[0].reason if reasons else None
                values.append(_value(row, reason) | {"marks": marks.of([row.note] if row is not None else [])})
        lines.append(
            {
                "series": cell.series,
                "name": SERIES[cell.series],
                "first": not lines or lines[-1]["layers"] != layers,
                "layers": layers,
                "parameters": count(cell.parameters),
                "bytes": size(cell.bytes),
                "cells": values,
            }
        )
    headed = [(_heading(name), [_metric_heading(results, name, m) for m in metrics]) for name, metrics in columns]
    return {"measures": headed, "lines": lines, "footnotes": marks.footnotes}


def _model(cell: Cell) -> str:
    """What tells a cell's model from others: two members of a family may have one size."""
    return cell.input.rpartition("/")[0]


def _value(row: Row | None, reason: str | None) -> dict[str, Any]:
    if row is None:
        return {"text": "", "error": "", "reason": reason or ""}
    return {"text": number(row.value), "error": "" if row.stderr is None else number(row.stderr), "reason": ""}


def _heading(measure: str) -> str:
    return "held-out text" if measure == "held_out" else measure


def _metric_heading(results: Results, measure: str, metric: str) -> str:
    if not metric:
        return ""
    arrow = "↑" if results.higher_is_better(measure, metric) else "↓"
    return f"{metric.replace('_', ' ')} {arrow}"


def gains_table(results: Results) -> dict[str, Any]:
    """The interpolated models against naive pruning, one line per size, one column per measure."""
    compared = {
        measure: {c.layers: c for c in compare(results, measure, series="interpolated", against="naive_pruning")}
        for measure in results.measures
    }
    compared = {measure: found for measure, found in compared.items() if found}
    lines = []
    for layers in sorted({layers for found in compared.values() for layers in found}):
        values = []
        for found in compared.values():
            c = found.get(layers)
            error = "" if c is None or c.stderr is None else number(c.stderr)
            values.append({"text": "" if c is None else signed(c.gain), "error": error})
        lines.append({"layers": layers, "cells": values})
    units = {measure: UNITS.get(results.primary(measure), "") for measure in compared}
    heads = [label(results, measure) + (f", {units[measure]}" if units[measure] else "") for measure in compared]
    return {"measures": heads, "lines": lines}
