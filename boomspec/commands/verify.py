"""`boomspec verify`: run the tasks of a finished run again, and compare the files bit for bit."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from boomspec.commands.shared import (
    check_runners,
    cluster_options,
    json_option,
    module_command,
    offered,
    plain_option,
    store_option,
    wait,
)
from boomspec.core.graph import TaskGraph
from boomspec.plan.run import GRAPH, open_run
from boomspec.store import Where


@click.command("verify")
@click.argument("run", type=click.Path(path_type=Path), shell_complete=offered("runs_and_specs"))
@store_option
@click.option(
    "--task", "tasks", multiple=True, metavar="NAME", help='Only this task, or those of a pattern: "evaluate *".'
)
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only tasks of this kind: distill, evaluate, ...")
@click.option("--end-to-end", is_flag=True, help="Build on the repeated inputs instead of the original's.")
@click.option(
    "--tolerance", type=click.FloatRange(min=0), metavar="T", help="Instead of determinism.tolerance of the spec."
)
@click.option(
    "--scratch", type=click.Path(path_type=Path), metavar="FOLDER", help="Where to work. Default: beside the store."
)
@click.option("--keep", is_flag=True, help="Keep the repeated artifacts, and print where they are.")
@cluster_options
@plain_option
@json_option
def command(
    run: Path,
    store: Where | None,
    tasks: tuple[str, ...],
    kinds: tuple[str, ...],
    end_to_end: bool,
    tolerance: float | None,
    scratch: Path | None,
    keep: bool,
    address: str | None,
    insecure: bool,
    plain: bool,
    as_json: bool,
) -> None:
    """Run the tasks of RUN (a spec, the folder of a run, a graph file) again, and compare every file bit for bit.

    Each task is repeated on the original inputs, with the same threads and settings: a task that differs is itself not
    repeatable. The original store is only read.

    Exit codes: 0 the same, 1 a task differs, 2 something could not be compared.

    \b
    Example:
      boomspec verify specs/quickstart.yaml
    """
    finished = open_run(run, store)
    check_runners()
    with tempfile.TemporaryDirectory(prefix="boomspec-") as temporary:
        graph = Path(temporary, GRAPH)
        finished.graph.write(graph)
        program = module_command(
            "runners.cli.verify",
            str(graph),
            store=finished.store.address,
            task=tasks,
            kind=kinds,
            scratch=None if scratch is None else scratch.absolute(),
            tolerance=tolerance,
            address=address or None,
            cpus=_cpus(finished.graph),
            end_to_end=end_to_end,
            keep=keep,
            plain=plain,
            json=as_json,
            insecure=insecure,
        )
        sys.exit(wait(program))


def _cpus(graph: TaskGraph) -> int | None:
    """`execution.cpus` of the spec."""
    found = [e.meaning.get("execution", {}).get("cpus") for e in graph.experiments]
    return max((count for count in found if count), default=None)
