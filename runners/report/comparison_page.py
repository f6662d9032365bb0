"""Make the page of several experiments: tables and drawings from a `Study`, set into `comparison.html.jinja`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runners.report.collect import SERIES
from runners.report.comparison import FAMILY, MOST_IN_RANGE, Group, Point, Size, Study, curve_of
from runners.report.comparison_figures import MOST_LINES, compared, difference_lines, size_lines
from runners.report.comparison_findings import findings, outcome, ranked
from runners.report.differences import Difference
from runners.report.findings import UNITS, name_of
from runners.report.format import count, number, signed
from runners.report.frame import NO_PROVENANCE, Drawing, Provenance, file_name, rendered
from runners.report.marks import Marks
from runners.report.run_notes import Experiments
from runners.report.sweep_figures import MOST_PANELS, axis_figure, grid_figure, marginal_figure, numeric, panels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LINES_OF_A_TABLE = 40
_BEST = 10  # shown of a longer one
_MOST_MISSING = 200
_WIDTH, _SMALL = 7.6, 5.4  # of a figure, in inches: the page shows small ones side by side
_FEW_VALUES = 3  # of a number from which a figure over it says something


def draw(study: Study) -> list[Drawing]:
    """All figures that the results allow, in the order of the page: the main measure has the large ones."""
    return [drawing for measure in study.measures for drawing in _drawings(study, measure)]


def _drawings(study: Study, measure: str) -> list[Drawing]:
    """Few groups: against size, and against their reference. Many: over what was varied, in one axis, two or more."""
    main = measure == study.measures[0]
    beside = not main and (len(study.measures) > 2 or len(study.groups) <= MOST_LINES)
    width = _SMALL if beside else _WIDTH
    name = name_of(measure, study.primary(measure))
    found: list[tuple[str, str, Figure | None]] = []
    axis = swept_axis(study)
    few = len(study.groups) <= MOST_LINES
    if not study.sizes(measure):
        return []  # only baselines have results
    if few:
        figure = size_lines(study, measure, width=width)
        found.append(("size", f"Model size against {name}. {_lines(study) if main else ''}", figure))
        found.append(("difference", _difference_caption(study, name), difference_lines(study, measure, width=width)))
    if axis is not None and len(panels_of(study, axis)) <= MOST_PANELS:
        values = [numeric(value) for value in study.axes[axis]]
        if not few or (None not in values and len(values) >= _FEW_VALUES):
            figure = axis_figure(study, measure, axis, width=width)
            found.append(("axis", f"{axis} against {name}, at a few sizes. {_spread(study) if main else ''}", figure))
    elif not few and len(study.swept) == 2:
        caption = (
            f"{name} over {' and '.join(study.swept)}: means over seeds. The star marks the best, its value above."
        )
        found.append(("grid", caption, grid_figure(study, measure, width=width)))
    elif not few:
        caption = f"Each axis against {name}. A dot is one experiment's mean over seeds, a dash the median of a value."
        found.append(("axes", caption, marginal_figure(study, measure, width=width)))
    group = "hero" if main else "others"
    return [
        Drawing(group, file_name(kind, measure), name, caption.strip(), figure)
        for kind, caption, figure in found
        if figure is not None
    ]


def swept_axis(study: Study) -> str | None:
    """The axis along which a figure is drawn: the one with the most values, one of numbers before one of names."""

    def worth(name: str) -> tuple[bool, int]:
        return all(numeric(value) is not None for value in study.axes[name]), len(study.axes[name])

    return max(study.swept, key=worth, default=None)


def _lines(study: Study) -> str:
    first = f" Grey: the baselines of {study.groups[0].label}." if study.groups[0].baselines(study.measures[0]) else ""
    many = "Each line is one family: the student, the sizes built from it without training, and the teacher."
    return f"{many} {_spread(study)}{first}"


def _spread(study: Study) -> str:
    """What a mean is taken over, and what is drawn around it."""
    low, high = study.seeds
    if high == 1:
        return "One seed each, so there is no spread to draw."
    seeds = f"{high} seeds" if low == high else f"{low} to {high} seeds"
    band = "from the lowest to the highest seed" if high <= MOST_IN_RANGE else "one standard deviation to each side"
    if low <= MOST_IN_RANGE < high:
        band += f" (up to {MOST_IN_RANGE} seeds: from the lowest to the highest)"
    return f"Lines are means over {seeds}, bands reach {band}."


def _difference_caption(study: Study, name: str) -> str:
    bars = "from the lowest to the highest seed" if study.seeds[1] > 1 else "two standard errors over the items"
    return (
        f"By how much each is better on {name} than {_reference(study)}, at the same seed. "
        f"Bars reach {bars}; filled marks are clear differences, open ones are not. What is one artifact is left out."
    )


def _reference(study: Study) -> str:
    names = {other.label for group in study.groups if (other := study.reference(group)) is not None}
    return next(iter(names)) if len(names) == 1 else "base at the same point of the sweep"


def render(
    study: Study,
    *,
    title: str,
    drawings: Sequence[Drawing],
    files: Mapping[str, str],
    question: Sequence[str] = (),
    spec: str = "",
    experiments: Experiments | None = None,
    provenance: Provenance = NO_PROVENANCE,
) -> str:
    """The page's HTML. `files`: texts of the files that it offers for download, by name."""
    return rendered(
        "comparison.html.jinja",
        downloads=files,
        kind="comparison",
        title=title,
        question=question,
        outcome=outcome(study),
        findings=findings(study),
        hero=[d for d in drawings if d.group == "hero"],
        others=[d for d in drawings if d.group == "others"],
        tables=[table(study, measure) for measure in study.measures],
        spread=_spread(study),
        seeds=study.seeds[1],
        missing=missing_lines(study),
        unlisted=max(0, len(_by_reason(study)) - _MOST_MISSING),
        axes=study.axes,
        experiments=experiments,
        spec=spec,
        resolved="",
        provenance=provenance,
    )


def table(study: Study, measure: str) -> dict[str, Any]:
    """One line per group and one per baseline of the first group, one column per size; and the differences.

    Of very many groups only the best are in `lines`; all are in `all`.
    """
    sizes = study.sizes(measure)
    best = {size: study.points(groups[0], measure)[size].mean for size, groups in ranked(study, measure).items()}
    marks = Marks()
    lines = [_line(study, measure, group, sizes, marks, best=best) for group in study.groups]
    first = study.groups[0]
    lines_of_baselines = [
        _line(study, measure, first, sizes, marks, curve=series, name=f"{SERIES[series]} ({first.label})")
        for series in first.baselines(measure)
    ]
    many = len(lines) > _MOST_LINES_OF_A_TABLE
    own = compared(study, measure)
    differing = sorted({difference.size for _, found in own for difference in found})
    unit = UNITS.get(study.primary(measure), "")
    arrow = "↑" if study.higher_is_better(measure) else "↓"
    return {
        "name": name_of(measure, study.primary(measure)),
        "unit": unit,
        "arrow": arrow,
        "sizes": [_heading(study, measure, size) for size in sizes],
        "lines": (_the_best(study, measure, lines) if many else lines) + lines_of_baselines,
        "all": lines if many else [],
        "compared": [str(size) for size in differing],
        "differences": [_difference_line(study, group, found, differing) for group, found in own],
        "footnotes": marks.footnotes,
        "fold": len(own) > _MOST_LINES_OF_A_TABLE,
    }


def _the_best(study: Study, measure: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the groups that are best in the mean over the sizes that all have; the first of them if none."""
    sizes = list(ranked(study, measure))
    sign = -1.0 if study.higher_is_better(measure) else 1.0
    means: dict[str, float] = {}
    for group in study.groups:
        points = study.points(group, measure)
        if sizes and all(size in points for size in sizes):
            means[group.label] = sign * sum(points[size].mean for size in sizes)
    ordered = sorted(means, key=means.__getitem__) or [group.label for group in study.groups]
    by_name = {line["name"]: line for line in lines}
    return [by_name[name] for name in ordered[:_BEST]]


def _heading(study: Study, measure: str, size: Size) -> dict[str, str]:
    points = (study.points(group, measure).get(size) for group in study.groups)
    parameters = sorted({point.parameters for point in points if point is not None})
    return {"name": str(size), "parameters": " to ".join(dict.fromkeys((count(parameters[0]), count(parameters[-1]))))}


def _line(
    study: Study,
    measure: str,
    group: Group,
    sizes: Sequence[Size],
    marks: Marks,
    *,
    curve: str = FAMILY,
    name: str = "",
    best: Mapping[Size, float] | None = None,
) -> dict[str, Any]:
    points = study.points(group, measure, curve)
    reasons: dict[Size, str] = {}
    for trial in group.trials:
        for missing in trial.results.missing:
            if missing.concerns(measure, study.primary(measure)) and curve_of(missing.cell) == curve:
                reasons[trial.sizes[missing.cell]] = missing.reason
    cells = []
    for size in sizes:
        point = points.get(size)
        is_best = point is not None and best is not None and point.mean == best.get(size)
        curves = [trial.curve(curve, measure, study.primary(measure)) for trial in group.trials]
        notes = [rows[size].note for rows in curves if size in rows]
        cells.append(_cell(point, reasons.get(size), group) | {"best": is_best, "marks": marks.of(notes)})
    return {"name": name or group.label, "seeds": len(group.trials), "faint": curve != FAMILY, "cells": cells}


def _cell(point: Point | None, reason: str | None, group: Group) -> dict[str, Any]:
    if point is None:
        return {"text": "", "spread": "", "note": "", "reason": reason or ""}
    spread = ""
    if point.spread is not None and len(point.values) <= MOST_IN_RANGE:
        spread = f"{number(point.spread[0])} to {number(point.spread[1])}"
    elif point.spread is not None:
        spread = f"± {number(point.deviation)}"
    seeds = len(point.values)
    note = "" if seeds in (1, len(group.trials)) and not reason else f"{seeds} seed{'s' if seeds > 1 else ''}"
    return {"text": number(point.mean), "spread": spread, "note": note, "reason": reason or ""}


def _difference_line(study: Study, group: Group, found: Sequence[Difference], sizes: Sequence[Size]) -> dict[str, Any]:
    by_size = {difference.size: difference for difference in found}
    other = study.reference(group)
    assert other is not None
    cells = []
    for size in sizes:
        difference = by_size.get(size)
        if difference is None:
            cells.append({"text": "", "error": "", "sure": False})
            continue
        error = difference.interval if difference.interval is not None else difference.items
        cells.append(
            {
                "text": signed(difference.gain),
                "error": "" if error is None else number(error),
                "sure": difference.clear,
            }
        )
    return {"name": group.label, "against": other.label, "cells": cells}


def missing_lines(study: Study) -> list[dict[str, Any]]:
    """What is missing: the experiments that miss the same results for the same reason in one line."""
    return [
        {"experiments": labels, "results": names, "reason": reason}
        for (names, reason), labels in list(_by_reason(study).items())[:_MOST_MISSING]
    ]


def _by_reason(study: Study) -> dict[tuple[tuple[str, ...], str], list[str]]:
    found: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for trial in study.trials:
        own: dict[str, list[str]] = {}
        for missing in trial.results.missing:
            own.setdefault(missing.reason, []).append(missing.name)
        for reason, names in own.items():
            found.setdefault((tuple(names), reason), []).append(trial.label)
    return found
