"""Draw how a family was made: loss curves, similarity of student and teacher, searches."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from boomspec.core.losses import LOSSES
from runners.report.figures import BLUE, INK, ORANGE, panels
from runners.report.study import PatchSearch, TrainingCurves

_NOT_LOSSES = ("step", "tokens", "lr", "grad_norm", "on_policy", "patched")
_MOST_POINTS = 1000  # of a loss curve; longer ones are averaged in bins


def training_figure(training: TrainingCurves, *, width: float = 7.6) -> Figure:
    """The loss of every step, each term in its own panel (they have different scales)."""
    terms = [name for name in training.steps[0] if name not in _NOT_LOSSES]
    terms = terms[1:] if len(terms) == 2 else terms  # the loss of one term is that term
    height = 2.3 * math.ceil(len(terms) / 2) + 0.2
    with panels(width, height, len(terms), 2, sharex=True) as (figure, grid):
        for axes, term in zip(grid, terms, strict=True):
            logged = [(step["step"], step[term]) for step in training.steps if term in step]
            points = np.array(logged, dtype=np.float64).reshape(-1, 2)
            bin_width = math.ceil(len(points) / _MOST_POINTS) or 1
            bins = [points[i : i + bin_width].mean(axis=0) for i in range(0, len(points), bin_width)]
            steps, values = np.array(bins).reshape(-1, 2).T
            # A centred running mean over about a tenth of the curve; narrower at its start, which is steep.
            half = len(values) // 20
            smooth = [values[max(0, i - half) : i + min(half, i) + 1].mean() for i in range(len(values))]
            color = INK if term == "loss" else BLUE
            axes.plot(steps, values, color=color, alpha=0.35, linewidth=0.8)
            axes.plot(steps, smooth, color=color, linewidth=1.8)
            if loss := LOSSES.get(term):
                axes.set_title(loss.title)
                axes.set_ylabel(loss.unit, fontsize=9)
            else:
                axes.set_title("loss (weighted sum)" if term == "loss" and len(terms) > 1 else _title(term))
            axes.yaxis.set_major_locator(MaxNLocator(4))
        for axes in grid[-2:]:  # the lowest of each column
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
    return figure


def _title(column: str) -> str:
    """Of a weight or another number of a term that changes over the steps; else the column's own name."""
    what, _, kind = column.partition(".")
    return f"{what} of {LOSSES[kind].title}" if kind in LOSSES else column


def similarity_figure(training: TrainingCurves, *, width: float = 7.6) -> Figure:
    """Cosine similarity of each aligned pair of states, before and after distillation."""
    names = [f"{pair['student']}\n{pair['teacher']}" for pair in training.pairs]
    before, after = ([pair[when] for pair in training.pairs] for when in ("before", "after"))
    places = np.arange(len(names))
    with panels(width, 3.4) as (figure, (axes,)):
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


def search_figure(search: PatchSearch, *, width: float = 7.6) -> Figure:
    """KL to the teacher by patched blocks: all candidates, those chosen, both sequential orders, the best known."""
    best: dict[int, float] = {}
    in_order = (point for values in search.sequential.values() for point in enumerate(values))
    for patched, value in (*search.candidates, *in_order):
        best[patched] = min(value, best.get(patched, math.inf))
    with panels(width, 3.4) as (figure, (axes,)):
        axes.plot(*zip(*search.candidates, strict=True), ".", color=INK, alpha=0.35, label="candidates", zorder=2)
        axes.plot(
            *zip(*sorted(best.items()), strict=True), "_", color=ORANGE, markersize=16, label="best known", zorder=3
        )
        for (name, values), style in zip(search.sequential.items(), ((0, (1, 1.5)), (0, (5, 2))), strict=False):
            axes.plot(range(len(values)), values, color=INK, linewidth=1.0, linestyle=style, label=name, zorder=2)
        axes.plot(range(len(search.values)), search.values, "o-", color=BLUE, markersize=6, label="chosen", zorder=4)
        axes.set_xlabel("patched blocks")
        axes.set_ylabel("KL to the teacher, nats   (↓ better)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="best", fontsize=9)
    return figure
