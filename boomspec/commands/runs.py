"""`boomspec runs`: the runs of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from boomspec.commands.shared import json_option, offered, specless_store_option
from boomspec.core.json_text import json_text
from boomspec.plan.run import DEFAULT_STORE
from boomspec.store import Where, open_store, store_of_run


@click.command("runs")
@click.argument("name", required=False, metavar="[RUN]", shell_complete=offered("runs"))
@specless_store_option
@json_option
def command(name: str | None, store: Where | None, as_json: bool) -> None:
    """List the runs of a store, the newest first; with RUN (its folder, or the start of its name) all about one.

    \b
    Examples:
      boomspec runs
      boomspec runs --store /shared/store
      boomspec runs quickstart-1a2b3c4d
    """
    from boomspec.store.runs import RUNS_SCHEMA_VERSION, chosen_run, past_run, past_runs

    named = Path(name).resolve() if name is not None else None
    if store is None and named is not None and named.parent.name == "runs" and named.is_dir():
        place = store_of_run(named)
    else:
        place = open_store(store or DEFAULT_STORE)
    place.check_is_store(may_be_absent=store is None)
    runs = past_runs(place)
    chosen = None if name is None else chosen_run(runs, name, place)
    if chosen is not None and place.run_called(chosen.folder.name):  # fetches its logs and its report, too
        chosen = past_run(place, chosen.folder)
    if as_json:
        listed = [run.to_json() for run in runs]
        content: dict[str, Any] = {"runs": listed}
        if chosen is not None:
            content = {"run": {**chosen.to_json(), "logs": {name: str(log) for name, log in chosen.logs.items()}}}
        click.echo(json_text({"schema": RUNS_SCHEMA_VERSION, "store": place.address, **content}, indent=2))
        return
    if chosen is None and not runs:
        click.echo(f"there are no runs in {place.address}/runs")
        click.echo("  hint: boomspec run SPEC makes one; --store FOLDER looks in another store")
        return
    from boomspec.commands.run_tables import print_run, print_runs

    if chosen is None:
        print_runs(runs, place)
    else:
        print_run(chosen)
