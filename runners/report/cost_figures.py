"""Draw three pictures of one family: quality against its size, the memory that it needs, and its latency."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from runners.report.chart import (
    BLUE,
    COUNT,
    INK,
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
from runners.report.figures import GROUP_LOOKS, MOST_LINES, quality_label
from runners.report.format import count, number, size
from runners.report.study import FAMILY, Row, Study, Trial, model_of

_BYTES = "format(datum.value / pow(1024, floor(log(max(datum.value, 1)) / log(1024) + 1e-9)), '.3~r')"
_UNIT = "[' B', ' KiB', ' MiB', ' GiB', ' TiB'][floor(log(max(datum.value, 1)) / log(1024) + 1e-9)]"
SIZED = f"{_BYTES} + {_UNIT}"  # of an axis along bytes
_MILLISECONDS = "format(datum.value, '.3~r') + ' ms'"
_MOST_NAMES = 9  # of points; where there are several families, none has room
_Costs = Callable[[Row, Mapping[str, float]], float | None]


def _memory(row: Row, found: Mapping[str, float]) -> float | None:
    return found.get("peak_memory_bytes")


def _latency(row: Row, found: Mapping[str, float]) -> float | None:
    speed = found.get("decode_tokens_per_second")
    return 1000 / speed if speed else None


_PICTURES: tuple[tuple[str, str, str, _Costs, Callable[[float], str]], ...] = (
    ("size", "parameters", COUNT, lambda row, found: row.cell.parameters, count),
    ("memory", "peak memory", SIZED, _memory, size),
    ("latency", "time per token", _MILLISECONDS, _latency, lambda value: f"{value:.3g} ms"),
)


def cost_figure(study: Study, measure: str, *, width: int = WIDTH) -> Figure | None:
    """A panel for each of parameters, peak memory and time per token that was measured; None where that is one."""
    if not study.speeds or len(study.groups) > MOST_LINES:
        return None
    several = len(study.groups) > 1
    entries = tuple(
        Entry(group.label if several else "family", *(look if several else (BLUE, "circle")), width=2.0)
        for group, look in zip(study.groups, GROUP_LOOKS, strict=False)
    )
    looks, panels = Looks(entries), []
    for title, axis, label, cost, shown in _PICTURES:
        rows = [
            one
            for group, entry in zip(study.groups, entries, strict=True)
            for one in _points(study, group.trials[0], measure, entry.name, cost, shown)
        ]
        if len({row["x"] for row in rows}) > 1:
            panels.append(_panel(rows, looks, title, axis, label))
    if len(panels) < 2:
        return None
    shown_entries = entries if several else ()
    return Figure(tuple(panels), quality_label(study, measure), shown_entries, columns=3, width=width, height=200)


def _points(
    study: Study, trial: Trial, measure: str, series: str, cost: _Costs, shown: Callable[[float], str]
) -> list[dict[str, Any]]:
    metric, speeds = study.primary[measure], dict[str, dict[str, float]]()
    for speed in trial.speeds:
        speeds.setdefault(model_of(speed.cell), {})[speed.metric] = speed.value
    found = []
    for row in trial.series(FAMILY, measure, metric):
        value = cost(row, speeds.get(model_of(row.cell), {}))
        if value is not None:
            entry = {"series": series, "x": value, "y": row.value, "p": row.cell.parameters, "cost": shown(value)}
            entry |= {"text": str(row.cell.layers), "parameters": count(row.cell.parameters)}
            found.append(entry | {"value": number(row.value) + study.unit(measure, " ")})
    return found


def _panel(rows: list[dict[str, Any]], looks: Looks, title: str, axis: str, label: str) -> Panel:
    x: Spec = quantity("x", *reach([r["x"] for r in rows], 0.08), bottom(axis, labelExpr=label, tickCount=4))
    x["axis"]["labelOverlap"] = "greedy"
    y = upright(*reach([row["y"] for row in rows], 0.1))
    along = {"order": {"field": "p", "type": "quantitative"}}  # latency need not rise with the size
    path = lines(rows, looks, x, y)
    every = math.ceil(len(rows) / _MOST_NAMES)
    named = rows[::every] if len(looks.names) == 1 else []
    ring = {"type": "point", "filled": False, "color": INK, "strokeWidth": 1.6, "size": 190, "opacity": 1}
    chosen = layer(ring, rows, {"x": x, "y": y}) | {"transform": [{"filter": "datum.p === chosen"}]}
    layers = (
        path | {"encoding": {**path["encoding"], **along}},
        points(rows, looks, x, y),
        text(named, x, y, {}, dy=-11, fontSize=10),
        chosen,
        hover(rows, x, y, series="series", text="layers", parameters="parameters", cost=axis, value="value"),
    )
    return Panel(layers, f"{title[0].upper()}{title[1:]}")
