"""`boomspec gc`: list artifacts that no run references, and delete them on request."""

import json
import re
import time
from contextlib import nullcontext
from typing import Any

import click

from boomspec.commands.shared import json_option, offered, specless_store_option
from boomspec.core.errors import BoomspecError
from boomspec.core.sizes import shown_bytes
from boomspec.plan.run import DEFAULT_STORE
from boomspec.store import Store, Where, open_store
from boomspec.store.record import Deletable

_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


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
def command(
    store: Where | None, really: bool, forget: tuple[str, ...], cache: bool, as_json: bool, **limits: Any
) -> None:
    """Show what no run needs, and how large it is; delete it with --delete.

    That is: artifacts of no run, broken artifacts, checkpoints that nothing will continue from, and what killed
    processes left. Runs themselves stay unless they are forgotten; with both --keep-last and --older-than only those
    go that both say. A store that a run works with is not touched.

    \b
    Examples:
      boomspec gc
      boomspec gc --older-than 30d --keep-last 3 --delete
    """
    from boomspec.store.gc import GC_SCHEMA_VERSION, forgotten, garbage
    from boomspec.store.runs import chosen_run, past_runs

    place = open_store(store or DEFAULT_STORE)
    place.check_is_store()
    with place.alone() if really else nullcontext():
        runs = past_runs(place)
        named = [chosen_run(runs, name, place) for name in dict.fromkeys(forget)]
        if busy := [run.folder.name for run in named if run.state == "running"]:
            raise BoomspecError(f"run {busy[0]} is running: it is not forgotten", hint="wait for its end, or stop it")
        gone = {run.folder: run for run in [*named, *forgotten(runs, **limits, now=time.time())]}
        items, unjudged = garbage(place, runs, forget=list(gone.values()), cache=cache)
        if really:
            for item in items:
                place.remove(item)
    if as_json:
        fields = ("what", "kind", "path", "bytes", "reason")
        listed = [{field: getattr(item, field) for field in fields} for item in items]
        content = {"schema": GC_SCHEMA_VERSION, "store": place.address, "deleted": really, "items": listed}
        content |= {"bytes": sum(item.bytes for item in items), "unjudged": unjudged}
        click.echo(json.dumps(content, indent=2, default=str))
        return
    _print(items, unjudged, place, deleted=really)
    if items and not really:
        click.echo("nothing was deleted: --delete does it")


def _print(items: list[Deletable], unjudged: dict[str, str], store: Store, *, deleted: bool) -> None:
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
