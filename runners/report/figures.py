"""Draw quality against size and differences between experiments; define how every figure looks and is written.

Each function returns a matplotlib Figure made with the object interface: no global state, no display.
`write_png` and `svg` give the same bytes for the same figure: no dates, no random ids. In the SVG, colours are
the page's (`currentColor` for ink), so that a figure follows it into dark mode.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from runners.report.compare import CLEAR, against_references
from runners.report.format import count, number
from runners.report.study import SERIES, Point, Row, Study

# Okabe and Ito's palette: told apart with every common form of colour blindness, and in print by the markers.
INK, BLUE, ORANGE, PINK = "#1a1a19", "#0072b2", "#d55e00", "#b5649b"
GREEN, YELLOW, SKY, PAPER = "#009e73", "#b88700", "#3d9bd1", "#fffffe"
_VARIABLES = {  # of the page's style, lighter in the dark
    BLUE: "--blue", ORANGE: "--orange", PINK: "--pink", GREEN: "--green", YELLOW: "--yellow", SKY: "--sky",
    PAPER: "--paper",
}  # fmt: skip
_DASHED, _DOTTED = (0, (5, 2)), (0, (1, 1.5))
_LOOK: dict[str, dict[str, Any]] = {
    "interpolated": {"color": BLUE, "marker": "o", "linewidth": 2.2, "markersize": 7, "zorder": 5},
    "naive_pruning": {"color": ORANGE, "marker": "s", "linewidth": 1.4, "markersize": 6, "linestyle": _DASHED},
    "shortgpt": {"color": YELLOW, "marker": "P", "linewidth": 1.4, "markersize": 7, "linestyle": _DASHED},
    "laco": {"color": SKY, "marker": "X", "linewidth": 1.4, "markersize": 7, "linestyle": _DASHED},
    "standard_distillation": {"color": GREEN, "marker": "v", "linewidth": 1.4, "markersize": 7},
    "random_init": {"color": PINK, "marker": "^", "linewidth": 1.4, "markersize": 7, "linestyle": _DOTTED},
    "contiguous_drop": {"color": YELLOW, "marker": "<", "linewidth": 1.4, "markersize": 7, "linestyle": _DOTTED},
    "contiguous_distilled": {"color": GREEN, "marker": "<", "linewidth": 1.4, "markersize": 7, "linestyle": _DASHED},
    "linear_patch": {"color": ORANGE, "marker": ">", "linewidth": 1.4, "markersize": 7, "linestyle": _DOTTED},
    "cross_patching": {"color": PINK, "marker": "d", "linewidth": 0.0, "markersize": 7},
}
_NOT_THE_TEACHER = (
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
_ENDS = {"student": ("D", 8), "teacher": ("*", 15)}
# Of groups: the reference is ink; the rest is told apart by colour and by marker.
_GROUPS = ((INK, "o"), (BLUE, "s"), (ORANGE, "^"), (GREEN, "D"), (PINK, "v"), (YELLOW, "P"), (SKY, "X"))
MOST_LINES = len(_GROUPS)
_FAINT = 0.45  # of baselines beside groups
_STYLE = mpl.rc_params_from_file(Path(__file__).with_name("report.mplstyle"), use_default_template=False)


@contextmanager
def panels(
    width: float, height: float, count: int = 1, columns: int = 1, *, lines: bool = True, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """A figure in our style, sized in inches; axes of `count` panels in at most so many columns, with grid `lines`."""
    columns = max(1, min(columns, count))
    with mpl.rc_context({**_STYLE, "axes.grid": lines}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(math.ceil(count / columns) or 1, columns, squeeze=False, **options).flatten()
        for unused in axes[count:]:
            unused.set_visible(False)
        yield figure, axes[:count]


def size_figure(study: Study, measure: str, *, width: float = 7.6, height: float = 4.4) -> Figure:
    """Quality against parameters of one experiment. Error bars are one standard error."""
    trial, metric = study.trials[0], study.primary[measure]
    rows = {name: trial.series(name, measure, metric) for name in (*_ENDS, *_LOOK)}
    ends = {name: rows.pop(name)[:1] for name in _ENDS}
    with panels(width, height) as (figure, (axes,)):
        for name, own in rows.items():
            if own:  # the family runs from student to teacher; pruning nothing is the teacher, too
                first, look = (ends["student"] if name == "interpolated" else []), _LOOK[name]
                path = [*first, *own, *(ends["teacher"] if name not in _NOT_THE_TEACHER else [])]
                marked = list(range(len(first), len(first) + len(own)))
                axes.plot(*_places(path), label=SERIES[name], **look, markevery=marked)
                bars = path if name == "interpolated" else own
                errors = {"ecolor": look["color"], "zorder": look.get("zorder", 2), "elinewidth": 1.0, "fmt": "none"}
                axes.errorbar(*_places(bars), yerr=[row.stderr or 0.0 for row in bars], **errors)
        for name, row in ((name, row) for name, end in ends.items() for row in end):
            _draw_end(axes, row, name)
        near = [row for own in ends.values() for row in own]
        near += [row for name, own in rows.items() if name not in CONTROLS for row in own]
        controls = [(name, row) for name in CONTROLS for row in rows[name]]
        far = [(row.cell.parameters, row.value, str(_LOOK[name]["color"])) for name, row in controls]
        _keep_in_view(axes, [row.value + sign * (row.stderr or 0.0) for row in near for sign in (-1, 1)], far)
        _label_sizes(axes, {row.cell.layers: row.cell.parameters for row in [*near, *(row for _, row in controls)]})
        axes.set_ylabel(quality_label(study, measure))
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=3, fontsize=9, handlelength=3.2)
    return figure


def _places(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    return [row.cell.parameters for row in rows], [row.value for row in rows]


def size_lines(study: Study, measure: str, *, width: float = 7.6) -> Figure:
    """Quality against parameters: means of each group, their spread over seeds a band; faint baselines of the first."""
    values: list[float] = []
    places: dict[int, float] = {}
    with panels(width, 2.4 + 0.3 * width) as (figure, (axes,)):
        for group, (color, marker) in zip(study.groups, _GROUPS, strict=False):
            points = study.points(group, measure)
            draw_line(axes, points, color, marker, group.label)
            values += [value for point in points.values() for value in (point.spread or (point.mean,))]
            places |= {size.layers: point.parameters for size, point in points.items()}
        first, far = study.groups[0], []
        for series in first.baselines(measure):
            if points := study.points(first, measure, series):
                found = [(p.parameters, p.mean) for p in points.values()]
                look = {k: v for k, v in _LOOK[series].items() if k in ("marker", "linestyle")}
                look |= {"color": INK, "alpha": _FAINT, "linewidth": 1.1, "markersize": 4.5, "zorder": 2}
                name = SERIES[series] if len(study.groups) == 1 else f"{SERIES[series]} ({first.label})"
                axes.plot(*zip(*found, strict=True), label=name, **look)
                far += [(*place, INK) for place in found if series in CONTROLS]
                values += [value for _, value in found if series not in CONTROLS]
        for name in _ENDS:  # where all experiments have the same artifact
            rows = [row for trial in study.trials for row in trial.series(name, measure, study.primary[measure])]
            if len({row.artifact for row in rows}) == 1:
                _draw_end(axes, rows[0], name)
        _keep_in_view(axes, values, far, alpha=_FAINT)
        _label_sizes(axes, places)
        axes.set_ylabel(quality_label(study, measure))
        draw_legend(figure, axes)
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


def difference_lines(study: Study, measure: str, *, width: float = 7.6) -> Figure | None:
    """By how much each group is better than its reference at each size; None where nothing can be compared.

    Filled marks are clear. Bars: lowest to highest seed, or two standard errors over the items of one seed.
    """
    found = ((group, [d for d in found if not d.same]) for group, _, found in against_references(study, measure))
    compared = [(group, own) for group, own in found if own]
    if not compared:
        return None
    every = [difference for _, own in compared for difference in own]
    step = 0.008 * (max(d.parameters for d in every) - min(d.parameters for d in every))
    with panels(width, 1.6 + 0.24 * width) as (figure, (axes,)):
        axes.axhline(0, color=INK, linewidth=1.2, zorder=2)
        for place, (group, own) in enumerate(compared):
            color, marker = _GROUPS[study.groups.index(group)]
            x = [d.parameters + (place - (len(compared) - 1) / 2) * step for d in own]
            gains = [d.gain for d in own]
            look = {"fmt": "none", "ecolor": color, "elinewidth": 1.1, "zorder": 3}
            reach = [CLEAR * (d.items or 0.0) for d in own]  # of one seed, over the items
            below = [d.gain - min(d.gains) if len(d.gains) > 1 else r for d, r in zip(own, reach, strict=True)]
            above = [max(d.gains) - d.gain if len(d.gains) > 1 else r for d, r in zip(own, reach, strict=True)]
            axes.errorbar(x, gains, yerr=(below, above), **look)
            axes.plot(x, gains, color=color, marker=marker, linewidth=1.2, markersize=6, zorder=4, label=group.label)
            for at, gain in ((at, d.gain) for at, d in zip(x, own, strict=True) if not d.clear):
                axes.plot(at, gain, marker, color=color, markersize=6, markerfacecolor=PAPER, zorder=5)
        _label_sizes(axes, {difference.size.layers: difference.parameters for difference in every})
        axes.set_ylabel(f"better by{study.unit(measure, ', ')}   (↑ better)")
        draw_legend(figure, axes)
    return figure


def _draw_end(axes: Any, row: Row, name: str) -> None:
    """Student or teacher: its mark, and a dashed line named at the end where the curves are not."""
    marker, size = _ENDS[name]
    axes.plot(row.cell.parameters, row.value, marker, color=INK, markersize=size, zorder=6)
    axes.axhline(row.value, color=INK, alpha=0.45, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    x, shift, side = (1.0, -4, "right") if name == "student" else (0.0, 4, "left")
    place = {"xycoords": ("axes fraction", "data"), "xytext": (shift, 3), "textcoords": "offset points"}
    axes.annotate(f"{name} {number(row.value)}", (x, row.value), **place, ha=side, va="bottom", fontsize=9)


def _keep_in_view(
    axes: Any, values: Sequence[float], control: Sequence[tuple[float, float, str]], *, alpha: float = 1.0
) -> None:
    """Keep `control` from flattening `values`: its points (place, value, colour) that are far off become arrows."""
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
        shift = {"xytext": (0, -24 if up else 24), "textcoords": "offset points", "ha": "center", "va": "center"}
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.2, "alpha": alpha}
        place_at = (place, top if up else bottom)
        axes.annotate(number(value), place_at, **shift, fontsize=8, color=color, alpha=alpha, arrowprops=arrow)


def _label_sizes(axes: Any, places: Mapping[int, float]) -> None:
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


def quality_label(study: Study, measure: str) -> str:
    """What a measure's axis is called, with its unit and which way is better."""
    return f"{study.name(measure)}{study.unit(measure, ', ')}   ({study.arrow(measure)} better)"


def draw_legend(figure: Figure, axes: Any) -> None:
    handles, names = axes.get_legend_handles_labels()
    if names:
        columns = 4 if max(map(len, names)) < 16 else 3 if max(map(len, names)) < 26 else 2
        figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3.0)


def write_png(figure: Figure, path: Path) -> None:
    """White paper, 200 dots an inch."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})


def svg(figure: Figure, *, name: str) -> str:
    """An <svg> element to be set into a page. `name` keeps its ids apart from those of other figures."""
    text = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    element = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue().partition("<svg")[2], flags=re.DOTALL)
    opening, _, rest = element.partition(">")
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)  # the page decides how wide it is
    element = f"<svg{opening}>{rest}".replace(INK, "currentColor")
    for color, variable in _VARIABLES.items():
        element = element.replace(color, f"var({variable}, {color})")
    return element
