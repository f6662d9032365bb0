"""A comparison for a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from boomspec.diff.compared import Diff
from boomspec.diff.groups import (
    CLASSES,
    Group,
    consequence,
    counted,
    direction,
    effort,
    groups,
    judged,
    number,
    remarks,
    verdict,
    why,
)
from boomspec.plan.changes import shown


def markdown(diff: Diff) -> str:
    """Markdown as GitHub reads it."""
    return "\n".join(_lines(diff)) + "\n"


def _lines(diff: Diff) -> Iterator[str]:
    yield f"### {_code(diff.old.named)} → {_code(diff.new.named)}"
    yield ""
    yield f"**{verdict(diff)}**" + (f" To make what is new: {effort(diff)}." if diff.anew else "")
    for remark in remarks(diff):
        yield ""
        yield f"> {_plain(remark)}"
    for group in groups(diff):
        yield from _group(group)
    yield from _runs(diff)


def _group(group: Group) -> Iterator[str]:
    if group.heading:
        yield from ("", f"#### {_plain(group.heading)}")
    if group.changes.fields:
        yield from ("", "| field | was | is | class | |", "|---|---|---|---|---|")
        for kind, heading in CLASSES.items():
            for field in group.changes.fields:
                if field.kind == kind:
                    cells = _code(field.title), _code(shown(field.old)), _code(shown(field.new)), heading.lower()
                    yield f"| {' | '.join(cells)} | {_plain(consequence(field, group.changes))} |"
    if group.sizes:
        yield from ("", "| size | was | is |", "|---|---|---|")
        for size in group.sizes:
            sides = (f"`{s['plan']}`, {s['parameters']:,} parameters" if s else "-" for s in (size.old, size.new))
            yield f"| {size.label} | {' | '.join(sides)} |"
    changed = [task for task in group.changes.tasks if task.state != "same"]
    if changed:
        yield from ("", f"<details><summary>Tasks: {counted(group.changes)}</summary>", "")
        yield from ("| task | | because of |", "|---|---|---|")
        for task in changed:
            yield f"| {_plain(task.name)} | {task.state} | {_plain(why(task, group.changes))} |"
        yield from ("", "</details>")


def _runs(diff: Diff) -> Iterator[str]:
    if diff.environment:
        yield from ("", "| environment | was | is |", "|---|---|---|")
        for condition in diff.environment:
            yield f"| {condition.name} | {_code(', '.join(condition.old))} | {_code(', '.join(condition.new))} |"
    if diff.results is None:
        return
    yield from ("", f"**Results:** {judged(diff.results)}")
    rows = sorted(diff.results.judged, key=lambda moved: not moved.moved)
    if rows:
        yield from ("", "| model | measure | was | is | difference | |", "|---|---|--:|--:|--:|---|")
        for moved in rows:
            name = f"{moved.label}: {moved.model}" if len(diff.pairs) > 1 else moved.model
            cells = _plain(name), _plain(f"{moved.measure} {moved.metric}"), *number(moved), direction(moved)
            yield f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'").replace("\n", " ") + "`"


def _plain(text: str) -> str:
    for sign in "\\`*_<>|":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")
