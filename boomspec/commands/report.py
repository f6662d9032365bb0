"""`boomspec report`: write the report of the results in a store."""

import subprocess
import sys
from pathlib import Path

import click

from boomspec.commands.shared import json_option, runnable, runner, say_left_out, searches, spec_argument, store_option
from boomspec.core.errors import EXIT_RUN_FAILED, BoomspecError
from boomspec.core.json_text import json_text
from boomspec.store import Where


@click.command("report")
@spec_argument
@store_option
@click.option("--open", "open_it", is_flag=True, help="Open the page in a browser.")
@json_option
def command(spec: Path, store: Where | None, open_it: bool, as_json: bool) -> None:
    """Write the report of a spec from what its store holds now, and say where it is.

    SPEC: a spec, one of its experiments (SPEC#LABEL), a compiled graph, or the folder of a run. The report of a spec
    with variants or a sweep compares its experiments; SPEC#LABEL is that of one of them.

    \b
    Examples:
      boomspec report specs/quickstart.yaml --open
      boomspec report specs/ablations.yaml#no-kl
      boomspec report boomspec-store/runs/quickstart-1a2b3c4d
    """
    graph, found, _, pending = runnable(spec, store)
    if pending:  # of the others there may be one
        graph, found, _, pending = runnable(spec, store, failed=searches(graph, pending))
        if not pending:
            say_left_out(spec, graph)
    if pending:
        raise BoomspecError(f"{spec}: no report before {', '.join(pending)} has run", hint=f"boomspec run {spec}")
    if not any(node.task.record.shows_numbers for node in graph.nodes.values()):
        raise BoomspecError(f"{spec}: it ends at a search, so there is no report yet", hint="boomspec run its spec")
    run_folder = found.run_folder(graph.name, graph.id)
    # One experiment of a set may never have been run by itself.
    evaluations = {node.id for node in graph.nodes.values() if node.task.kind == "evaluate"}
    if not run_folder.is_dir() and evaluations.isdisjoint(found.ids("evaluate")):
        raise BoomspecError(f"{spec}: not run yet with store {found.address}", hint=f"boomspec run {spec}")
    command = runner(graph, found, report=True)
    shown = subprocess.PIPE if as_json else None
    done = subprocess.run(command, stdout=shown, stderr=shown, text=True)
    if done.returncode != 0 and as_json:
        message = done.stderr.strip().removeprefix("error: ") or "the report could not be made"
        click.echo(json_text({"error": {"message": message, "hint": None}}, indent=2))
    if done.returncode != 0:
        sys.exit(done.returncode if done.returncode > 0 else EXIT_RUN_FAILED)
    page = run_folder / "report" / "report.html"
    if as_json:
        click.echo(json_text({"report": str(page), "results": str(page.with_name("results.json"))}))
    if open_it:
        click.launch(str(page))
