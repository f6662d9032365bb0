"""The figures of a report: size against quality, loss curves, similarity of student and teacher.

Each function returns a matplotlib Figure made with the object interface: no global state, no display.
`write_png` and `svg` give the same bytes for the same figure: no dates, no random ids. In the SVG, colours are
the page's (`currentColor` for ink), so that a figure follows it into dark mode.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from runners.report.collect import SERIES, Results, Row, Training
from runners.report.findings import UNITS
from runners.report.words import count, number

# Okabe and Ito's palette: told apart with every common form of colour blindness, and in print by the markers.
INK, BLUE, ORANGE, PINK = "#1a1a19", "#0072b2", "#d55e00", "#b5649b"
_VARIABLES = {BLUE: "--blue", ORANGE: "--orange", PINK: "--pink"}  # of the page's style, lighter in the dark
_LOOK: dict[str, dict[str, Any]] = {
    "interpolated": {"color": BLUE, "marker": "o", "linewidth": 2.2, "markersize": 7, "zorder": 5},
    "naive_pruning": {"color": ORANGE, "marker": "s", "linewidth": 1.4, "markersize": 6, "linestyle": (0, (5, 2))},
    "random_init": {"color": PINK, "marker": "^", "linewidth": 1.4, "markersize": 7, "linestyle": (0, (1, 1.5))},
}
_ENDS = {"student": ("D", 8), "teacher": ("*", 15)}
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "errorbar.capsize": 2.5,
    "svg.fonttype": "none",  # text stays text
}
_TERMS = {"cross_entropy": "cross-entropy", "kl": "KL divergence", "hidden_cosine": "hidden cosine"}
_MOST_POINTS = 1000  # of a loss curve; longer ones are averaged in bins


def size_figure(results: Results, measure: str, *, width: float = 7.6, height: float = 4.4) -> Figure:
    """Quality against parameters, the layer counts along the top. Error bars are one standard error."""
    metric = results.primary(measure)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        ends = {name: rows[0] for name in _ENDS if (rows := results.series(name, measure, metric))}
        lines = {name: results.series(name, measure, metric) for name in _LOOK}
        for name, rows in lines.items():
            if rows:
                _line(axes, rows, ends, name)
        for name, row in ends.items():
            _end(axes, row, name)
        _limit(axes, [*lines["interpolated"], *lines["naive_pruning"], *ends.values()], lines["random_init"])
        _size_axes(axes, [*ends.values(), *(row for rows in lines.values() for row in rows)])
        axes.set_ylabel(_quality_label(results, measure, metric))
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=3, fontsize=9, handlelength=3.2)
    return figure


def _line(axes: Any, rows: Sequence[Row], ends: dict[str, Row], name: str) -> None:
    """One series. The family runs from student to teacher; pruning nothing is the teacher, too."""
    look, path = _LOOK[name], list(rows)
    if name == "interpolated" and "student" in ends:
        path.insert(0, ends["student"])
    if name != "random_init" and "teacher" in ends:
        path.append(ends["teacher"])
    x, y = [row.cell.parameters for row in path], [row.value for row in path]
    axes.plot(x, y, label=SERIES[name], **look, markevery=[i for i, row in enumerate(path) if row in rows])
    bars = rows if name != "interpolated" else path
    axes.errorbar(
        [row.cell.parameters for row in bars],
        [row.value for row in bars],
        yerr=[row.stderr or 0.0 for row in bars],
        fmt="none",
        ecolor=look["color"],
        elinewidth=1.0,
        zorder=look.get("zorder", 2),
    )


def _end(axes: Any, row: Row, name: str) -> None:
    """Student or teacher: its mark, and a dashed line named at the end where the curves are not."""
    marker, size = _ENDS[name]
    axes.plot(row.cell.parameters, row.value, marker, color=INK, markersize=size, zorder=6)
    axes.axhline(row.value, color=INK, alpha=0.45, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"{name} {number(row.value)}",
        (1.0 if name == "student" else 0.0, row.value),
        xycoords=("axes fraction", "data"),
        xytext=(-4 if name == "student" else 4, 3),
        textcoords="offset points",
        ha="right" if name == "student" else "left",
        va="bottom",
        fontsize=9,
    )


def _limit(axes: Any, rows: Sequence[Row], control: Sequence[Row]) -> None:
    """Keep a control that is far off from flattening all else: its points out of view become arrows with values."""
    finite = [row for row in rows if math.isfinite(row.value)]
    if not finite:
        return
    values = [row.value + sign * (row.stderr or 0.0) for row in finite for sign in (-1, 1)]
    low, high = min(values), max(values)
    margin = 0.5 * (high - low) or 0.1 * abs(high) or 1.0
    near = [row.value for row in control if low - margin <= row.value <= high + margin]
    bottom, top = min([low, *near]), max([high, *near])
    pad = 0.1 * (top - bottom or margin)
    # An arrow needs more room than a margin.
    bottom -= pad * (3 if any(row.value < bottom - pad for row in control) else 1)
    top += pad * (3 if any(row.value > top + pad for row in control) else 1)
    out = [row for row in control if not bottom <= row.value <= top]
    if out:
        axes.set_ylim(bottom, top)
    color = _LOOK["random_init"]["color"]
    for row in out:
        up = row.value > top
        axes.annotate(
            number(row.value),
            (row.cell.parameters, top if up else bottom),
            xytext=(0, -24 if up else 24),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=color,
            arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.2},
        )


def _size_axes(axes: Any, rows: Sequence[Row]) -> None:
    """Parameters along the bottom; the layers of each size along the top."""
    axes.set_xlabel("parameters")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(7))
    places = {row.cell.layers: row.cell.parameters for row in rows}
    if not places:
        return
    every = max(1, math.ceil(len(places) / 16))
    shown = sorted(places)[::-1][::every]  # the largest is always among them
    top = axes.secondary_xaxis("top")
    top.set_xticks([places[layers] for layers in shown], [str(layers) for layers in shown])
    top.set_xlabel("layers", fontsize=9)
    top.tick_params(length=0, labelsize=9)
    top.spines["top"].set_visible(False)


def _quality_label(results: Results, measure: str, metric: str) -> str:
    arrow = "↑ better" if results.higher_is_better(measure, metric) else "↓ better"
    name = "held-out" if measure == "held_out" else measure
    unit = f", {UNITS[metric]}" if metric in UNITS else ""
    return f"{name} {metric}{unit}   ({arrow})"


def training_figure(training: Training, *, width: float = 7.6) -> Figure:
    """The loss of every step, each term in its own panel (they have different scales)."""
    known = {"step", "tokens", "lr", "grad_norm"}
    terms = [name for name in training.steps[0] if name not in known] if training.steps else []
    terms = terms[1:] if len(terms) == 2 else terms  # the loss of one term is that term
    with mpl.rc_context(_STYLE):
        columns = min(2, len(terms)) or 1
        lines = math.ceil(len(terms) / columns) or 1
        figure = Figure(figsize=(width, 2.3 * lines + 0.2), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True).flatten()
        for axes, term in zip(panels, terms, strict=False):
            steps, values = _thinned(training, term)
            color = INK if term == "loss" else BLUE
            axes.plot(steps, values, color=color, alpha=0.35, linewidth=0.8)
            axes.plot(steps, _smooth(values), color=color, linewidth=1.8)
            axes.set_title("loss (weighted sum)" if term == "loss" and len(terms) > 1 else _TERMS.get(term, term))
            axes.yaxis.set_major_locator(MaxNLocator(4))
        for axes in panels[len(terms) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(terms) - columns) : len(terms)]:
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
    return figure


def _thinned(training: Training, term: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, averaged in bins where there are too many to see."""
    logged = [(step["step"], step[term]) for step in training.steps if term in step]
    points = np.array(logged, dtype=np.float64).reshape(-1, 2)
    width = math.ceil(len(points) / _MOST_POINTS) or 1
    means = np.array([points[i : i + width].mean(axis=0) for i in range(0, len(points), width)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred running mean over about a tenth of the curve; narrower at its start, which is steep."""
    half = len(values) // 20
    return np.array([values[max(0, i - half) : i + min(half, i) + 1].mean() for i in range(len(values))])


def similarity_figure(training: Training, *, width: float = 7.6) -> Figure:
    """Cosine similarity of each aligned pair of states, before and after distillation."""
    names = [f"{pair['student']}\n{pair['teacher']}" for pair in training.pairs]
    before = [pair["before"] for pair in training.pairs]
    after = [pair["after"] for pair in training.pairs]
    places = np.arange(len(names))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.vlines(places, before, after, color=INK, alpha=0.3, linewidth=1.6, zorder=2)
        axes.plot(places, before, "s", color=ORANGE, markersize=7, label="before distillation", zorder=3)
        axes.plot(places, after, "o", color=BLUE, markersize=7, label="after distillation", zorder=4)
        axes.set_xticks(places, names, fontsize=8, rotation=90 if len(names) > 10 else 0)
        axes.set_xlabel("student state / teacher state")
        axes.set_ylabel("cosine similarity   (↑ closer)")
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.12)
        axes.legend(loc="best", fontsize=9)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """White paper, 200 dots an inch."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})


def svg(figure: Figure, *, name: str) -> str:
    """An <svg> element to be set into a page. `name` keeps its ids apart from those of other figures."""
    text = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    element = text.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    opening, rest = element.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)  # the page decides how wide it is
    element = f"{opening}>{rest}".replace(INK, "currentColor")
    for color, variable in _VARIABLES.items():
        element = element.replace(color, f"var({variable}, {color})")
    return element
