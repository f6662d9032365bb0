"""`boomspec report`: the report of what a store holds now."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

from boomspec.commands.shared import json_option, runnable, runner, spec_argument, store_option
from boomspec.errors import EXIT_RUN_FAILED, BoomspecError
from boomspec.graph import TaskGraph
from boomspec.store import Store


@click.command("report")
@spec_argument
@store_option
@click.option("--open", "open_it", is_flag=True, help="Open the page in a browser.")
@json_option
def command(spec: Path, store: Path | None, open_it: bool, as_json: bool) -> None:
    """Write the report of a spec from what its store holds now, and say where it is.

    The report of a spec with variants or a sweep compares its experiments; SPEC#LABEL is that of one of them.

    \b
    Examples:
      boomspec report specs/quickstart.yaml --open
      boomspec report specs/ablations.yaml#no-kl
    """
    graph, folder, _, pending = runnable(spec, store)
    if pending:
        raise BoomspecError(f"{spec}: no report before {', '.join(pending)} has run", hint=f"boomspec run {spec}")
    found = Store(folder)
    run_folder = found.run_folder(graph.name, graph.id)
    # One experiment of a set may never have been run by itself.
    if not run_folder.is_dir() and not _has_results(graph, found):
        raise BoomspecError(f"{spec}: not run yet with store {folder}", hint=f"boomspec run {spec}")
    command = [*runner(graph, folder), "--report"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL if as_json else None)
    if done.returncode != 0:
        sys.exit(EXIT_RUN_FAILED)
    page = run_folder / "report" / "report.html"
    if as_json:
        click.echo(json.dumps({"report": str(page), "results": str(page.with_name("results.json"))}))
    if open_it:
        click.launch(str(page))


def _has_results(graph: TaskGraph, store: Store) -> bool:
    return any(node.task.kind == "evaluate" and store.has("evaluate", node.id) for node in graph.nodes.values())
