"""What `runs` and `gc` print for people: tables of runs, and of what can go."""

from __future__ import annotations

import shlex
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boomspec.core.format import shown_seconds
from boomspec.core.sizes import shown_bytes
from boomspec.store import Store
from boomspec.store.gc import Needed
from boomspec.store.interface import Stored
from boomspec.store.runs import PastRun, Trouble

_STYLES = {"running": "cyan", "finished": "green", "failed": "bold red", "interrupted": "yellow", "killed": "red"}
_ERROR_LINES = 4  # of an error; all of it is in the log
_LISTED_LOGS = 60  # of more than these, --json has the names


def print_runs(runs: list[PastRun], store: Store) -> None:
    """Two lines a run: how it went, and its headline numbers, which no column is wide enough for."""
    console = Console(highlight=False, soft_wrap=True)
    several = any(len(run.experiments) > 1 for run in runs)
    rows = [["run", "state", "started", "took", "in store", *(["experiments"] if several else [])]]
    for run in runs:
        made = "?" if run.problem else f"{run.made}/{len(run.tasks)}"
        number = [str(len(run.experiments))] if several else []
        rows.append([run.folder.name, run.state, _time(run), _duration(run), made, *number])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    console.print(f"[bold]Runs[/] in {escape(f'{store.address}/runs')}")
    padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows]
    console.print(f"[bold]{'  '.join(padded[0]).rstrip()}[/]")
    for run, (name, state, *rest) in zip(runs, padded[1:], strict=True):
        style = _STYLES.get(run.state, "dim")
        console.print("  ".join([escape(name), f"[{style}]{state}[/]", *rest]).rstrip())
        if headline := _headline(run):
            console.print(f"  {escape(headline)}")


def print_run(run: PastRun) -> None:
    """Everything that is known about one run."""
    console = Console(highlight=False, soft_wrap=True)
    style = _STYLES.get(run.state, "dim")
    took = "for" if run.state == "running" else "took"
    when = f", started {_time(run)}, {took} {_duration(run)}" if run.started is not None else ""
    console.print(f"[bold]{escape(run.folder.name)}[/]: [{style}]{run.state}[/]{when}")
    if run.problem is not None:
        console.print(escape(run.problem))
    else:
        console.print(f"{run.made} of its {len(run.tasks)} tasks have their artifact in the store")
    if run.same:
        console.print(f"{run.same} of them were not computed again: their inputs were the same, byte for byte")
    if len(run.experiments) > 1:
        console.print(f"{len(run.experiments)} experiments: {escape('  '.join(run.experiments))}")
    for name, ends in run.numbers.items():
        console.print(escape(f"{name}: " + ", ".join(f"{series} {value:.4g}" for series, value in ends.items())))
    if run.outcome:
        console.print(escape(run.outcome))
    for trouble, others in _same_error(run.troubles):
        first, *more = trouble.error.splitlines()[:_ERROR_LINES] or ["no message"]
        tasks = trouble.task if not others else f"{trouble.task} and {others} more"
        console.print(f"[bold]{trouble.state}[/]: {escape(tasks)}: {escape(first)}")
        for line in more:
            console.print(f"  {escape(line)}")
        if trouble.log is not None:
            console.print(f"  log: {escape(str(trouble.log))}")
    logs = run.logs
    if logs:
        console.print(f"logs of {len(logs)} tasks: {escape(str(run.folder / 'logs'))}")
        for name, log in logs.items() if len(logs) <= _LISTED_LOGS else ():
            console.print(escape(f"  {log.name}  {name}"))
    if (run.folder / "tensorboard").is_dir():
        console.print(f"curves: tensorboard --logdir {escape(shlex.quote(str(run.folder / 'tensorboard')))}")
    page = run.folder / "report" / "report.html"
    if page.is_file():
        console.print(f"report: {escape(str(page))}")
    console.print(f"folder: {escape(str(run.folder))}")


def print_garbage(items: list[Stored], needed: Needed, store: Store, *, deleted: bool) -> None:
    """Counts and bytes of what can go, or is gone, by kind."""
    console = Console(highlight=False, soft_wrap=True)
    if not items:
        console.print(f"nothing can go from {escape(store.address)}")
        _print_unjudged(needed, console)
        return
    console.print(f"[bold]{'Deleted from' if deleted else 'Not needed in'}[/] {escape(store.address)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("size", justify="right")
    for name, own in _grouped(items).items():
        table.add_row(name, str(len(own)), shown_bytes(sum(item.bytes for item in own)))
    table.add_row("[bold]in all[/]", str(len(items)), shown_bytes(sum(item.bytes for item in items)))
    console.print(table)
    _print_unjudged(needed, console)


def _print_unjudged(needed: Needed, console: Console) -> None:
    for run, reason in needed.unjudged.items():
        console.print(f"[yellow]run {escape(run)}[/]: {escape(reason)}")
    if needed.unjudged:
        console.print("what it needs is not known, so every artifact is kept; boomspec gc --forget RUN gives it up")


def _same_error(troubles: tuple[Trouble, ...]) -> list[tuple[Trouble, int]]:
    """The failed tasks one by one; of blocked ones with the same reason the first, and how many more there are."""
    reasons = [trouble.error for trouble in troubles if trouble.state == "blocked"]
    blocked = {t.error: (t, reasons.count(t.error) - 1) for t in reversed(troubles) if t.state == "blocked"}
    return [(trouble, 0) for trouble in troubles if trouble.state == "failed"] + list(reversed(blocked.values()))


def _grouped(items: list[Stored]) -> dict[str, list[Stored]]:
    groups: dict[str, list[Stored]] = {}
    for item in items:
        detail = {"artifact": ", of no run", "checkpoints": f", {item.reason}"}.get(item.what, "")
        groups.setdefault(f"{item.what} {item.kind}".strip() + detail, []).append(item)
    return groups


def _headline(run: PastRun) -> str:
    if run.problem is not None:
        return run.problem
    ends = [
        f"{name} {found['student']:.4g} -> {found['teacher']:.4g}"
        for name, found in run.numbers.items()
        if found.keys() == {"student", "teacher"}
    ]
    return f"student to teacher: {', '.join(ends[:2])}" if ends else run.outcome


def _time(run: PastRun) -> str:
    return "" if run.started is None else datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M")


def _duration(run: PastRun) -> str:
    if run.seconds is None:
        return ""
    over = ">" if run.state == "killed" else ""  # until the last thing that was written
    return f"{over}{shown_seconds(run.seconds)}"
