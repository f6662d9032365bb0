"""What a terminal shows at the end of a run: the sizes with their main numbers, what they say, a command to copy.

It is written beside the page as plain text of 80 columns, so that a run that finds its report there prints it, too.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from runners.report.findings import outcome
from runners.report.format import number
from runners.report.study import Study

SUMMARY = "summary.txt"
_WIDTH = 80
_MOST_GROUPS = 12  # rows
_MOST_COLUMNS = 5  # sizes of a sweep
_GAP = "  "
_UNMEASURED = "-"

Rows = Sequence[Sequence[str]]


def closing(study: Study, sizes: Sequence[Mapping[str, Any]]) -> str:
    """The text, with a line end. `sizes`: what a page knows of them (`runners.report.sizes`)."""
    rows, more = (_of_several(study) if study.axes else _of_one(study, sizes)) if study.measures else ([], 0)
    lines = _aligned(rows)
    if more:
        what = "experiment" if study.axes else "measure"
        lines.append(f"({more} more {what}{'' if more == 1 else 's'} in the report)")
    lines += ["", *textwrap.wrap(outcome(study), _WIDTH, break_long_words=False)] if lines else [outcome(study)]
    if (command := _export(sizes)) is not None:
        lines += ["", "a size as a folder for transformers:", f"  {command}"]
    return "\n".join([*lines, ""])


def _of_one(study: Study, sizes: Sequence[Mapping[str, Any]]) -> tuple[Rows, int]:
    """A row for each measured size, from the smallest; how many numbers were left out."""
    entries = [one for one in sizes[0]["sizes"] if one["values"]] if sizes else []
    if not entries:
        return [], 0
    names = [value["name"] for value in entries[-1]["values"] if value["main"]]
    arrows = {value["name"]: value["arrow"] for one in entries for value in one["values"]}
    heads = ["size", "parameters", "of teacher"]
    fits = [
        name for i, name in enumerate(names) if sum(map(len, [*heads, *names[: i + 1]])) + 5 * (i + 4) <= _WIDTH + 8
    ]
    rows = [[*heads, *(f"{name} {arrows[name]}" for name in fits)]]
    for one in entries:
        values = {value["name"]: value["text"] for value in one["values"]}
        name = one["name"] if one["kind"] == "interpolated" else f"{one['name']}, {one['kind']}"
        numbers = [values.get(name, _UNMEASURED) for name in fits]
        rows.append([name, one["parametersText"], f"{one['share']:.1%}", *numbers])
    return rows, len(names) - len(fits)


def _of_several(study: Study) -> tuple[Rows, int]:
    """The main measure: a row for each experiment, a column for some sizes; means over seeds."""
    measure, places = study.measures[0], study.sizes(study.measures[0])
    step = max(1, -(-(len(places) - 1) // (_MOST_COLUMNS - 1)))
    chosen = list(dict.fromkeys([*places[::step][: _MOST_COLUMNS - 1], *places[-1:]]))
    rows = [[f"{study.name(measure)} {study.arrow(measure)}", *map(str, chosen)]]
    for group in study.groups[:_MOST_GROUPS]:
        points = study.points(group, measure)
        rows.append([group.label, *(number(points[one].mean) if one in points else _UNMEASURED for one in chosen)])
    return rows, max(0, len(study.groups) - _MOST_GROUPS)


def _export(sizes: Sequence[Mapping[str, Any]]) -> str | None:
    """The command for a size in the middle of the first family, of those that were measured where there are some."""
    entries = [one for one in sizes[0]["sizes"] if "export" in one] if sizes else []
    inner = [one for one in entries if one["kind"] == "interpolated"] or entries
    inner = [one for one in inner if one["values"]] or inner
    return inner[len(inner) // 2]["export"] if inner else None


def _aligned(rows: Rows) -> list[str]:
    """Columns in line, the first to the left; the first one is cut where a line were too long."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], max(12, _WIDTH - sum(widths[1:]) - len(_GAP) * (len(widths) - 1)))
    cut = [[row[0] if len(row[0]) <= widths[0] else f"{row[0][: widths[0] - 1]}…", *row[1:]] for row in rows]
    return [
        _GAP.join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cut
    ]
