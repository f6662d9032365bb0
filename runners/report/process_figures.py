"""Draw how a family was made: loss curves, similarity of student and teacher, searches."""

import math
from typing import Any

import numpy as np

from boomspec.core.losses import LOSSES
from runners.report.chart import (
    BLUE,
    DASHED,
    DOTTED,
    INK,
    ORANGE,
    WIDTH,
    Entry,
    Figure,
    Looks,
    Panel,
    Spec,
    bottom,
    hover,
    layer,
    lines,
    points,
    quantity,
    reach,
    text,
    upright,
)
from runners.report.format import number
from runners.report.study import PatchSearch, TrainingCurves

_NOT_LOSSES = ("step", "tokens", "lr", "grad_norm", "on_policy", "patched")
_MOST_POINTS = 500  # of a loss curve; longer ones are averaged in bins


def training_figure(training: TrainingCurves, *, width: int = WIDTH) -> Figure:
    """The loss of every step, each term in its own panel (they have different scales); lines where phases begin."""
    terms = [
        name for name in dict.fromkeys(name for step in training.steps for name in step) if name not in _NOT_LOSSES
    ]
    terms = terms[1:] if len(terms) == 2 else terms  # the loss of one term is that term
    return Figure(tuple(_term(training, term, len(terms)) for term in terms), columns=2, width=width, height=130)


def _term(training: TrainingCurves, term: str, terms: int) -> Panel:
    logged = [(step["step"], step[term]) for step in training.steps if term in step]
    points = np.array(logged, dtype=np.float64).reshape(-1, 2)
    bin_width = math.ceil(len(points) / _MOST_POINTS) or 1
    bins = [points[i : i + bin_width].mean(axis=0) for i in range(0, len(points), bin_width)]
    steps, values = np.array(bins).reshape(-1, 2).T
    # A centred running mean over about a tenth of the curve; narrower at its start, which is steep.
    half = len(values) // 20
    smooth = [float(values[max(0, i - half) : i + min(half, i) + 1].mean()) for i in range(len(values))]
    rows = [
        {"x": _short(step), "y": _short(value), "mean": _short(mean)}
        for step, value, mean in zip(steps.tolist(), values.tolist(), smooth, strict=True)
    ]
    said = [{**row, "step": f"{row['x']:g}", "value": number(row["y"]), "smooth": number(row["mean"])} for row in rows]
    color = INK if term == "loss" else BLUE
    low, high = reach([row["y"] for row in rows])
    ends = [row["x"] for row in rows] if len(training.phases) < 2 else [step["step"] for step in training.steps]
    x = quantity("x", *reach(ends, 0.0), bottom("step", tickCount=5))
    y = upright(low, high, tickCount=4)
    faint = {"type": "line", "color": color, "opacity": 0.35, "strokeWidth": 0.8}
    mean = {"type": "line", "color": color, "strokeWidth": 2}
    layers = (
        layer(faint, rows, {"x": x, "y": y}),
        layer(mean, rows, {"x": x, "y": {**y, "field": "mean"}}),
        *_borders(training, x, high, y),
        hover(said, x, y, step="step", value="value", smooth="running mean"),
    )
    if loss := LOSSES.get(term):
        title, unit = loss.title, loss.unit
    else:
        title, unit = ("loss (weighted sum)" if term == "loss" and terms > 1 else _title(term)), ""
    return Panel(layers, title, unit)


def _borders(training: TrainingCurves, x: Spec, high: float, y: Spec) -> tuple[Spec, ...]:
    """A line where each phase but the first begins, with its name at the top."""
    rows = [{"x": phase.step, "y": high, "text": phase.name} for phase in training.phases[1:]]
    if not rows:
        return ()
    line = {"type": "rule", "color": INK, "opacity": 0.5, "strokeDash": list(DOTTED)}
    named = text(rows, x, y, {"color": {"value": INK}}, align="left", baseline="top", dx=3, fontSize=10)
    return layer(line, rows, {"x": x}), named


def _short(value: float) -> float:
    """Six digits: what a curve can show, at a third of the page's size."""
    return float(f"{value:.6g}")


def _title(column: str) -> str:
    """Of a weight or another number of a term that changes over the steps; else the column's own name."""
    what, _, kind = column.partition(".")
    return f"{what} of {LOSSES[kind].title}" if kind in LOSSES else column


def similarity_figure(training: TrainingCurves, *, width: int = WIDTH) -> Figure:
    """Cosine similarity of each aligned pair of states, before and after distillation."""
    entries = (
        Entry("before distillation", ORANGE, "square", width=0, size=4.5),
        Entry("after distillation", BLUE, "circle", width=0),
    )
    looks, names = Looks(entries), [f"{pair['student']} / {pair['teacher']}" for pair in training.pairs]
    rows: list[dict[str, Any]] = [
        {"series": entry.name, "x": name, "y": pair[when], "value": number(pair[when])}
        for entry, when in zip(entries, ("before", "after"), strict=True)
        for name, pair in zip(names, training.pairs, strict=True)
    ]
    pairs = [{"x": name, "low": p["before"], "high": p["after"]} for name, p in zip(names, training.pairs, strict=True)]
    y = upright(*reach([row["y"] for row in rows], 0.12))
    turned = {"labelAngle": -90} if len(names) > 8 else {"labelAngle": -30 if len(names) > 4 else 0}
    axis = bottom("student state / teacher state", labelOverlap=False, labelFontSize=10, **turned)
    x = {"field": "x", "type": "nominal", "sort": names, "axis": axis, "title": None}
    way = {"type": "rule", "color": INK, "opacity": 0.3, "strokeWidth": 1.6}
    layers = (
        layer(way, pairs, {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}),
        points(rows, looks, x, y),
        hover(rows, x, y, x="states", series="when", value="cosine similarity"),
    )
    return Figure((Panel(layers),), "cosine similarity   (↑ closer)", entries, width=width, height=200)


def search_figure(search: PatchSearch, *, width: int = WIDTH) -> Figure:
    """KL to the teacher by patched blocks: all candidates, those chosen, both sequential orders, the best known."""
    best: dict[int, float] = {}
    in_order = (point for values in search.sequential.values() for point in enumerate(values))
    for patched, value in (*search.candidates, *in_order):
        best[patched] = min(value, best.get(patched, math.inf))
    tried = Entry("candidates", INK, "circle", width=0, size=2.2, opacity=0.4)
    known = Entry("best known", ORANGE, "dash", width=0, size=8)
    orders = [
        Entry(name, INK, "circle", dash, width=1.2, size=0.1)
        for name, dash in zip(search.sequential, (DOTTED, DASHED), strict=False)
    ]
    chosen = Entry("chosen", BLUE, "circle", width=2.2)
    series = {
        tried: search.candidates,
        known: sorted(best.items()),
        **{entry: list(enumerate(search.sequential[entry.name])) for entry in orders},
        chosen: list(enumerate(search.values)),
    }
    rows: list[dict[str, Any]] = [
        {"series": entry.name, "x": patched, "y": value, "value": f"{number(value)} nats", "patched": str(patched)}
        for entry, found in series.items()
        for patched, value in found
    ]
    looks, drawn = Looks(list(series)), {entry.name for entry in series if entry.width}
    low, high = reach([row["x"] for row in rows], 0.04)
    x = quantity("x", low, high, bottom("patched blocks", tickMinStep=1, format="d"))
    y = upright(*reach([row["y"] for row in rows]))
    layers = (
        points([row for row in rows if row["series"] == "candidates"], looks, x, y),
        lines([row for row in rows if row["series"] in drawn], looks, x, y),
        points([row for row in rows if row["series"] != "candidates"], looks, x, y),
        hover(rows, x, y, series="set", patched="patched blocks", value="KL to the teacher"),
    )
    return Figure((Panel(layers),), "KL to the teacher, nats   (↓ better)", tuple(series), width=width, height=220)
