"""Draw sweeps: quality against the values of one axis, over two axes, or against each of many.

Each function returns a matplotlib Figure; see `runners.report.figures` for how they look and are written.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from runners.report.figures import BLUE, GREEN, ORANGE, draw_legend, draw_line, panels, quality_label
from runners.report.format import number
from runners.report.study import Group, Size, Study

MOST_PANELS = 6
_SIZES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"))
_MOST_TICKS = 24
_WIDTH_OF_TICKS = 70  # letters that fit side by side
_LOGARITHMIC = 4.0  # ratio of largest to smallest from which values stand by their logarithm
_MEDIAN: dict[str, Any] = {"markersize": 18, "markeredgewidth": 2.2, "zorder": 4}
_SUFFIXES = {"": 1.0, "%": 0.01, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([%kKMBT]?)")


def axis_figure(study: Study, measure: str, axis: str, *, width: float = 7.6) -> Figure:
    """Quality against the values of one axis at a few sizes; a panel for each combination of the other axes."""
    parts, values, places = panels_of(study, axis), study.axes[axis], axis_places(study.axes[axis])
    lines = math.ceil(len(parts) / 3)
    height = 4.2 if lines == 1 else 0.6 + 2.6 * lines
    with panels(width, height, len(parts), 3, sharex=True, sharey=True) as (figure, grid):
        for axes, (title, groups) in zip(grid, parts.items(), strict=True):
            for size, (color, marker) in zip(few_sizes(study, measure), _SIZES, strict=False):
                found = {g.axes[axis]: p for g in groups if (p := study.points(g, measure).get(size)) is not None}
                if found:
                    draw_line(axes, found, color, marker, str(size), [places[value] for value in found])
            axes.set_title(title)
            _label_values(axes, values)
        for axes in grid[3 * (lines - 1) :]:
            axes.set_xlabel(axis)
        figure.supylabel(quality_label(study, measure), fontsize=10)
        draw_legend(figure, grid[0])
    return figure


def panels_of(study: Study, axis: str) -> dict[str, list[Group]]:
    """The groups by the values of all axes but `axis`."""
    parts: dict[str, list[Group]] = {}
    for group in study.groups:
        title = ", ".join(f"{name}={value}" for name, value in group.axes.items() if name != axis)
        parts.setdefault(title, []).append(group)
    return parts


def few_sizes(study: Study, measure: str) -> tuple[Size, ...]:
    """The student, a size in the middle, and the largest below the teacher, of those that most groups have."""
    held = Counter(size for group in study.groups for size in study.points(group, measure))
    common = sorted(size for size, times in held.items() if times == max(held.values(), default=0))
    below = common[:-1] or common  # the largest is the teacher
    return tuple(dict.fromkeys((below[0], below[len(below) // 2], below[-1]))) if below else ()


def numeric(text: str) -> float | None:
    """The number that an axis value is, with the suffixes that quantities have; None where it is none."""
    found = _NUMBER.fullmatch(text)
    return None if found is None else float(found[1]) * _SUFFIXES[found[2]]


def axis_places(values: Sequence[str]) -> dict[str, float]:
    """Where the values of an axis stand: numbers by size (wide ranges by their logarithm), others side by side."""
    known = [number for value in values if (number := numeric(value)) is not None]
    if len(known) < len(values):
        return {value: float(place) for place, value in enumerate(values)}
    if min(known) > 0 and max(known) / min(known) >= _LOGARITHMIC:
        known = [math.log10(value) for value in known]
    return dict(zip(values, known, strict=True))


def _label_values(axes: Any, values: Sequence[str]) -> None:
    places = axis_places(values)
    shown = sorted(values, key=places.__getitem__)[:: math.ceil(len(values) / _MOST_TICKS)]
    axes.set_xticks([places[value] for value in shown], shown, rotation=_rotation(shown), fontsize=9)


def _rotation(labels: Sequence[str]) -> int:
    return 90 if sum(map(len, labels)) > _WIDTH_OF_TICKS else 0


def grid_figure(study: Study, measure: str, *, width: float = 7.6) -> Figure:
    """Quality over two axes, one panel for each of a few sizes: means over seeds; darker is better."""
    across, down = sorted(study.swept, key=lambda name: len(study.axes[name]), reverse=True)
    columns, lines = (
        sorted(study.axes[name], key=axis_places(study.axes[name]).__getitem__) for name in (across, down)
    )
    sizes, higher = few_sizes(study, measure), study.higher_is_better(measure)
    height = min(1.2 + 0.32 * len(lines), 7.0) * len(sizes)
    with panels(width, height, len(sizes), lines=False) as (figure, grid):
        for axes, size in zip(grid, sizes, strict=True):
            means = np.full((len(lines), len(columns)), np.nan)
            for group in study.groups:
                if (point := study.points(group, measure).get(size)) is not None:
                    means[lines.index(group.axes[down]), columns.index(group.axes[across])] = point.mean
            colors = "cividis_r" if higher else "cividis"
            mesh = axes.pcolormesh(np.ma.masked_invalid(means), cmap=colors, edgecolors="face", linewidth=0.3)
            figure.colorbar(mesh, ax=axes, pad=0.01).outline.set_visible(False)
            axes.set_xticks(*_thinned(columns), rotation=_rotation(columns), fontsize=9)
            axes.set_yticks(*_thinned(lines), fontsize=9)
            axes.set_ylabel(down)
            axes.set_title(str(size))
            if np.isfinite(means).any():  # a star on the best cell, its value beside the title
                line, column = divmod(int(np.nanargmax(means) if higher else np.nanargmin(means)), len(columns))
                axes.plot(column + 0.5, line + 0.5, "*", color="white", markeredgecolor="black", markersize=11)
                axes.set_title(f"★ {number(float(means[line, column]))}", loc="right")
        axes.set_xlabel(across)
        figure.suptitle(quality_label(study, measure), fontsize=10, ha="left", x=0.02)
    return figure


def _thinned(values: Sequence[str]) -> tuple[list[float], list[str]]:
    every = math.ceil(len(values) / _MOST_TICKS)
    return [place + 0.5 for place in range(0, len(values), every)], list(values[::every])


def marginal_figure(study: Study, measure: str, *, width: float = 7.6) -> Figure:
    """Quality against each axis at a size in the middle: every group a dot, the median of each value a dash."""
    sizes = few_sizes(study, measure)
    size = sizes[len(sizes) // 2]
    means = {g.label: p.mean for g in study.groups if (p := study.points(g, measure).get(size)) is not None}
    names = [name for name in study.swept if len(study.axes[name]) > 1]
    height = 0.6 + 2.9 * math.ceil(len(names) / 3)
    with panels(width, height, len(names), 3, sharey=True) as (figure, grid):
        for axes, name in zip(grid, names, strict=True):
            places = axis_places(study.axes[name])
            dots = [(places[g.axes[name]], means[g.label]) for g in study.groups if g.label in means and name in g.axes]
            axes.plot(*zip(*dots, strict=True), "o", color=BLUE, alpha=0.35, markersize=4, markeredgewidth=0)
            for x in sorted({x for x, _ in dots}):
                axes.plot(x, float(np.median([y for other, y in dots if other == x])), "_", color=ORANGE, **_MEDIAN)
            axes.margins(x=0.15)
            _label_values(axes, study.axes[name])
            axes.set_xlabel(name)
        figure.suptitle(f"at {size}", fontsize=10)
        figure.supylabel(quality_label(study, measure), fontsize=10)
    return figure
