"""Draw the held-out loss of a student, and of sizes that are made with it, while it is trained."""

from itertools import cycle
from typing import Any

from runners.report.chart import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    WIDTH,
    Entry,
    Figure,
    Looks,
    Panel,
    bottom,
    hover,
    lines,
    points,
    quantity,
    reach,
    upright,
)
from runners.report.format import number
from runners.report.study import TrainingCurves

_LOOKS = ((ORANGE, "square"), (SKY, "circle"), (BLUE, "diamond"), (GREEN, "up"), (PINK, "down"))


def held_out_figure(training: TrainingCurves, *, width: int = WIDTH) -> Figure:
    """One line for each model, over the steps."""
    names = list(dict.fromkeys(name for row in training.held_out for name in row if name != "step"))
    entries = tuple(Entry(name, *look, width=2.0, size=4.0) for name, look in zip(names, cycle(_LOOKS), strict=False))
    rows: list[dict[str, Any]] = [
        {"series": name, "x": row["step"], "y": row[name], "step": f"{row['step']:g}", "value": number(row[name])}
        for name in names
        for row in training.held_out
        if name in row
    ]
    looks = Looks(entries)
    x = quantity("x", *reach([row["x"] for row in rows], 0.02), bottom("step", tickMinStep=1))
    y = upright(*reach([row["y"] for row in rows]))
    layers = (
        lines(rows, looks, x, y),
        points(rows, looks, x, y),
        hover(rows, x, y, series="model", step="in front of step", value="held-out loss"),
    )
    return Figure((Panel(layers),), "held-out loss, nats per token   (↓ better)", entries, width=width, height=220)
