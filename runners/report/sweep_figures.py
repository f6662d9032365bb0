"""Draw sweeps: quality against the values of one axis, over two axes, or against each of many."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runners.report.chart import (
    BLUE,
    GREEN,
    ORANGE,
    WIDTH,
    Entry,
    Figure,
    Looks,
    Panel,
    Spec,
    band,
    bottom,
    hover,
    labelled,
    layer,
    lines,
    points,
    quantity,
    reach,
    upright,
)
from runners.report.figures import mean_row, quality_label, told
from runners.report.format import number
from runners.report.study import Group, Size, Study

MOST_PANELS = 6
_SIZES = ((BLUE, "circle"), (ORANGE, "square"), (GREEN, "up"))
_MOST_TICKS = 24
_WIDTH_OF_TICKS = 70  # letters that fit side by side
_LOGARITHMIC = 4.0  # ratio of largest to smallest from which values stand by their logarithm
_SUFFIXES = {"": 1.0, "%": 0.01, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([%kKMBT]?)")


def axis_figure(study: Study, measure: str, axis: str, *, width: int = WIDTH) -> Figure:
    """Quality against the values of one axis at a few sizes; a panel for each combination of the other axes."""
    parts, places = panels_of(study, axis), axis_places(study.axes[axis])
    entries = tuple(
        Entry(str(size), color, shape, width=2.0)
        for size, (color, shape) in zip(few_sizes(study, measure), _SIZES, strict=False)
    )
    looks, found = Looks(entries), dict[str, list[dict[str, Any]]]()
    for title, groups in parts.items():
        found[title] = [
            mean_row(point, str(size), study, measure, size.layers)
            | {"x": places[group.axes[axis]], "at": group.axes[axis]}
            for size in few_sizes(study, measure)
            for group in groups
            if (point := study.points(group, measure).get(size)) is not None
        ]
    every = [row for rows in found.values() for row in rows]
    y = upright(
        *reach([value for row in every for value in (row["y"], row.get("low", row["y"]), row.get("high", row["y"]))])
    )
    panels = []
    for title, rows in found.items():
        x = _along(study.axes[axis], axis)
        spread = [row for row in rows if "low" in row]
        layers = [lines(rows, looks, x, y), points(rows, looks, x, y), told(rows, x, y, at=axis)]
        panels.append(Panel((*([band(spread, looks, x, y)] if spread else []), *layers), title))
    height = 240 if len(panels) <= 3 else 150
    return Figure(tuple(panels), quality_label(study, measure), entries, columns=3, width=width, height=height)


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


def _along(values: Sequence[str], title: str) -> Spec:
    """The channel of the values of an axis, each named at its place."""
    places = axis_places(values)
    shown = sorted(values, key=places.__getitem__)[:: math.ceil(len(values) / _MOST_TICKS)]
    axis = labelled({places[value]: value for value in shown}, labelAngle=_rotation(shown), **bottom(title))
    return quantity("x", *reach(list(places.values()), 0.08), axis)


def _rotation(labels: Sequence[str]) -> int:
    return -90 if sum(map(len, labels)) > _WIDTH_OF_TICKS else 0


def grid_figure(study: Study, measure: str, *, width: int = WIDTH) -> Figure:
    """Quality over two axes, one panel for each of a few sizes: means over seeds; darker is better."""
    across, down = sorted(study.swept, key=lambda name: len(study.axes[name]), reverse=True)
    columns, rows = (sorted(study.axes[name], key=axis_places(study.axes[name]).__getitem__) for name in (across, down))
    higher, panels = study.higher_is_better(measure), []
    colors: Spec = {"scheme": "cividis", "reverse": higher, "zero": False, "nice": False}
    for size in few_sizes(study, measure):
        cells: list[dict[str, Any]] = [
            {"x": group.axes[across], "y": group.axes[down], "mean": point.mean, "value": number(point.mean)}
            for group in study.groups
            if (point := study.points(group, measure).get(size)) is not None
        ]
        x = _names("x", columns, bottom(across, labelAngle=_rotation(columns)))
        y = _names("y", rows[::-1], {"title": down, "domain": False, "ticks": False})
        legend = {"title": None, "gradientThickness": 10, "gradientLength": 22 * min(len(rows), 8)}
        color = {"field": "mean", "type": "quantitative", "scale": colors, "legend": legend}
        tooltip = [
            {"field": f, "type": "nominal", "title": t} for f, t in (("x", across), ("y", down), ("value", "mean"))
        ]
        layers = [layer("rect", cells, {"x": x, "y": y, "color": color, "tooltip": tooltip})]
        title = str(size)
        if cells:  # a star on the best cell, its value beside the title
            best = (max if higher else min)(cells, key=lambda cell: cell["mean"])
            star = {
                "type": "text",
                "text": "★",
                "fontSize": 15,
                "color": "#ffffff",
                "stroke": "#000000",
                "strokeWidth": 0.6,
            }
            layers.append(layer(star, [best], {"x": x, "y": y}))
            title += f"   ★ {best['value']}"
        panels.append(Panel(tuple(layers), title))
    height = min(30 + 22 * len(rows), 420)
    return Figure(tuple(panels), quality_label(study, measure), width=width, height=height)


def _names(field: str, values: Sequence[str], axis: Spec) -> Spec:
    """The channel of an axis of which every value has a place of its own."""
    every = math.ceil(len(values) / _MOST_TICKS)
    shown = {**axis, "values": list(values[::every]), "grid": False, "labelOverlap": "greedy"}
    return {"field": field, "type": "ordinal", "sort": list(values), "axis": shown, "title": None}


def marginal_figure(study: Study, measure: str, *, width: int = WIDTH) -> Figure:
    """Quality against each axis at a size in the middle: every group a dot, the median of each value a dash."""
    sizes = few_sizes(study, measure)
    size = sizes[len(sizes) // 2]
    means = {g.label: p.mean for g in study.groups if (p := study.points(g, measure).get(size)) is not None}
    y, panels = upright(*reach(list(means.values()))), []
    for name in (name for name in study.swept if len(study.axes[name]) > 1):
        places = axis_places(study.axes[name])
        dots = [
            {"x": places[g.axes[name]], "y": means[g.label], "value": number(means[g.label]), "group": g.label}
            for g in study.groups
            if g.label in means and name in g.axes
        ]
        panels.append(Panel(tuple(_marginal(dots, _along(study.axes[name], name), y))))
    label = f"{quality_label(study, measure)}, at {size}"
    return Figure(tuple(panels), label, columns=3, width=width, height=170)


def _marginal(dots: Sequence[Mapping[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    medians = [
        {"x": at, "y": float(np.median([dot["y"] for dot in dots if dot["x"] == at]))} for at in {d["x"] for d in dots}
    ]
    dot = {"type": "point", "filled": True, "color": BLUE, "opacity": 0.4, "size": 22}
    dash = {"type": "tick", "orient": "horizontal", "color": ORANGE, "thickness": 2.5, "size": 22}
    said = hover(dots, x, y, group="experiment", value="mean over seeds")
    return [
        layer(dot, dots, {"x": x, "y": y}),
        layer(dash, sorted(medians, key=lambda m: m["x"]), {"x": x, "y": y}),
        said,
    ]
