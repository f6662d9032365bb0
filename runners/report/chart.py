"""What a figure is, and how every one looks. Its ONE definition is Vega-Lite, for the page and for the files beside it.

A figure is panels, each a Vega-Lite view of layers; a label above them; and a legend. `static` makes one
specification of all, with a legend, in the colours of paper. `interactive` makes one of each panel: as wide as the page
gives it, and with signals that the page sets. There the legend is the page's own, and colours are variables of its
style.

    hidden   names of series that are not drawn
    chosen   the parameters of a size, which is marked; null for none
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Spec = dict[str, Any]  # Vega-Lite
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

# Okabe and Ito's palette: told apart with every common form of colour blindness, and in print by shapes and dashes.
LIGHT = {
    "paper": "#ffffff", "ink": "#1a1a19", "soft": "#5c5c57", "line": "#e2e1dc",
    "blue": "#0072b2", "orange": "#d55e00", "pink": "#b5649b", "green": "#009e73",
    "yellow": "#b88700", "sky": "#3d9bd1",
}  # fmt: skip
DARK = {
    "paper": "#14161a", "ink": "#e8e6e1", "soft": "#a3a29c", "line": "#33363d",
    "blue": "#3f9fd8", "orange": "#ec8238", "pink": "#d18dbb", "green": "#2fc29b",
    "yellow": "#e0b040", "sky": "#7cc4ec",
}  # fmt: skip
PAPER, INK, SOFT, LINE, BLUE, ORANGE, PINK, GREEN, YELLOW, SKY = (
    f"var(--{name})" for name in ("paper", "ink", "soft", "line", "blue", "orange", "pink", "green", "yellow", "sky")
)
_VARIABLE = re.compile(r"var\(--(\w+)\)")

_STAR = "M0,-1L0.24,-0.32L0.95,-0.31L0.38,0.12L0.59,0.81L0,0.4L-0.59,0.81L-0.38,0.12L-0.95,-0.31L-0.24,-0.32Z"
_PLUS = "M-0.3,-0.9H0.3V-0.3H0.9V0.3H0.3V0.9H-0.3V0.3H-0.9V-0.3H-0.3Z"
_X = (
    "M-0.85,-0.42L-0.42,-0.85L0,-0.42L0.42,-0.85L0.85,-0.42L0.42,0"
    "L0.85,0.42L0.42,0.85L0,0.42L-0.42,0.85L-0.85,0.42L-0.42,0Z"
)
SHAPES = {  # as paths within -1 .. 1, for Vega and for the page's legend
    "circle": "M0.8,0A0.8,0.8,0,1,1,-0.8,0A0.8,0.8,0,1,1,0.8,0Z",
    "square": "M-0.7,-0.7H0.7V0.7H-0.7Z",
    "diamond": "M0,-1L0.85,0L0,1L-0.85,0Z",
    "up": "M0,-0.9L0.9,0.75H-0.9Z",
    "down": "M0,0.9L0.9,-0.75H-0.9Z",
    "left": "M-0.9,0L0.75,-0.9V0.9Z",
    "right": "M0.9,0L-0.75,-0.9V0.9Z",
    "plus": _PLUS,
    "x": _X,
    "star": _STAR,
    "dash": "M-1,-0.2H1V0.2H-1Z",
}
SOLID, DASHED, DOTTED = (1, 0), (6, 3), (1.5, 2.5)

WIDTH, SMALL = 620, 460  # of a static figure, in pixels; the page shows small ones side by side
_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"  # the first is in the converter: the same everywhere
_PAGE_FONT = 'system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif'
_LETTER = 6.0  # width of one of the legend, in pixels, about
_UNSEEN: Spec = {"type": "point", "filled": True, "opacity": 0, "size": 420}
_LINE = 19  # height of one of the legend


@dataclass(frozen=True)
class Entry:
    """A series: its name and look. `width` 0: it is points without a line."""

    name: str
    color: str = INK
    shape: str = "circle"
    dash: tuple[float, float] = SOLID
    width: float = 1.6
    size: float = 5.0  # of its marks: half of what they span, in pixels
    opacity: float = 1.0


@dataclass(frozen=True)
class Panel:
    """One view: `layers` of Vega-Lite, drawn in order. `below` stands small under the title."""

    layers: tuple[Spec, ...]
    title: str = ""
    below: str = ""
    config: tuple[tuple[str, Any], ...] = ()  # other properties of the view


@dataclass(frozen=True)
class Figure:
    """`label`: what is drawn, with its unit. `height`: of a panel, in pixels, as `width` is of the static figure."""

    panels: tuple[Panel, ...]
    label: str = ""
    entries: tuple[Entry, ...] = ()
    columns: int = 1
    width: int = WIDTH
    height: int = 260
    sizes: bool = False  # whether places along x are parameters


# --- layers ----------------------------------------------------------------------------------------


class Looks:
    """Channels that give every series its look; they are the same in all layers, so that these share their scales."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.names = [entry.name for entry in entries]
        self.entries = entries

    def _by_series(self, values: Sequence[Any]) -> Spec:
        scale = {"type": "ordinal", "domain": self.names, "range": values}  # of widths the default would be another
        return {"field": "series", "type": "nominal", "scale": scale, "legend": None}

    @property
    def color(self) -> Spec:
        return {"color": self._by_series([entry.color for entry in self.entries])}

    @property
    def line(self) -> Spec:
        dashes = self._by_series([list(entry.dash) for entry in self.entries])
        widths = self._by_series([entry.width for entry in self.entries])
        return {**self.color, **self.opacity, "strokeDash": dashes, "strokeWidth": widths}

    @property
    def opacity(self) -> Spec:
        return {"opacity": self._by_series([entry.opacity for entry in self.entries])}

    @property
    def marks(self) -> Spec:
        shapes = self._by_series([SHAPES[entry.shape] for entry in self.entries])
        return {
            **self.color,
            **self.opacity,
            "shape": shapes,
            "size": self._by_series([area(e.size) for e in self.entries]),
        }


def area(radius: float) -> float:
    """The `size` of a symbol whose path reaches `radius` pixels from its middle: Vega scales by the root of a half."""
    return (2 * radius) ** 2


def layer(mark: str | Spec, rows: Sequence[Mapping[str, Any]], encoding: Spec, **more: Any) -> Spec:
    """A layer of Vega-Lite. Rows with a `series` are not drawn while it is hidden."""
    found: Spec = {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding, **more}
    if rows and "series" in rows[0]:
        found["transform"] = [{"filter": "indexof(hidden, datum.series) < 0"}, *more.get("transform", ())]
    return found


def lines(rows: Sequence[Mapping[str, Any]], looks: Looks, x: Spec, y: Spec) -> Spec:
    return layer({"type": "line", "strokeCap": "round", "strokeJoin": "round"}, rows, {"x": x, "y": y, **looks.line})


def points(rows: Sequence[Mapping[str, Any]], looks: Looks, x: Spec, y: Spec, **mark: Any) -> Spec:
    look = {"type": "point", "filled": True, "stroke": PAPER, "strokeWidth": 0.8, **mark}
    return layer(look, rows, {"x": x, "y": y, **looks.marks})


def bars(rows: Sequence[Mapping[str, Any]], looks: Looks, x: Spec, y: Spec) -> Spec:
    """From `low` to `high` of each row."""
    reach = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    return layer({"type": "rule", "strokeWidth": 1.1}, rows, {"x": x, **reach, **looks.color, **looks.opacity})


def band(rows: Sequence[Mapping[str, Any]], looks: Looks, x: Spec, y: Spec) -> Spec:
    reach = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    return layer({"type": "area", "opacity": 0.15}, rows, {"x": x, **reach, **looks.color})


def hover(rows: Sequence[Mapping[str, Any]], x: Spec, y: Spec, /, **named: str) -> Spec:
    """What says the numbers of a point: larger than its mark, and not seen. `named`: title by field, underscores are
    spaces."""
    tooltip = [{"field": field, "type": "nominal", "title": title} for field, title in named.items()]
    return layer(_UNSEEN, rows, {"x": x, "y": y, "tooltip": tooltip})


def text(rows: Sequence[Mapping[str, Any]], x: Spec, y: Spec, color: Spec, **mark: Any) -> Spec:
    """The `text` of each row."""
    return layer({"type": "text", "fontSize": 11, **mark}, rows, {"x": x, "y": y, "text": {"field": "text"}, **color})


# --- axes ------------------------------------------------------------------------------------------


def quantity(field: str, low: float, high: float, axis: Spec | None = None) -> Spec:
    """A channel along a scale from `low` to `high`."""
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"domain": [low, high], "zero": False, "nice": False},
        "axis": axis,
        "title": None,
    }


def upright(low: float, high: float, **axis: Any) -> Spec:
    """The channel of the values, `y`."""
    return quantity("y", low, high, {"tickCount": 5, "domain": False, "ticks": False, "title": None, **axis})


def reach(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """The ends of a scale for these values."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    pad = margin * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


# The number of parameters in short: 1500000 is "1.5M".
COUNT = "replace(replace(format(datum.value, '~s'), 'G', 'B'), 'k', 'K')"


def bottom(title: str, **axis: Any) -> Spec:
    return {"orient": "bottom", "title": title, "grid": False, **axis}


def labelled(places: Mapping[float, str], **axis: Any) -> Spec:
    """An axis with a text at each place."""
    at = list(places)
    names, values = (json.dumps(one, allow_nan=False) for one in ([places[place] for place in at], at))
    found = f"{names}[indexof({values}, datum.value)]"
    return {"values": at, "labelExpr": found, "labelOverlap": "greedy", "labelSeparation": 6, **axis}


# --- what is made of a figure ----------------------------------------------------------------------


_CONFIG: Spec = {
    "font": _FONT,
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK, "titleColor": SOFT, "domainColor": INK, "tickColor": INK, "gridColor": LINE,
        "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "tickSize": 4, "labelPadding": 4,
    },
    "title": {
        "color": INK, "subtitleColor": SOFT, "fontSize": 12, "subtitleFontSize": 11, "anchor": "start", "offset": 8,
        "frame": "group",
    },
    "legend": {"labelColor": INK, "titleColor": SOFT, "labelFontSize": 10},
    "text": {"color": INK},
    "concat": {"spacing": 22},
}  # fmt: skip
_SIGNALS: list[Spec] = [{"name": "hidden", "value": []}, {"name": "chosen", "value": None}]


def _view(panel: Panel, height: int) -> Spec:
    view: Spec = {"height": height, "layer": list(panel.layers), **dict(panel.config)}
    if panel.title or panel.below:
        view["title"] = {"text": panel.title, **({"subtitle": panel.below} if panel.below else {})}
    return view


def static(figure: Figure) -> Spec:
    """The figure as one specification of a fixed size, on white paper."""
    columns = max(1, min(figure.columns, len(figure.panels)))
    inner = (figure.width - 50 * columns) // columns
    views = [{"width": inner, **_view(panel, figure.height)} for panel in figure.panels]
    for view in views:  # on paper nobody points at anything
        view["layer"] = [one for one in view["layer"] if one["mark"] != _UNSEEN]
    apart = {"resolve": {"scale": {"color": "independent"}}}
    drawn: Spec = {"concat": views, "columns": columns, **apart} if len(views) > 1 else views[0]
    if figure.label:
        title = {"text": figure.label, "fontSize": 12, "fontWeight": "normal"}
        drawn = {"vconcat": [drawn], "title": title} if "title" in drawn else {**drawn, "title": title}
    if figure.entries:
        drawn = {"vconcat": [drawn, _legend(figure.entries, figure.width)], "spacing": 12}
    drawn = {"$schema": SCHEMA, "params": _SIGNALS, **drawn, "padding": 10}
    drawn["config"] = {**_CONFIG, "background": PAPER, "aria": False}
    return _coloured(drawn, LIGHT)


def interactive(figure: Figure) -> list[Spec]:
    """A specification for each panel, as wide as its place on the page."""
    mark = {"type": "rule", "color": INK, "strokeWidth": 1.2, "strokeDash": [2, 3], "opacity": 0.8}
    found = []
    for panel in figure.panels:
        view = _view(panel, figure.height)
        if figure.sizes:
            first = panel.layers[0]["encoding"]["x"]
            chosen = layer(
                mark, [{}], {"x": {**first, "field": "x", "axis": None}},
                transform=[{"filter": "isValid(chosen)"}, {"calculate": "chosen", "as": "x"}],
            )  # fmt: skip
            view["layer"] = [panel.layers[0], chosen, *panel.layers[1:]]  # behind the marks
        auto = {"type": "fit-x", "contains": "padding"}
        found.append(
            {
                "params": _SIGNALS,
                "width": "container",
                "autosize": auto,
                **view,
                "config": {**_CONFIG, "font": _PAGE_FONT},
                "padding": 2,
            }
        )
    return found


def _coloured(spec: Spec, colors: Mapping[str, str]) -> Spec:
    """The specification with colours in place of the names of variables."""
    done: Spec = json.loads(_VARIABLE.sub(lambda found: colors[found[1]], json.dumps(spec, allow_nan=False)))
    return done


class _Place(NamedTuple):
    entry: Entry
    x: float
    y: float


def _legend(entries: Sequence[Entry], width: int) -> Spec:
    """A view with the line, the mark and the name of every series, in columns."""
    column = 44 + _LETTER * max(len(entry.name) for entry in entries)
    columns = max(1, min(len(entries), int(width // column)))
    places = [_Place(e, (i % columns) * column, (i // columns) * _LINE + _LINE / 2) for i, e in enumerate(entries)]
    looks = Looks(entries)
    rows: list[Spec] = [{"series": p.entry.name, "x": p.x, "y": p.y, "text": p.entry.name} for p in places]
    span = columns * column
    height = math.ceil(len(entries) / columns) * _LINE
    drawn = [row for row, place in zip(rows, places, strict=True) if place.entry.width]
    ends = [{**row, "x": row["x"] + shift} for row in drawn for shift in (0, 26)]
    middle = [{**row, "x": row["x"] + 13} for row in rows]
    x, y = quantity("x", 0, span), {**quantity("y", 0, height), "scale": {"domain": [height, 0], "nice": False}}
    names = text([{**row, "x": row["x"] + 33} for row in rows], x, y, {}, align="left", baseline="middle", fontSize=11)
    shown = [*([lines(ends, looks, x, y)] if ends else []), points(middle, looks, x, y), names]
    return {"width": span, "height": height, "layer": shown, "view": {"stroke": None}}


def sample(entry: Entry) -> str:
    """An <svg> of the line and mark of a series, for the page's legend."""
    dash = "" if entry.dash == SOLID else f' stroke-dasharray="{entry.dash[0]:g} {entry.dash[1]:g}"'
    line = f'<path d="M1,8H29" stroke="{entry.color}" stroke-width="{entry.width:g}"{dash} fill="none"/>'
    place = f"translate(15,8) scale({min(entry.size, 6):g})"
    mark = f'<path d="{SHAPES[entry.shape]}" transform="{place}" fill="{entry.color}"/>'
    shown = (line if entry.width else "") + mark
    about = 'class="sample" viewBox="0 0 30 16" width="30" height="16" aria-hidden="true"'
    return f'<svg {about} opacity="{entry.opacity:g}">{shown}</svg>'
