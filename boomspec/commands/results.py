"""`boomspec report`, `diff` and `verify`: what is done with results, and how two of them are compared."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from boomspec.commands import options, shared
from boomspec.core.errors import EXIT_OK, EXIT_RUN_FAILED, BoomspecError
from boomspec.core.json_text import json_text
from boomspec.plan.run import check_runners, open_run
from boomspec.store import Where

EXIT_DIFFERS = 1
_PATH = click.Path(path_type=Path)
_run_argument = click.argument("run", type=_PATH, shell_complete=options.offered("runs_and_specs"))


@click.command("report")
@options.spec_or_run_argument
@options.store_option
@click.option("--open", "open_it", is_flag=True, help="Open the page in a browser.")
@options.json_option
def report(spec: Path, store: Where | None, open_it: bool, as_json: bool) -> None:
    """Write the report of a spec from what its store holds now, and say where it is.

    SPEC: a spec, one of its experiments (SPEC#LABEL), a compiled graph, or the folder of a run. The report of a spec
    with variants or a sweep compares its experiments; SPEC#LABEL is that of one of them.

    \b
    Examples:
      boomspec report specs/quickstart.yaml --open
      boomspec report specs/ablations.yaml#no-kl
      boomspec report boomspec-store/runs/quickstart-1a2b3c4d
    """
    graph, found, _, pending = shared.runnable(spec, store)
    if pending:  # of the others there may be one
        graph, found, _, pending = shared.runnable(spec, store, failed=shared.searches(graph, pending))
        if not pending:
            shared.say_left_out(spec, graph)
    if pending:
        raise BoomspecError(f"{spec}: no report before {', '.join(pending)} has run", hint=f"boomspec run {spec}")
    if not any(node.task.record.shows_numbers for node in graph.nodes.values()):
        raise BoomspecError(f"{spec}: it ends at a search, so there is no report yet", hint="boomspec run its spec")
    run_folder = found.run_folder(graph.name, graph.id)
    # One experiment of a set may never have been run by itself.
    evaluations = {node.id for node in graph.nodes.values() if node.task.kind == "evaluate"}
    if not run_folder.is_dir() and evaluations.isdisjoint(found.ids("evaluate")):
        raise BoomspecError(f"{spec}: not run yet with store {found.address}", hint=f"boomspec run {spec}")
    program = shared.runner(graph, found, report=True)
    shown = subprocess.PIPE if as_json else None
    done = subprocess.run(program, stdout=shown, stderr=shown, text=True)
    if done.returncode != 0 and as_json:
        message = done.stderr.strip().removeprefix("error: ") or "the report could not be made"
        click.echo(json_text({"error": {"message": message, "hint": None}}, indent=2))
    if done.returncode != 0:
        sys.exit(done.returncode if done.returncode > 0 else EXIT_RUN_FAILED)
    page = run_folder / "report" / "report.html"
    if as_json:
        results = page.with_name("results.json")
        trainings = json.loads(results.read_text(encoding="utf-8")).get("trainings", [])
        click.echo(json_text({"report": str(page), "results": str(results), "trainings": trainings}))
    if open_it:
        click.launch(str(page))


@click.command("diff")
@click.argument("sides", nargs=-1, metavar="A B", shell_complete=options.offered("runs_and_specs"))
@options.store_option
@click.option("--markdown", is_flag=True, help="Print Markdown, for a pull request.")
@options.json_option
@click.option("--git-setup", "setup", is_flag=True, help="Make `git diff` show specs like this. A B: path patterns.")
@click.option("--unset", is_flag=True, help="With --git-setup: undo it.")
@click.option("--git-driver", "driver", is_flag=True, hidden=True, help="What git calls; A B are its own arguments.")
def diff(
    sides: tuple[str, ...], store: Where | None, markdown: bool, as_json: bool, setup: bool, unset: bool, driver: bool
) -> None:
    """Show how B differs from A: fields by what they change, the tasks that have to run again, results of runs.

    \b
    Each side is
      a spec                    specs/x.yaml, one experiment of it: specs/x.yaml#label
      a spec at a revision      HEAD~2:specs/x.yaml
      a compiled graph          graph.json, as boomspec graph writes it, or a saved plan
      a run                     its folder, or its name in the store

    Exits with 0 where both mean the same results (fields that only say where, how fast or under which name something
    runs are shown, and do not count), with 1 where results differ, with 2 where a side cannot be read.

    \b
    Examples:
      boomspec diff specs/qwen3-4b.yaml specs/qwen3-4b-no-kl.yaml
      boomspec diff HEAD~1:specs/quickstart.yaml specs/quickstart.yaml --markdown
    """
    from boomspec.diff import git_driver  # here, as what follows: completion and help need none of it

    if driver:
        git_driver.driven(sides)
        return
    if setup or unset:
        if unset and not setup:
            raise BoomspecError("--unset goes with --git-setup")
        for line in git_driver.set_up(sides or git_driver.PATTERNS, undo=unset):
            click.echo(line)
        return
    if len(sides) != 2:
        raise BoomspecError(f"two sides are compared, {len(sides)} given", hint="boomspec diff A B")
    if markdown and as_json:
        raise BoomspecError("--json and --markdown: one of them")
    from boomspec.diff import render
    from boomspec.diff.compared import compared
    from boomspec.diff.sides import both

    found = compared(*both(*sides, store))
    if as_json:
        click.echo(json_text(found.to_json(), indent=2))
    elif markdown:
        click.echo("\n".join(render.markdown(found)))
    else:
        from rich.console import Console

        render.print_diff(found, Console(highlight=False))
    sys.exit(EXIT_DIFFERS if found.differs else EXIT_OK)


@click.command("verify")
@_run_argument
@options.store_option
@click.option("--task", multiple=True, metavar="NAME", help='Only this task, or those of a pattern: "evaluate *".')
@click.option("--kind", multiple=True, metavar="KIND", help="Only tasks of this kind: distill, evaluate, ...")
@click.option("--end-to-end", is_flag=True, help="Build on the repeated inputs instead of the original's.")
@click.option("--tolerance", type=click.FloatRange(0), metavar="T", help="Instead of the spec's determinism.tolerance.")
@click.option("--scratch", type=_PATH, metavar="FOLDER", help="Where to work. Default: beside the store.")
@click.option("--keep", is_flag=True, help="Keep the repeated artifacts, and print where they are.")
@options.cluster_options
@options.plain_option
@options.json_option
def verify(run: Path, store: Where | None, as_json: bool, **options: Any) -> None:
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
    limits = [experiment.meaning.get("execution", {}).get("cpus") for experiment in finished.graph.experiments]
    options |= {"cpus": max(filter(None, limits), default=None), "json": as_json}
    sys.exit(shared.wait_for("runners.cli.verify", finished.graph, store=finished.store.address, **options))
