"""`boomspec runs` and `gc`: the runs of a store; artifacts that no run references, which are deleted on request."""

import re
import shlex
import time
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boomspec.commands.options import json_option, offered, specless_store_option
from boomspec.core.errors import BoomspecError
from boomspec.core.format import shown_seconds
from boomspec.core.json_text import json_text
from boomspec.core.sizes import shown_bytes
from boomspec.store import Store, Where, open_store, store_of_run, usual_store
from boomspec.store.gc import GC_SCHEMA_VERSION, forgotten, garbage
from boomspec.store.record import Deletable
from boomspec.store.runs import RUNS_SCHEMA_VERSION, PastRun, Trouble, chosen_run, past_runs

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"running": "cyan", "finished": "green", "failed": "bold red", "interrupted": "yellow", "killed": "red"}
_ERROR_LINES = 4  # of an error; all of it is in the log
_LISTED_LOGS = 60  # of more than these, --json has the names
_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


@click.command("runs")
@click.argument("name", required=False, metavar="[RUN]", shell_complete=offered("runs"))
@specless_store_option
@json_option
def runs(name: str | None, store: Where | None, as_json: bool) -> None:
    """List the runs of a store, the newest first; with RUN (its folder, or the start of its name) all about one.

    \b
    Examples:
      boomspec runs
      boomspec runs --store /shared/store
      boomspec runs quickstart-1a2b3c4d
    """
    named = Path(name).resolve() if name is not None else None
    if store is None and named is not None and named.parent.name == "runs" and named.is_dir():
        place = store_of_run(named)
    else:
        place = open_store(store or usual_store())
    place.check_is_store(may_be_absent=store is None)
    found = past_runs(place)
    chosen = None if name is None else chosen_run(found, name, place)
    if chosen is not None and place.run_called(chosen.folder.name):  # fetches its logs and its report, too
        (chosen,) = past_runs(place, [chosen.folder])
    if as_json:
        content: dict[str, Any] = {"runs": [run.to_json() for run in found]}
        if chosen is not None:
            content = {"run": {**chosen.to_json(), "logs": {name: str(log) for name, log in chosen.logs.items()}}}
        click.echo(json_text({"schema": RUNS_SCHEMA_VERSION, "store": place.address, **content}, indent=2))
        return
    if chosen is None and not found:
        click.echo(f"there are no runs in {place.address}/runs")
        click.echo("  hint: boomspec run SPEC makes one; --store FOLDER looks in another store")
        return
    from rich.console import Console  # imported here: rich is slow to load

    console = Console(highlight=False, soft_wrap=True)
    if chosen is None:
        _print_runs(found, place, console)
    else:
        _print_run(chosen, console)


def _print_runs(runs: list[PastRun], store: Store, console: "Console") -> None:
    """Two lines a run: how it went, and its headline numbers, which no column is wide enough for."""
    from rich.markup import escape

    several = any(len(run.experiments) > 1 for run in runs)
    rows = [["run", "state", "started", "took", "in store", *["experiments"] * several]]
    for run in runs:
        made = "?" if run.problem else f"{run.made}/{len(run.tasks)}"
        number = str(len(run.experiments))
        rows.append([run.folder.name, run.state, _time(run), _duration(run), made, *[number] * several])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    console.print(f"[bold]Runs[/] in {escape(f'{store.address}/runs')}")
    padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows]
    console.print(f"[bold]{'  '.join(padded[0]).rstrip()}[/]")
    for run, (name, state, *rest) in zip(runs, padded[1:], strict=True):
        style = _STYLES.get(run.state, "dim")
        console.print("  ".join([escape(name), f"[{style}]{state}[/]", *rest]).rstrip())
        both = [(name, ends) for name, ends in run.numbers.items() if ends.keys() == {"student", "teacher"}]
        ends = [f"{name} {found['student']:.4g} -> {found['teacher']:.4g}" for name, found in both[:2]]
        if headline := run.problem or (f"student to teacher: {', '.join(ends)}" if ends else run.outcome):
            console.print(f"  {escape(headline)}")


def _print_run(run: PastRun, console: "Console") -> None:
    from rich.markup import escape

    style = _STYLES.get(run.state, "dim")
    took = "for" if run.state == "running" else "took"
    when = f", started {_time(run)}, {took} {_duration(run)}" if run.started is not None else ""
    console.print(f"[bold]{escape(run.folder.name)}[/]: [{style}]{run.state}[/]{when}")
    made = f"{run.made} of its {len(run.tasks)} tasks have their artifact in the store"
    lines = [made if run.problem is None else run.problem]
    if run.same:
        lines.append(f"{run.same} of them were not computed again: their inputs were the same, byte for byte")
    if len(run.experiments) > 1:
        lines.append(f"{len(run.experiments)} experiments: {'  '.join(run.experiments)}")
    for name, ends in run.numbers.items():
        lines.append(f"{name}: " + ", ".join(f"{series} {value:.4g}" for series, value in ends.items()))
    console.print(escape("\n".join([*lines, *filter(None, [run.outcome])])))
    # The failed tasks one by one; of blocked ones with the same reason the first, and how many more there are.
    groups: dict[tuple[str, str], list[Trouble]] = {}
    for trouble in sorted(run.troubles, key=lambda trouble: trouble.state == "blocked"):
        groups.setdefault(("" if trouble.state == "blocked" else trouble.task, trouble.error), []).append(trouble)
    for trouble, *others in groups.values():
        first, *more = trouble.error.splitlines()[:_ERROR_LINES] or ["no message"]
        tasks = f"{trouble.task} and {len(others)} more" if others else trouble.task
        more += [f"log: {trouble.log}"] if trouble.log is not None else []
        console.print(f"[bold]{trouble.state}[/]: " + escape("\n  ".join([f"{tasks}: {first}", *more])))
    lines = []
    if logs := run.logs:
        lines.append(f"logs of {len(logs)} tasks: {run.folder / 'logs'}")
        lines += [f"  {log.name}  {name}" for name, log in logs.items() if len(logs) <= _LISTED_LOGS]
    if (curves := run.folder / "tensorboard").is_dir():
        lines.append(f"curves: tensorboard --logdir {shlex.quote(str(curves))}")
    if (page := run.folder / "report" / "report.html").is_file():
        lines.append(f"report: {page}")
    console.print(escape("\n".join([*lines, f"folder: {run.folder}"])))


def _time(run: PastRun) -> str:
    return "" if run.started is None else datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M")


def _duration(run: PastRun) -> str:
    over = ">" if run.state == "killed" else ""  # until the last thing that was written
    return "" if run.seconds is None else f"{over}{shown_seconds(run.seconds)}"


def _age(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([hdw])", value)
    if match is None:
        raise BoomspecError(f"--older-than {value}: not an age", hint="such as 12h, 30d or 4w")
    return float(match[1]) * _SECONDS[match[2]]


@click.command("gc")
@specless_store_option
@click.option("--delete", "really", is_flag=True, help="Really delete it. Without this only what could go is shown.")
@click.option("--forget", multiple=True, metavar="RUN", shell_complete=offered("runs"), help="Forget this run, too.")
@click.option("--keep-last", type=click.IntRange(min=0), metavar="N", help="Forget all but the newest N of each name.")
@click.option("--older-than", callback=_age, metavar="AGE", help="Forget runs that ended so long ago: 12h, 30d, 4w.")
@click.option("--cache", is_flag=True, help="Also what libraries keep in the store's cache folder.")
@json_option
def gc(store: Where | None, really: bool, forget: tuple[str, ...], cache: bool, as_json: bool, **limits: Any) -> None:
    """Show what no run needs, and how large it is; delete it with --delete.

    That is: artifacts of no run, broken artifacts, checkpoints that nothing will continue from, and what killed
    processes left. Runs themselves stay unless they are forgotten; with both --keep-last and --older-than only those
    go that both say. A store that a run works with is not touched.

    \b
    Examples:
      boomspec gc
      boomspec gc --older-than 30d --keep-last 3 --delete
    """
    place = open_store(store or usual_store())
    place.check_is_store()
    with place.alone() if really else nullcontext():
        found = past_runs(place)
        named = [chosen_run(found, name, place) for name in dict.fromkeys(forget)]
        if busy := [run.folder.name for run in named if run.state == "running"]:
            raise BoomspecError(f"run {busy[0]} is running: it is not forgotten", hint="wait for its end, or stop it")
        gone = {run.folder: run for run in [*named, *forgotten(found, **limits, now=time.time())]}
        items, unjudged = garbage(place, found, forget=list(gone.values()), cache=cache)
        if really:
            for item in items:
                place.remove(item)
    if as_json:
        fields = ("what", "kind", "path", "bytes", "reason")
        listed = [{**{field: getattr(item, field) for field in fields}, "path": str(item.path)} for item in items]
        content = {"schema": GC_SCHEMA_VERSION, "store": place.address, "deleted": really, "items": listed}
        content |= {"bytes": sum(item.bytes for item in items), "unjudged": unjudged}
        click.echo(json_text(content, indent=2))
        return
    _print_garbage(items, unjudged, place, deleted=really)
    if items and not really:
        click.echo("nothing was deleted: --delete does it")


def _print_garbage(items: list[Deletable], unjudged: dict[str, str], store: Store, *, deleted: bool) -> None:
    from rich.console import Console  # imported here: rich is slow to load
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if not items:
        console.print(f"nothing can go from {escape(store.address)}")
    else:
        console.print(f"[bold]{'Deleted from' if deleted else 'Not needed in'}[/] {escape(store.address)}")
        table = Table("what", box=None, pad_edge=False, header_style="bold")
        table.add_column("count", justify="right")
        table.add_column("size", justify="right")
        groups: dict[str, list[Deletable]] = {}
        for item in items:
            detail = {"artifact": ", of no run", "checkpoints": f", {item.reason}"}.get(item.what, "")
            groups.setdefault(f"{item.what} {item.kind}".strip() + detail, []).append(item)
        for name, own in [*groups.items(), ("[bold]in all[/]", items)]:
            table.add_row(name, str(len(own)), shown_bytes(sum(item.bytes for item in own)))
        console.print(table)
    for run, reason in unjudged.items():
        console.print(f"[yellow]run {escape(run)}[/]: {escape(reason)}")
    if unjudged:
        console.print("what it needs is not known, so every artifact is kept; boomspec gc --forget RUN gives it up")
