"""`boomspec verify`: run the tasks of a finished run again, and compare the files bit for bit."""

import sys
from pathlib import Path
from typing import Any

import click

from boomspec.commands import shared
from boomspec.plan.run import open_run
from boomspec.store import Where

_FOLDER = click.Path(path_type=Path)


@click.command("verify")
@click.argument("run", type=_FOLDER, shell_complete=shared.offered("runs_and_specs"))
@shared.store_option
@click.option("--task", multiple=True, metavar="NAME", help='Only this task, or those of a pattern: "evaluate *".')
@click.option("--kind", multiple=True, metavar="KIND", help="Only tasks of this kind: distill, evaluate, ...")
@click.option("--end-to-end", is_flag=True, help="Build on the repeated inputs instead of the original's.")
@click.option("--tolerance", type=click.FloatRange(0), metavar="T", help="Instead of the spec's determinism.tolerance.")
@click.option("--scratch", type=_FOLDER, metavar="FOLDER", help="Where to work. Default: beside the store.")
@click.option("--keep", is_flag=True, help="Keep the repeated artifacts, and print where they are.")
@shared.cluster_options
@shared.plain_option
@shared.json_option
def command(run: Path, store: Where | None, as_json: bool, **options: Any) -> None:
    """Run the tasks of RUN (a spec, the folder of a run, a graph file) again, and compare every file bit for bit.

    Each task is repeated on the original inputs, with the same threads and settings: a task that differs is itself not
    repeatable. The original store is only read.

    Exit codes: 0 the same, 1 a task differs, 2 something could not be compared.

    \b
    Example:
      boomspec verify specs/quickstart.yaml
    """
    finished = open_run(run, store)
    shared.check_runners()
    limits = [experiment.meaning.get("execution", {}).get("cpus") for experiment in finished.graph.experiments]
    options |= {"cpus": max(filter(None, limits), default=None), "json": as_json}
    sys.exit(shared.wait_for("runners.cli.verify", finished.graph, store=finished.store.address, **options))
