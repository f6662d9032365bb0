"""One axis of a family's sizes against another, drawn as the figures of the report are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert

from boomspec.core.errors import BoomspecError
from runners.api.results import Axis
from runners.report.chart import (
    BLUE,
    COUNT,
    Entry,
    Figure,
    Looks,
    Panel,
    bottom,
    lines,
    points,
    quantity,
    reach,
    static,
    text,
    upright,
)
from runners.report.cost_figures import SIZED
from runners.report.vega import FORMATS, write_figure

_LABELS: Mapping[str, str] = {"parameters": COUNT, "bytes": SIZED, "memory": SIZED}


class Plot:
    """A figure that a notebook shows. `spec`: it in Vega-Lite; `data`: its numbers."""

    def __init__(self, figure: Figure, data: pd.DataFrame) -> None:
        self._figure, self.data = figure, data

    @property
    def spec(self) -> dict[str, Any]:
        return static(self._figure)

    def _repr_svg_(self) -> str:
        svg: str = vl_convert.vegalite_to_svg(self.spec)
        return svg

    def save(self, place: str | Path) -> None:
        """Write PLACE.png, PLACE.svg and PLACE.pdf, for papers and pages; an ending is left out."""
        path = Path(place)
        write_figure(self._figure, path.with_suffix("") if path.suffix[1:] in FORMATS else path)


def plotted(across: Axis, upwards: Axis, data: pd.DataFrame) -> Plot:
    """The sizes of a frame with a column for each axis. Raises BoomspecError where there is none."""
    rows = [
        {"series": "family", "x": row[across.name], "y": row[upwards.name], "text": row["size"]}
        for row in data.to_dict("records")
    ]
    if not rows:
        raise BoomspecError(f"no size has both {across.name} and {upwards.name}")
    looks = Looks([Entry("family", BLUE, width=2.0)])
    label = {"labelExpr": _LABELS[across.name]} if across.name in _LABELS else {}
    low, high = reach([row["x"] for row in rows])
    x = {**quantity("x", low, high, bottom(across.name, tickCount=6, **label)), "title": across.name}
    y = upright(*reach([row["y"] for row in rows], 0.1))
    above = text(rows, x, y, {}, dy=-11)
    drawn = (lines(rows, looks, x, y), points(rows, looks, x, y), above)
    arrow = "↑" if upwards.higher else "↓"
    return Plot(Figure((Panel(drawn),), f"{upwards.name} {arrow}"), data)
