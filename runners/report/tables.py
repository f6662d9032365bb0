"""Make the tables of a page, as text for its template, and the files beside it, for programs.

results.csv       one row per number; those of several experiments with their axes
results.json      the same, what is missing and why, and what the numbers say
groups.csv        (several experiments) one row per size and metric of each group: mean and spread over its seeds
losses.csv        one row per training and term of its loss: how large it was at the first step, and its weight
trainings.csv     (of a run) one row per training: its tokens a second, its model FLOPs utilisation, what it ran on
deployment.csv    (where it is asked for) one row per model and metric of speed and memory, with what it was measured on
during.csv        (where it is asked for) one row per training, step and model: its held-out loss meanwhile
texts.csv         (where it is asked for) one row per text that a model wrote
differences.csv   (several experiments) one row per size and measure of each group that is compared with another
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from boomspec.core.json_text import json_text
from boomspec.core.tasks import Cell
from runners.report.compare import against_references, baseline_gains, ranked
from runners.report.deployment import deployment_files
from runners.report.findings import findings, outcome
from runners.report.format import Footnotes, count
from runners.report.loss_terms import TERM
from runners.report.study import FAMILY, SERIES, Group, Size, Study, curve_of, model_of
from runners.runtime.tables import csv_text

Table = dict[str, Any]
MOST_LINES_OF_A_TABLE = 40
_BEST = 10  # shown of a longer one
_MODEL = ("series", "layers", "parameters", "bytes")
_NUMBER = ("measure", "metric", "value", "stderr", "higher_is_better", "note")
_GROUP = (
    "series", "layers", "nth", "parameters", "measure", "metric", "seeds", "mean", "lowest", "highest", "deviation",
)  # fmt: skip
_DIFFERENCE = (
    "against", "layers", "nth", "parameters", "measure", "metric",
    "seeds", "gain", "lowest", "highest", "interval", "items_stderr", "clear",
)  # fmt: skip


# --- one experiment --------------------------------------------------------------------------------


def model_table(study: Study, measures: Sequence[str]) -> Table:
    """One line per model, by size; one column per measure and metric."""
    trial, footnotes = study.trials[0], Footnotes()
    columns = {
        name: list(dict.fromkeys(row.metric for row in study.rows if row.measure == name)) or [""] for name in measures
    }
    rows = {(model_of(row.cell), row.measure, row.metric): row for row in trial.rows}
    cells = [*(row.cell for row in trial.rows), *(missing.cell for missing in trial.missing)]
    models = {(c.layers, list(SERIES).index(c.series), model_of(c)): c for c in cells}
    lines: list[Table] = []
    for (layers, _, model), cell in sorted(models.items(), key=lambda item: item[0]):
        missing, numbers = [m for m in trial.missing if model_of(m.cell) == model], []
        for measure, metric in ((measure, metric) for measure, metrics in columns.items() for metric in metrics):
            row = rows.get((model, measure, metric))
            reasons = [m.reason for m in missing if row is None and m.concerns(measure, metric)]
            marks = footnotes.letters([row.note] if row else [])
            numbers.append({"row": row, "reason": reasons[0] if reasons else "", "marks": marks})
        first = not lines or lines[-1]["cell"].layers != layers
        lines.append({"cell": cell, "first": first, "numbers": numbers})
    heads = [
        (
            "held-out text" if name == "held_out" else name,
            [f"{m.replace('_', ' ')} {study.arrow(name, m)}" if m else "" for m in metrics],
        )
        for name, metrics in columns.items()
    ]
    return {"measures": heads, "lines": lines, "footnotes": footnotes.lines}


def gains_table(study: Study) -> Table:
    """The interpolated models against naive pruning, one line per size, one column per measure."""
    compared = {m: baseline_gains(study, m, series="interpolated", against="naive_pruning") for m in study.measures}
    columns = {measure: {d.size: d for d in found} for measure, found in compared.items() if found}
    sizes = sorted({size for found in columns.values() for size in found})
    heads = [study.name(measure) + study.unit(measure, ", ") for measure in columns]
    lines = [{"layers": s.layers, "cells": [found.get(s) for found in columns.values()]} for s in sizes]
    return {"measures": heads, "lines": lines}


# --- several experiments ---------------------------------------------------------------------------


def group_table(study: Study, measure: str) -> Table:
    """Lines: groups, of very many the best (`all` has all), and baselines. Columns: sizes. Then the differences."""
    sizes, first, footnotes = study.sizes(measure), study.groups[0], Footnotes()
    order = ranked(study, measure)
    best = {size: study.points(groups[0], measure)[size].mean for size, groups in order.items()}
    lines = [_group_line(study, measure, group, sizes, footnotes, best=best) for group in study.groups]
    baselines = [_group_line(study, measure, first, sizes, footnotes, curve=s) for s in first.baselines(measure)]
    shown = lines
    if len(lines) > MOST_LINES_OF_A_TABLE:  # those that are best in the mean over the sizes that all have, if any
        places = dict[int, float]()
        for place, points in enumerate(study.points(group, measure) for group in study.groups):
            if order and order.keys() <= points.keys():
                places[place] = -study.sign(measure) * sum(points[size].mean for size in order)
        shown = [lines[place] for place in (sorted(places, key=places.__getitem__) or range(len(lines)))[:_BEST]]
    compared = [
        (g, other, {d.size: d for d in own if not d.same}) for g, other, own in against_references(study, measure)
    ]
    compared = [(group, other, own) for group, other, own in compared if own]
    differing = sorted({size for _, _, own in compared for size in own})
    heads = []
    for one in sizes:
        parameters = sorted(p.parameters for g in study.groups if (p := study.points(g, measure).get(one)))
        ends = dict.fromkeys((count(parameters[0]), count(parameters[-1])))
        heads.append({"name": str(one), "parameters": " to ".join(ends)})
    return {
        "name": study.name(measure),
        "unit": study.unit(measure),
        "arrow": study.arrow(measure),
        "sizes": heads,
        "lines": shown + baselines,
        "all": lines if shown is not lines else [],
        "compared": list(map(str, differing)),
        "differences": [
            {"name": group.label, "against": other.label, "cells": [own.get(size) for size in differing]}
            for group, other, own in compared
        ],
        "footnotes": footnotes.lines,
        "fold": len(compared) > MOST_LINES_OF_A_TABLE,
    }


def _group_line(
    study: Study,
    measure: str,
    group: Group,
    sizes: Sequence[Size],
    footnotes: Footnotes,
    *,
    curve: str = FAMILY,
    best: Mapping[Size, float] | None = None,
) -> Table:
    metric, points = study.primary[measure], study.points(group, measure, curve)
    missing = (m for trial in group.trials for m in trial.missing if curve_of(m.cell) == curve)
    reasons = {m.size: m.reason for m in missing if m.concerns(measure, metric)}
    rows = [{row.size: row for row in trial.series(curve, measure, metric)} for trial in group.trials]
    cells = []
    for place in sizes:
        point, reason, best_mean = points.get(place), reasons.get(place, ""), None if best is None else best.get(place)
        seeds = 0 if point is None else len(point.values)
        noted = point is not None and (reason or seeds not in (1, len(group.trials)))
        note = f"{seeds} seed{'s' * (seeds > 1)}" if noted else ""
        marks = footnotes.letters(own[place].note for own in rows if place in own)
        is_best = point is not None and point.mean == best_mean
        cells.append({"point": point, "best": is_best, "note": note, "reason": reason, "marks": marks})
    name = group.label if curve == FAMILY else f"{SERIES[curve]} ({group.label})"
    return {"name": name, "seeds": len(group.trials), "faint": curve != FAMILY, "cells": cells}


def missing_lines(study: Study) -> list[Table]:
    """What is missing: the experiments that miss the same results for the same reason in one line."""
    found: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for trial in study.trials:
        by_reason: dict[str, list[str]] = {}
        for missing in trial.missing:
            by_reason.setdefault(missing.reason, []).append(missing.name)
        for reason, names in by_reason.items():
            found.setdefault((tuple(names), reason), []).append(trial.label)
    return [{"experiments": labels, "results": names, "reason": reason} for (names, reason), labels in found.items()]


# --- the files -------------------------------------------------------------------------------------


def terms_of(study: Study, noted: Sequence[Table] = ()) -> Sequence[Table]:
    """The terms of all losses at their first step. `noted`: those of several experiments."""
    return [term for training in study.trainings for term in training.terms] or noted


def files(study: Study, title: str, trainings: Sequence[Table] = (), terms: Sequence[Table] = ()) -> dict[str, str]:
    """The files beside the page, by name. Each axis is a column; one that is called as another one is "axis <name>".

    `trainings`: how fast those of a run were. An artifact has none, for they depend on the machine.
    `terms`: `terms_of`.
    """
    several, rows = bool(study.axes), result_rows(study)
    missing = [
        ({"experiment": trial.label} if several else {})
        | {name: value for name, value in _model_fields(m.cell).items() if name != "bytes"}
        | _fields(m, ("measure", "metrics", "name", "reason"))
        for trial, m in study.missing
    ]
    content: Table = {"title": title, "outcome": outcome(study), "findings": findings(study)}
    tables = {"results.csv": _csv(["experiment"] if several else [], study.axes, (*_MODEL, *_NUMBER), rows)}
    if several:
        groups, compared = list(_group_rows(study)), list(_difference_rows(study))
        content |= {"axes": study.axes, "results": rows, "groups": groups, "differences": compared}
        tables["groups.csv"] = _csv(["group"], study.swept, _GROUP, groups)
        tables["differences.csv"] = _csv(["group"], study.swept, _DIFFERENCE, compared)
    content |= {"results": rows, "missing": missing}
    for name, (columns, own) in deployment_files(study).items():
        content[name] = own
        tables[f"{name}.csv"] = _csv(["experiment"] if several else [], study.axes, columns, own)
    if terms:
        content["losses"] = terms
        tables["losses.csv"] = csv_text(TERM, terms)
    if trainings:
        content["trainings"] = trainings
        tables["trainings.csv"] = csv_text(list(trainings[0]), trainings)
    return {**tables, "results.json": json_text(content, indent=1, ensure_ascii=False) + "\n"}


def result_rows(study: Study) -> list[Table]:
    """A row for each number, in the order of `study.rows`; of several experiments with their names and axes."""
    return [
        ({"experiment": trial.label, "axes": trial.axes} if study.axes else {})
        | _model_fields(row.cell)
        | _fields(row, _NUMBER)
        for trial in study.trials
        for row in trial.rows
    ]


def _model_fields(cell: Cell) -> Table:
    return _fields(cell, _MODEL) | ({} if cell.phase is None else {"series": f"{cell.series} {cell.phase}"})


def _fields(value: Any, names: Iterable[str]) -> Table:
    return {name: getattr(value, name) for name in names}


def _group_rows(study: Study) -> Iterator[Table]:
    for group in study.groups:
        for measure, metric in dict.fromkeys((row.measure, row.metric) for row in group.rows):
            for curve in (FAMILY, *group.baselines(measure)):
                for place, point in group.points(measure, metric, curve).items():
                    place_values = (curve, *place, point.parameters, measure, metric, len(point.values))
                    values = (*place_values, point.mean, min(point.values), max(point.values), point.deviation)
                    yield {"group": group.label, "axes": group.axes, **dict(zip(_GROUP, values, strict=True))}


def _difference_rows(study: Study) -> Iterator[Table]:
    pairs = [(measure, *pair) for measure in study.measures for pair in against_references(study, measure)]
    for measure, group, other, found in sorted(pairs, key=lambda pair: study.groups.index(pair[1])):
        for d in (difference for difference in found if not difference.same):
            place_values = (other.label, *d.size, d.parameters, measure, study.primary[measure], len(d.gains))
            values = (*place_values, d.gain, min(d.gains), max(d.gains), d.interval, d.items, d.clear)
            yield {"group": group.label, "axes": group.axes, **dict(zip(_DIFFERENCE, values, strict=True))}


def _csv(first: Sequence[str], axes: Iterable[str], rest: Sequence[str], rows: Iterable[Table]) -> str:
    columns = {axis: f"axis {axis}" if axis in {*first, *rest} else axis for axis in axes}
    flat = [row | {column: row["axes"].get(axis, "") for axis, column in columns.items()} for row in rows]
    return csv_text([*first, *columns.values(), *rest], flat)
