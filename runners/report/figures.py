"""Size against quality: the figure of a report; and how every figure looks and is written.

Each function returns a matplotlib Figure made with the object interface: no global state, no display.
`write_png` and `svg` give the same bytes for the same figure: no dates, no random ids. In the SVG, colours are
the page's (`currentColor` for ink), so that a figure follows it into dark mode.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from runners.report.collect import SERIES, Results, Row
from runners.report.findings import UNITS
from runners.report.format import count, number

# Okabe and Ito's palette: told apart with every common form of colour blindness, and in print by the markers.
INK, BLUE, ORANGE, PINK = "#1a1a19", "#0072b2", "#d55e00", "#b5649b"
GREEN, YELLOW, SKY = "#009e73", "#b88700", "#3d9bd1"
PAPER = "#fffffe"
_VARIABLES = {  # of the page's style, lighter in the dark
    BLUE: "--blue",
    ORANGE: "--orange",
    PINK: "--pink",
    GREEN: "--green",
    YELLOW: "--yellow",
    SKY: "--sky",
    PAPER: "--paper",
}
LOOK: dict[str, dict[str, Any]] = {
    "interpolated": {"color": BLUE, "marker": "o", "linewidth": 2.2, "markersize": 7, "zorder": 5},
    "naive_pruning": {"color": ORANGE, "marker": "s", "linewidth": 1.4, "markersize": 6, "linestyle": (0, (5, 2))},
    "shortgpt": {"color": YELLOW, "marker": "P", "linewidth": 1.4, "markersize": 7, "linestyle": (0, (5, 2))},
    "laco": {"color": SKY, "marker": "X", "linewidth": 1.4, "markersize": 7, "linestyle": (0, (5, 2))},
    "standard_distillation": {"color": GREEN, "marker": "v", "linewidth": 1.4, "markersize": 7},
    "random_init": {"color": PINK, "marker": "^", "linewidth": 1.4, "markersize": 7, "linestyle": (0, (1, 1.5))},
}
_NOT_THE_TEACHER = {"standard_distillation", "random_init"}  # series that do not end in the teacher
CONTROLS = ("random_init", "laco", "shortgpt")  # may be so far off that they would flatten all else
_ENDS = {"student": ("D", 8), "teacher": ("*", 15)}
STYLE: dict[str, Any] = {
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


def size_figure(results: Results, measure: str, *, width: float = 7.6, height: float = 4.4) -> Figure:
    """Quality against parameters, the layer counts along the top. Error bars are one standard error."""
    metric = results.primary(measure)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        ends = {name: rows[0] for name in _ENDS if (rows := results.series(name, measure, metric))}
        lines = {name: results.series(name, measure, metric) for name in LOOK}
        for name, rows in lines.items():
            if rows:
                _line(axes, rows, ends, name)
        for name, row in ends.items():
            draw_end(axes, row.cell.parameters, row.value, name)
        near = [*ends.values(), *(row for name, rows in lines.items() if name not in CONTROLS for row in rows)]
        far = [(row.cell.parameters, row.value, str(LOOK[name]["color"])) for name in CONTROLS for row in lines[name]]
        keep_in_view(axes, [row.value + sign * (row.stderr or 0.0) for row in near for sign in (-1, 1)], far)
        size_axes(
            axes, {row.cell.layers: row.cell.parameters for row in [*near, *(r for n in CONTROLS for r in lines[n])]}
        )
        axes.set_ylabel(quality_label(measure, metric, higher_is_better=results.higher_is_better(measure, metric)))
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=3, fontsize=9, handlelength=3.2)
    return figure


def _line(axes: Any, rows: Sequence[Row], ends: dict[str, Row], name: str) -> None:
    """One series. The family runs from student to teacher; pruning nothing is the teacher, too."""
    look, path = LOOK[name], list(rows)
    if name == "interpolated" and "student" in ends:
        path.insert(0, ends["student"])
    if name not in _NOT_THE_TEACHER and "teacher" in ends:
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


def draw_end(axes: Any, parameters: float, value: float, name: str) -> None:
    """Student or teacher: its mark, and a dashed line named at the end where the curves are not."""
    marker, size = _ENDS[name]
    axes.plot(parameters, value, marker, color=INK, markersize=size, zorder=6)
    axes.axhline(value, color=INK, alpha=0.45, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"{name} {number(value)}",
        (1.0 if name == "student" else 0.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(-4 if name == "student" else 4, 3),
        textcoords="offset points",
        ha="right" if name == "student" else "left",
        va="bottom",
        fontsize=9,
    )


def keep_in_view(
    axes: Any, values: Sequence[float], control: Sequence[tuple[float, float, str]], *, alpha: float = 1.0
) -> None:
    """Keep a control that is far off from flattening all else: its points out of view become arrows with values.

    `values` must be seen; `control` are points with their colours.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return
    low, high = min(values), max(values)
    margin = 0.5 * (high - low) or 0.1 * abs(high) or 1.0
    near = [value for _, value, _ in control if low - margin <= value <= high + margin]
    bottom, top = min([low, *near]), max([high, *near])
    pad = 0.1 * (top - bottom or margin)
    # An arrow needs more room than a margin.
    bottom -= pad * (3 if any(value < bottom - pad for _, value, _ in control) else 1)
    top += pad * (3 if any(value > top + pad for _, value, _ in control) else 1)
    out = [point for point in control if not bottom <= point[1] <= top]
    if out:
        axes.set_ylim(bottom, top)
    for place, value, color in out:
        up = value > top
        axes.annotate(
            number(value),
            (place, top if up else bottom),
            xytext=(0, -24 if up else 24),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=color,
            alpha=alpha,
            arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.2, "alpha": alpha},
        )


def size_axes(axes: Any, places: Mapping[int, float]) -> None:
    """Parameters along the bottom; the layers of each size along the top. `places`: parameters by layers."""
    axes.set_xlabel("parameters")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(7))
    if not places:
        return
    every = max(1, math.ceil(len(places) / 16))
    shown = sorted(places)[::-1][::every]  # the largest is always among them
    top = axes.secondary_xaxis("top")
    top.set_xticks([places[layers] for layers in shown], [str(layers) for layers in shown])
    top.set_xlabel("layers", fontsize=9)
    top.tick_params(length=0, labelsize=9)
    top.spines["top"].set_visible(False)


def quality_label(measure: str, metric: str, *, higher_is_better: bool) -> str:
    """What a measure's axis is called, with its unit and which way is better."""
    arrow = "↑ better" if higher_is_better else "↓ better"
    name = "held-out" if measure == "held_out" else measure
    unit = f", {UNITS[metric]}" if metric in UNITS else ""
    return f"{name} {metric}{unit}   ({arrow})"


def write_png(figure: Figure, path: Path) -> None:
    """White paper, 200 dots an inch."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})


def svg(figure: Figure, *, name: str) -> str:
    """An <svg> element to be set into a page. `name` keeps its ids apart from those of other figures."""
    text = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
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
