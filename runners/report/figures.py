"""Draw quality against size and differences between experiments. `runners.report.chart` says what a figure is."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from runners.report.chart import (
    BLUE,
    COUNT,
    DASHED,
    DOTTED,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    PINK,
    SHAPES,
    SKY,
    SOFT,
    WIDTH,
    YELLOW,
    Entry,
    Figure,
    Looks,
    Panel,
    Spec,
    area,
    band,
    bars,
    bottom,
    hover,
    labelled,
    layer,
    lines,
    points,
    quantity,
    reach,
    text,
    upright,
)
from runners.report.compare import CLEAR, ScoreDifference, against_references
from runners.report.format import count, number, signed, size
from runners.report.study import SERIES, Group, Point, Row, Study

LOOKS = {
    series: Entry(SERIES[series], *look)
    for series, look in {
        "random_init": (PINK, "up", DOTTED, 1.4),
        "shortgpt": (YELLOW, "plus", DASHED, 1.4),
        "laco": (SKY, "x", DASHED, 1.4),
        "contiguous_drop": (YELLOW, "left", DOTTED, 1.4),
        "contiguous_distilled": (GREEN, "left", DASHED, 1.4),
        "linear_patch": (ORANGE, "right", DOTTED, 1.4),
        "cross_patching": (PINK, "diamond", DOTTED, 0.0),
        "phase": (BLUE, "diamond", DOTTED, 0.0),
        "standard_distillation": (GREEN, "down", (1, 0), 1.4),
        "naive_pruning": (ORANGE, "square", DASHED, 1.4),
        "interpolated": (BLUE, "circle", (1, 0), 2.4),  # the last is drawn over the others
    }.items()
}
_NOT_THE_TEACHER = (
    "phase",
    "standard_distillation",
    "random_init",
    "contiguous_distilled",
    "cross_patching",
)  # series that do not end in the teacher
CONTROLS = (
    "random_init",
    "laco",
    "shortgpt",
    "contiguous_drop",
    "linear_patch",
    "cross_patching",
)  # may be so far off that they would flatten all else
_ENDS = {"student": Entry("student", INK, "diamond", size=5.5), "teacher": Entry("teacher", INK, "star", size=8.0)}
# Of groups: the reference is ink; the rest is told apart by colour and by marker.
GROUP_LOOKS = (
    (INK, "circle"), (BLUE, "square"), (ORANGE, "up"), (GREEN, "diamond"), (PINK, "down"), (YELLOW, "plus"), (SKY, "x"),
)  # fmt: skip
MOST_LINES = len(GROUP_LOOKS)
_FAINT = 0.5  # of baselines beside groups
_MOST_SIZES = 16  # named along the top
_TITLES = {  # of the numbers that are said where one points at a mark, by field
    "series": "series", "layers": "layers", "parameters": "parameters", "bytes": "weights", "value": "value",
    "error": "standard error", "seeds": "seeds", "spread": "lowest to highest", "against": "against",
    "clear": "beyond doubt",
}  # fmt: skip


def told(rows: Sequence[Mapping[str, Any]], x: Spec, y: Spec, /, **more: str) -> Spec:
    """The layer that says the numbers of these rows: those fields that any of them has."""
    known = {**_TITLES, **more}
    shown = {field: title for field, title in known.items() if any(row.get(field) for row in rows)}
    return hover(rows, x, y, **shown)


def size_figure(study: Study, measure: str, *, width: int = WIDTH) -> Figure:
    """Quality against parameters of one experiment. Error bars are one standard error."""
    trial, metric = study.trials[0], study.primary[measure]
    rows = {name: trial.series(name, measure, metric) for name in (*_ENDS, *LOOKS)}
    ends = {name: rows.pop(name)[:1] for name in _ENDS}
    entries = [LOOKS[name] for name, own in rows.items() if own]
    path: list[dict[str, Any]] = []
    marked: list[dict[str, Any]] = []
    for name, own in rows.items():
        if own:  # the family runs from student to teacher; pruning nothing is the teacher, too
            first = ends["student"] if name == "interpolated" else []
            whole = [*first, *own, *(ends["teacher"] if name not in _NOT_THE_TEACHER else [])]
            path += [] if LOOKS[name].width == 0 else [_place(row, SERIES[name], study) for row in whole]
            marked += [_place(row, SERIES[name], study) for row in own]
    ended = [_place(row, SERIES[name], study) for name, own in ends.items() for row in own]
    near = [row for own in ends.values() for row in own]
    near += [row for name, own in rows.items() if name not in CONTROLS for row in own]
    controls = [(name, row) for name in CONTROLS for row in rows[name]]
    far = [_Far(row.cell.parameters, row.value, LOOKS[name]) for name, row in controls]
    low, high, out = _view([row.value + sign * (row.stderr or 0.0) for row in near for sign in (-1, 1)], far)
    places: dict[float, int] = {row.cell.parameters: row.cell.layers for row in [*near, *(row for _, row in controls)]}
    x, y, looks = sizes_along(places), upright(low, high), Looks(entries)
    seen = [row for row in marked if low <= row["y"] <= high]
    layers = [
        *_named_sizes(places, x, y),
        *_end_lines([(name, row.value) for name, own in ends.items() for row in own], y),
        lines(path, looks, _bare(x), y) | {"mark": {"type": "line", "clip": True, "strokeJoin": "round"}},
        bars([row for row in [*seen, *ended] if "low" in row and row["series"] in looks.names], looks, _bare(x), y),
        points(seen, looks, _bare(x), y),
        *_end_marks(ended, _bare(x), y),
        *_arrows(out, (low, high), looks, x, y),
        told([*seen, *ended, *_held([row for row in marked if row not in seen], low, high)], _bare(x), y),
    ]
    return Figure((_panel(layers),), quality_label(study, measure), tuple(reversed(entries)), width=width, sizes=True)


def _place(row: Row, series: str, study: Study) -> dict[str, Any]:
    """A row as a mark: where it stands, and what is said of it."""
    found = {"series": series, "x": row.cell.parameters, "y": row.value, "layers": str(row.size.layers)}
    found |= {"parameters": count(row.cell.parameters), "bytes": size(row.cell.bytes)}
    found["value"] = number(row.value) + study.unit(row.measure, " ")
    if row.stderr:
        found |= {"error": number(row.stderr), "low": row.value - row.stderr, "high": row.value + row.stderr}
    return found


def size_lines(study: Study, measure: str, *, width: int = WIDTH) -> Figure:
    """Quality against parameters: means of each group, their spread over seeds a band; faint baselines of the first."""
    values: list[float] = []
    places: dict[float, int] = {}
    entries: list[Entry] = []
    shown: list[dict[str, Any]] = []
    faint: list[dict[str, Any]] = []
    first, far = study.groups[0], list["_Far"]()
    for series in first.baselines(measure):
        name = SERIES[series] if len(study.groups) == 1 else f"{SERIES[series]} ({first.label})"
        entry = replace(LOOKS[series], name=name, color=SOFT, opacity=_FAINT, width=1.2, size=3.8)
        own = [
            mean_row(p, name, study, measure, place.layers) for place, p in study.points(first, measure, series).items()
        ]
        faint += own
        entries += [entry] if own else []
        far += [_Far(row["x"], row["y"], entry) for row in own if series in CONTROLS]
        values += [row["y"] for row in own if series not in CONTROLS]
    for group, (color, shape) in reversed(list(zip(study.groups, GROUP_LOOKS, strict=False))):
        found = study.points(group, measure)
        entries += [Entry(group.label, color, shape, width=2.0)] if found else []
        shown += [mean_row(point, group.label, study, measure, place.layers) for place, point in found.items()]
        values += [value for point in found.values() for value in (point.spread or (point.mean,))]
        places |= {point.parameters: place.layers for place, point in found.items()}
    shared = []
    for name in _ENDS:  # where all experiments have the same artifact
        rows = [row for trial in study.trials for row in trial.series(name, measure, study.primary[measure])]
        if len({row.artifact for row in rows}) == 1:
            shared.append((name, rows[0]))
    low, high, out = _view(values, far)
    x, y, looks = sizes_along(places), upright(low, high), Looks(entries)
    seen = [row for row in faint if low <= row["y"] <= high]
    layers = [
        *_named_sizes(places, x, y),
        *_end_lines([(name, row.value) for name, row in shared], y),
        *([band([row for row in shown if "low" in row], looks, _bare(x), y)] if any("low" in r for r in shown) else []),
        lines([*faint, *shown], looks, _bare(x), y) | {"mark": {"type": "line", "clip": True, "strokeJoin": "round"}},
        points([*seen, *shown], looks, _bare(x), y),
        *_end_marks([_place(row, SERIES[name], study) for name, row in shared], _bare(x), y),
        *_arrows(out, (low, high), looks, x, y),
        told([*shown, *_held(faint, low, high)], _bare(x), y),
    ]
    return Figure((_panel(layers),), quality_label(study, measure), tuple(reversed(entries)), width=width, sizes=True)


def mean_row(point: Point, series: str, study: Study, measure: str, layers: int | None = None) -> dict[str, Any]:
    """A mean over seeds as a mark, at its parameters."""
    found = {"series": series, "x": point.parameters, "y": point.mean, "parameters": count(point.parameters)}
    found |= {"layers": str(layers)} if layers is not None else {}
    found["value"] = number(point.mean) + study.unit(measure, " ")
    if point.spread:
        low, high = point.spread
        spread = f"{number(low)} to {number(high)}"
        found |= {"low": low, "high": high, "seeds": str(len(point.values)), "spread": spread}
    return found


def difference_lines(study: Study, measure: str, *, width: int = WIDTH) -> Figure | None:
    """By how much each group is better than its reference at each size; None where nothing can be compared.

    Filled marks are clear. Bars: lowest to highest seed, or two standard errors over the items of one seed.
    """
    found = (
        (group, other, [d for d in found if not d.same]) for group, other, found in against_references(study, measure)
    )
    compared = [(group, other, own) for group, other, own in found if own]
    if not compared:
        return None
    every = [difference for _, _, own in compared for difference in own]
    step = 0.008 * (max(d.parameters for d in every) - min(d.parameters for d in every))
    rows: list[dict[str, Any]] = []
    entries = []
    for place, (group, other, own) in enumerate(compared):
        color, shape = GROUP_LOOKS[study.groups.index(group)]
        entries.append(Entry(group.label, color, shape, width=1.4))
        shift = (place - (len(compared) - 1) / 2) * step
        rows += [_difference(d, group, other, study, measure) | {"x": d.parameters + shift} for d in own]
    low, high = reach([0.0, *(row[end] for row in rows for end in ("low", "high"))])
    places = {d.parameters: d.size.layers for d in every}
    x, y, looks = sizes_along(places), upright(low, high), Looks(entries)
    zero = {"type": "rule", "color": INK, "strokeWidth": 1.2}
    clear, open_ = ([row for row in rows if bool(row["sure"]) is sure] for sure in (True, False))
    layers = [
        *_named_sizes(places, x, y),
        layer(zero, [{"y": 0.0}], {"y": y}),
        bars(rows, looks, _bare(x), y),
        lines(rows, looks, _bare(x), y),
        points(clear, looks, _bare(x), y),
        points(open_, looks, _bare(x), y, filled=False, fill=PAPER, stroke=None, strokeWidth=1.6),
        told(rows, _bare(x), y, value="better by", error="standard error over items", spread="from, to"),
    ]
    label = f"better by{study.unit(measure, ', ')}   (↑ better)"
    return Figure((_panel(layers),), label, tuple(entries), width=width, height=220, sizes=True)


def _difference(d: ScoreDifference, group: Group, other: Group, study: Study, measure: str) -> dict[str, Any]:
    over = CLEAR * (d.items or 0.0)  # of one seed, over the items
    low, high = (min(d.gains), max(d.gains)) if len(d.gains) > 1 else (d.gain - over, d.gain + over)
    found = {"series": group.label, "y": d.gain, "low": low, "high": high, "against": other.label}
    found |= {"layers": str(d.size.layers), "parameters": count(d.parameters), "seeds": str(len(d.gains))}
    found |= {"value": signed(d.gain) + study.unit(measure, " "), "spread": f"{signed(low)}, {signed(high)}"}
    found |= {"error": number(d.items)} if d.items else {}
    return found | {"sure": d.clear, "clear": "yes" if d.clear else "no"}


# --- parts -----------------------------------------------------------------------------------------


def quality_label(study: Study, measure: str) -> str:
    """What a measure's axis is called, with its unit and which way is better."""
    return f"{study.name(measure)}{study.unit(measure, ', ')}   ({study.arrow(measure)} better)"


def sizes_along(places: Iterable[float]) -> Spec:
    """The channel of parameters, for the first layer of a view."""
    low, high = reach(list(places), 0.04)
    return quantity("x", low, high, bottom("parameters", labelExpr=COUNT, tickCount=6, labelOverlap="greedy"))


def _bare(x: Spec) -> Spec:
    """The same channel for a layer that draws no axis."""
    return {**x, "axis": None}


def _panel(layers: Sequence[Spec]) -> Panel:
    return Panel(tuple(layers), config=(("resolve", {"axis": {"x": "independent"}}),))


def _named_sizes(places: Mapping[float, int], x: Spec, y: Spec) -> list[Spec]:
    """Nothing but two axes: parameters along the bottom; the layers of each size along the top."""
    unseen = {"type": "point", "opacity": 0}
    every = max(1, math.ceil(len(places) / _MOST_SIZES))
    shown = sorted(places)[::-1][::every][::-1]  # the largest is always among them
    names = {at: str(places[at]) for at in shown}
    if shown:
        names[shown[0]] += " layers"  # the first is the one that always has room
    top = labelled(names, orient="top", title=None, grid=False, domain=False, ticks=False, labelColor=SOFT)
    rows = [{"x": at, "y": y["scale"]["domain"][0]} for at in shown]
    return [layer(unseen, rows, {"x": x, "y": y}), layer(unseen, rows, {"x": {**x, "axis": top}, "y": y})]


def _end_marks(rows: Sequence[Mapping[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    """The marks of student and teacher, which are in no legend: a line says which is which."""
    found = []
    for row in rows:
        entry = _ENDS["student" if row["series"] == SERIES["student"] else "teacher"]
        mark = {"type": "point", "filled": True, "color": INK, "stroke": PAPER, "strokeWidth": 0.8, "opacity": 1}
        mark |= {"shape": SHAPES[entry.shape], "size": area(entry.size)}
        found.append(layer(mark, [{"x": row["x"], "y": row["y"]}], {"x": x, "y": y}))
    return found


def _end_lines(found: Sequence[tuple[str, float]], y: Spec) -> list[Spec]:
    """Dashed lines at the values of student and teacher, each named at the end where the curves are not."""
    rule = {"type": "rule", "color": INK, "opacity": 0.45, "strokeWidth": 1, "strokeDash": [4, 3]}
    shown = []
    for name, value in found:
        shown.append(layer(rule, [{"y": value}], {"y": y}))
        side = {"align": "right", "dx": -4} if name == "student" else {"align": "left", "dx": 4}
        place: Spec = {"value": "width" if name == "student" else 0}
        row = {"y": value, "text": f"{name} {number(value)}"}
        shown.append(text([row], place, y, {}, baseline="bottom", dy=-3, **side))
    return shown


class _Far(NamedTuple):
    """A point of a control, which may be out of view."""

    x: float
    y: float
    entry: Entry


def _view(values: Sequence[float], controls: Sequence[_Far]) -> tuple[float, float, list[_Far]]:
    """The ends of the scale for `values`, and the controls that lie beyond: they do not flatten the rest."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        low, high = reach([point.y for point in controls])
        return low, high, []
    low, high = min(finite), max(finite)
    margin = 0.5 * (high - low) or 0.1 * abs(high) or 1.0
    near = [point.y for point in controls if low - margin <= point.y <= high + margin]
    bottom_, top = min([low, *near]), max([high, *near])
    pad = 0.1 * (top - bottom_ or margin)
    # An arrow needs more room than a margin.
    bottom_ -= pad * (2 if any(point.y < bottom_ - pad for point in controls) else 1)
    top += pad * (2 if any(point.y > top + pad for point in controls) else 1)
    return bottom_, top, [point for point in controls if not bottom_ <= point.y <= top]


def _held(rows: Sequence[Mapping[str, Any]], low: float, high: float) -> list[dict[str, Any]]:
    """The rows, those out of view at its edge."""
    return [{**row, "y": min(max(row["y"], low), high)} for row in rows]


def _arrows(out: Sequence[_Far], ends: tuple[float, float], looks: Looks, x: Spec, y: Spec) -> list[Spec]:
    """Points out of view: an arrow at the edge, with the value of those that have room for it."""
    if not out:
        return []
    low, high = x["scale"]["domain"]
    rows, last = [], dict[bool, float]()
    for point in sorted(out):
        up = point.y > ends[1]
        row = {"series": point.entry.name, "x": point.x, "y": ends[1] if up else ends[0], "up": up, "text": ""}
        if point.x - last.get(up, -math.inf) > 0.075 * (high - low):
            row["text"], last[up] = number(point.y), point.x
        rows.append(row)
    shown = []
    for up in (True, False):
        if own := [row for row in rows if row["up"] is up]:
            arrow = {"type": "point", "filled": True, "shape": "triangle-up" if up else "triangle-down", "size": 45}
            shown.append(layer(arrow | {"yOffset": 5 if up else -5}, own, {"x": _bare(x), "y": y, **looks.color}))
            side = {"baseline": "top", "dy": 12} if up else {"baseline": "bottom", "dy": -12}
            shown.append(text([row for row in own if row["text"]], _bare(x), y, looks.color, fontSize=10, **side))
    return shown
