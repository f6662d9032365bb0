"""A comparison for people at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boomspec.diff.compared import Diff
from boomspec.diff.groups import (
    CLASSES,
    MARKS,
    Group,
    consequence,
    counted,
    direction,
    effort,
    folded,
    follows,
    groups,
    judged,
    number,
    remarks,
    verdict,
    why,
)
from boomspec.plan.changes import count, listed, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_TASKS, MOST_NUMBERS = 40, 60
_STYLES = {"results": "bold yellow", "execution": "bold cyan", "cosmetic": "bold"}
_DIRECTIONS = {"better": "green", "worse": "red", "moved": "yellow"}


def print_diff(diff: Diff, console: Console, *, title: bool = True) -> None:
    """Print what differs, most important first."""
    if title:
        console.print(_title(diff))
    console.print(_escaped(verdict(diff)))
    for remark in remarks(diff):
        console.print(f"[dim]{_escaped(remark)}[/]")
    found = groups(diff)
    for group in found:
        if group.heading:
            console.print(f"\n[bold underline]{_escaped(group.heading)}[/]")
        _print_fields(group, console)
        _print_sizes(group, console)
        _print_tasks(group, console)
    if diff.anew:
        console.print(f"\n[bold]To make what is new:[/] {effort(diff)}")
    _print_runs(diff, console)


def _title(diff: Diff) -> str:
    return f"[bold]{_escaped(diff.old.named)}[/] -> [bold]{_escaped(diff.new.named)}[/]"


def _print_fields(group: Group, console: Console) -> None:
    longest = max((len(field.title) for field in group.changes.fields), default=0)
    width = max(24, (console.width - longest - 28) // 2)  # beside the name, the arrow and what a field does
    for kind, heading in CLASSES.items():
        fields = [field for field in group.changes.fields if field.kind == kind]
        if not fields:
            continue
        console.print(f"\n[{_STYLES[kind]}]{heading}[/]")
        table = _table(5)
        for field in fields:
            old, new = (shown(value, width=width) for value in (field.old, field.new))
            row = field.title, old, "->", new, consequence(field, group.changes)
            table.add_row("", *map(_escaped, row))
        console.print(table)


def _print_sizes(group: Group, console: Console) -> None:
    if not group.sizes:
        return
    console.print("\n[bold]Sizes[/]")
    table = _table(5)
    for size in group.sizes:
        sides = (f"{s['plan']} ({s['parameters']:,} parameters)" if s else "-" for s in (size.old, size.new))
        before, after = sides
        table.add_row("", size.label, before, "->", after)
    console.print(table)


def _print_tasks(group: Group, console: Console) -> None:
    changed = [task for task in group.changes.tasks if task.state != "same"]
    if not changed:
        return
    console.print(f"\n[bold]Tasks:[/] {counted(group.changes)}")
    table = _table(4)
    first = [task for task in changed if not follows(task, group.changes)]
    for task in first[:MOST_TASKS]:
        table.add_row("", MARKS[task.state], _escaped(task.name), f"[dim]{_escaped(why(task, group.changes))}[/]")
    console.print(table)
    if len(first) > MOST_TASKS:
        console.print(f"  [dim]and {len(first) - MOST_TASKS} more (all of them with --json)[/]")
    behind = [task.name for task in changed if task not in first]
    if behind:
        table = _table(2)
        table.add_row("", f"[dim]and what needs them:[/] {_escaped(listed(folded(behind), most=MOST_TASKS))}")
        console.print(table)


def _print_runs(diff: Diff, console: Console) -> None:
    if diff.environment:
        console.print("\n[bold]Environment[/]")
        table = _table(5)
        for condition in diff.environment:
            table.add_row("", condition.name, ", ".join(condition.old), "->", ", ".join(condition.new))
        console.print(table)
    results = diff.results
    if results is None:
        return
    console.print(f"\n[bold]Results:[/] {judged(results)}")
    several = len(diff.pairs) > 1
    table = _table(7)
    # What moved goes first; among equals the order of the experiment.
    rows = sorted(results.judged, key=lambda moved: not moved.moved)
    for moved in rows[:MOST_NUMBERS]:
        told = direction(moved)
        style = _DIRECTIONS.get(told, "dim")
        old, new, apart = number(moved)
        name = f"{moved.label}: {moved.model}" if several else moved.model
        table.add_row("", name, f"{moved.measure} {moved.metric}", old, "->", new, apart, f"[{style}]{told}[/]")
    console.print(table)
    if len(rows) > MOST_NUMBERS:
        console.print(f"  [dim]and {len(rows) - MOST_NUMBERS} more (all of them with --json)[/]")
    for side, names in ((diff.old, results.only_old), (diff.new, results.only_new)):
        if names:
            console.print(f"[dim]{count(len(names), 'result')} of {_escaped(side.named)} alone[/]")


def _table(columns: int) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for i in range(columns):
        table.add_column(overflow="fold", no_wrap=i == 1 and columns > 4)
    return table


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
