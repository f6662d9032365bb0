"""The figures of a comparison: experiments against size, against what was varied, and against their reference.

Each function returns a matplotlib Figure; see `runners.report.figures` for how they look and are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from runners.report.collect import SERIES
from runners.report.comparison import Group, Point, Study
from runners.report.differences import Difference, differences
from runners.report.figures import (
    BLUE,
    CONTROLS,
    GREEN,
    INK,
    LOOK,
    ORANGE,
    PAPER,
    PINK,
    SKY,
    STYLE,
    YELLOW,
    draw_end,
    keep_in_view,
    quality_label,
    size_axes,
)
from runners.report.findings import CLEAR, UNITS

# What is compared with is ink; the rest is told apart by colour and by marker.
_GROUPS = ((INK, "o"), (BLUE, "s"), (ORANGE, "^"), (GREEN, "D"), (PINK, "v"), (YELLOW, "P"), (SKY, "X"))
MOST_LINES = len(_GROUPS)
_FAINT = 0.45  # of what is not compared


def size_lines(study: Study, measure: str, *, width: float = 7.6) -> Figure:
    """Quality against parameters: a line through the mean of each group's family, its spread over seeds a band.

    The baselines of the first group are drawn faintly.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 2.4 + 0.3 * width), layout="constrained")
        axes = figure.add_subplot()
        values: list[float] = []
        places: dict[int, float] = {}
        for group, (color, marker) in zip(study.groups, _GROUPS, strict=False):
            points = study.points(group, measure)
            draw_line(axes, points, color, marker, group.label)
            values += [value for point in points.values() for value in (point.spread or (point.mean,))]
            places |= {size.layers: point.parameters for size, point in points.items()}
        far = _baselines(axes, study, measure, values)
        for name, (parameters, value) in _shared_ends(study, measure).items():
            draw_end(axes, parameters, value, name)
        keep_in_view(axes, values, far, alpha=_FAINT)
        size_axes(axes, places)
        axes.set_ylabel(measure_label(study, measure))
        legend(figure, axes)
    return figure


def draw_line(axes: Any, points: Mapping[Any, Point], color: str, marker: str, label: str, x: Any = None) -> None:
    """A line of means with its band; `x` defaults to the parameters."""
    at = [point.parameters for point in points.values()] if x is None else x
    means = [point.mean for point in points.values()]
    look = {"color": color, "marker": marker, "markersize": 6, "linewidth": 1.8, "markeredgecolor": "none"}
    axes.plot(at, means, label=label, zorder=5, **look)
    if any(point.spread for point in points.values()):
        low, high = zip(*(point.spread or (point.mean, point.mean) for point in points.values()), strict=True)
        axes.fill_between(at, low, high, color=color, alpha=0.16, linewidth=0, zorder=3)


def _baselines(axes: Any, study: Study, measure: str, values: list[float]) -> list[tuple[float, float, str]]:
    """Draw the first group's baselines. Returns the points that may be out of view; adds others to `values`."""
    group, far = study.groups[0], []
    for series in group.baselines(measure):
        points = study.points(group, measure, series)
        if not points:
            continue
        x, y = [p.parameters for p in points.values()], [p.mean for p in points.values()]
        look = {k: v for k, v in LOOK[series].items() if k in ("marker", "linestyle")}
        label = SERIES[series] if len(study.groups) == 1 else f"{SERIES[series]} ({group.label})"
        axes.plot(x, y, label=label, color=INK, alpha=_FAINT, linewidth=1.1, markersize=4.5, zorder=2, **look)
        if series in CONTROLS:
            far += [(place, value, INK) for place, value in zip(x, y, strict=True)]
        else:
            values += y
    return far


def _shared_ends(study: Study, measure: str) -> dict[str, tuple[float, float]]:
    """Student and teacher where all experiments have the same artifact: parameters and value, by name."""
    metric = study.primary(measure)
    found: dict[str, tuple[float, float]] = {}
    for name in ("student", "teacher"):
        rows = [(t, row) for t in study.trials for row in t.results.series(name, measure, metric)]
        if rows and len({trial.artifacts[row.cell] for trial, row in rows}) == 1:
            found[name] = rows[0][1].cell.parameters, rows[0][1].value
    return found


def difference_lines(study: Study, measure: str, *, width: float = 7.6) -> Figure | None:
    """By how much each group is better than its reference at each size; None where nothing can be compared.

    Filled marks are clear. Bars: lowest to highest seed, or two standard errors over the items of one seed.
    """
    found = compared(study, measure)
    if not found:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.6 + 0.24 * width), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color=INK, linewidth=1.2, zorder=2)
        every = [difference.parameters for _, own in found for difference in own]
        step = 0.008 * (max(every) - min(every))
        for place, (group, own) in enumerate(found):
            x = [d.parameters + (place - (len(found) - 1) / 2) * step for d in own]
            _difference_line(axes, x, own, _GROUPS[study.groups.index(group)], group.label)
        size_axes(axes, {d.size.layers: d.parameters for _, own in found for d in own})
        unit = f", {UNITS[study.primary(measure)]}" if study.primary(measure) in UNITS else ""
        axes.set_ylabel(f"better by{unit}   (↑ better)")
        legend(figure, axes)
    return figure


def compared(study: Study, measure: str) -> list[tuple[Group, tuple[Difference, ...]]]:
    """Each group that has a reference, and the sizes at which the two are not one artifact."""
    pairs = [(group, other) for group in study.groups if (other := study.reference(group)) is not None]
    found = [(group, differences(study, group, other, measure)) for group, other in pairs]
    own = [(group, tuple(d for d in compared if not d.same)) for group, compared in found]
    return [(group, kept) for group, kept in own if kept]


def _difference_line(axes: Any, x: list[float], own: Sequence[Difference], look: tuple[str, str], label: str) -> None:
    color, marker = look
    gains = [d.gain for d in own]
    below, above = zip(*(_bar(d) for d in own), strict=True)
    axes.errorbar(x, gains, yerr=(below, above), fmt="none", ecolor=color, elinewidth=1.1, zorder=3)
    axes.plot(x, gains, color=color, marker=marker, linewidth=1.2, markersize=6, zorder=4, label=label)
    open_marks = [(at, d.gain) for at, d in zip(x, own, strict=True) if not d.clear]
    for at, gain in open_marks:
        axes.plot(at, gain, marker, color=color, markersize=6, markerfacecolor=PAPER, zorder=5)


def _bar(difference: Difference) -> tuple[float, float]:
    """How far the bar reaches below and above: to the lowest and highest seed, or over the items of one seed."""
    if len(difference.gains) > 1:
        return difference.gain - min(difference.gains), max(difference.gains) - difference.gain
    reach = CLEAR * (difference.items or 0.0)
    return reach, reach


def measure_label(study: Study, measure: str) -> str:
    return quality_label(measure, study.primary(measure), higher_is_better=study.higher_is_better(measure))


def legend(figure: Figure, axes: Any) -> None:
    handles, names = axes.get_legend_handles_labels()
    if names:
        columns = 4 if max(map(len, names)) < 16 else 3 if max(map(len, names)) < 26 else 2
        figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3.0)
