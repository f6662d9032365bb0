"""Look into a figure: what its layers draw."""

from typing import Any

from runners.report.chart import Figure, Panel, Spec


def layers_of(panel: Panel, mark: str) -> list[Spec]:
    """The layers with this mark ("line", "point", ...), those that only say numbers left out."""
    found = [one for one in panel.layers if one["mark"] == mark or one["mark"]["type"] == mark]
    return [one for one in found if "tooltip" not in one["encoding"]]


def lines_of(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """By series the points of its line, in all panels."""
    found: dict[str, list[tuple[float, float]]] = {}
    for panel in figure.panels:
        for one in layers_of(panel, "line"):
            for row in one["data"]["values"]:
                found.setdefault(row["series"], []).append((row["x"], row["y"]))
    return found


def texts_of(figure: Figure) -> set[str]:
    rows = [row for panel in figure.panels for one in layers_of(panel, "text") for row in one["data"]["values"]]
    return {row["text"] for row in rows}


def said_of(figure: Figure) -> list[dict[str, Any]]:
    """What is said of each point: texts by their titles."""
    found = []
    for one in (one for panel in figure.panels for one in panel.layers if "tooltip" in one["encoding"]):
        names = {entry["field"]: entry["title"] for entry in one["encoding"]["tooltip"]}
        found += [{title: row[f] for f, title in names.items() if f in row} for row in one["data"]["values"]]
    return found


def ends_of(panel: Panel) -> tuple[float, float]:
    """Of the scale of values."""
    domains = {
        tuple(one["encoding"]["y"]["scale"]["domain"])
        for one in panel.layers
        if "scale" in one["encoding"].get("y", {})
    }
    (ends,) = domains
    return ends
