"""The command line: each command parses, calls one function, prints.

Exit codes: 0 fine, 1 the run failed, 2 the spec or the call is wrong, 130 interrupted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from boomspec import __version__
from boomspec.compile import Compiled, answers_of, check_spec, compile_spec
from boomspec.errors import EXIT_INTERRUPTED, EXIT_RUN_FAILED, EXIT_SPEC_WRONG, BoomspecError, SpecError
from boomspec.export import export_command
from boomspec.graph import TaskGraph, read_graph
from boomspec.plan import needed
from boomspec.runs import DEFAULT_STORE, open_run, store_folder
from boomspec.show import mermaid, plan_json, print_family, print_pending, print_plan
from boomspec.sizes import compact_plan, folder_name
from boomspec.spec import load_spec
from boomspec.store import Store, write_atomically

_spec = click.argument("spec", type=click.Path(path_type=Path))


def _folder(_context: click.Context, _option: click.Parameter, value: str | None) -> Path | None:
    if value is not None and "://" in value:
        raise BoomspecError(f"only folders are supported as a store, not '{value}'", hint="give a path")
    return None if value is None else Path(value)


_store = click.option(
    "--store",
    metavar="FOLDER",
    callback=_folder,
    help=f"Folder of the artifacts. Default: execution.store of the spec, else ./{DEFAULT_STORE}.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


class _Commands(click.Group):
    """Prints what a user can act on without a traceback, as JSON where --json was asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except OSError as error:
            click.echo(f"{error.filename or 'error'}: {error.strerror or error}", err=True)
            ctx.exit(EXIT_SPEC_WRONG)
        except BoomspecError as error:
            if ctx.meta["json"]:
                detail = (
                    error.to_json() if isinstance(error, SpecError) else {"message": error.message, "hint": error.hint}
                )
                click.echo(json.dumps({"error": detail}, indent=2))
            else:
                click.echo(str(error), err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="boomspec")
def main() -> None:
    """Boomerang distillation as a declarative experiment: distil one student, get every size."""


@main.command()
@_spec
@_json
def validate(spec: Path, as_json: bool) -> None:
    """Check a spec: every problem at once, each with its place. Reads no data and asks no network."""
    file = load_spec(spec)
    family = check_spec(file)
    if as_json:
        click.echo(json.dumps({"valid": True, "teacher_checked": family is not None}))
        return
    click.echo(f"{spec}: valid")
    if family is None:
        click.echo("layers and sizes are not checked: they need a model of the hub or a search (see boomspec plan)")


@main.command()
@_spec
@_store
@click.option("--verify", is_flag=True, help="Check the stored artifacts' checksums, not only their sizes.")
@_json
def plan(spec: Path, store: Path | None, verify: bool, as_json: bool) -> None:
    """Show what a run would reuse and do, why, and the exact size of every model."""
    compiled, folder = _compile(spec, store)
    result = needed(compiled.graph, Store(folder), checksums=verify)
    if as_json:
        click.echo(json.dumps(plan_json(compiled, result), indent=2))
        return
    if compiled.family is not None:
        print_family(compiled.family)
    print_plan(compiled.graph, result, folder)
    if compiled.pending:
        print_pending(compiled)


@main.command()
@_spec
@_store
@click.option(
    "--address", help="A running Ray cluster: auto, host:port or ray://host:port. Default: a private local one."
)
@click.option("--verify", is_flag=True, help="Check the checksums of artifacts that are reused.")
@click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")
def run(spec: Path, store: Path | None, address: str | None, verify: bool, plain: bool) -> None:
    """Run an experiment; what is in the store already is reused, what was interrupted goes on."""
    options = (["--address", address] if address else []) + ["--verify"] * verify + ["--plain"] * plain
    done: set[str] = set()
    while True:
        graph, folder, cpus, pending = _runnable(spec, store)
        if pending and done.intersection(graph.targets):
            raise BoomspecError(f"{', '.join(pending)}: has run and found nothing", hint="see its log in the store")
        command = _runner(graph, folder) + (["--cpus", str(cpus)] if cpus else []) + options
        sys.stdout.flush()
        if not pending:
            # The runners replace this process: the compiler's room never imports theirs, and signals reach them.
            os.execv(sys.executable, command)
        if code := _wait(command):
            sys.exit(code)
        done.update(graph.targets)


@main.command()
@_spec
@_store
@click.option("--open", "open_it", is_flag=True, help="Open the page in a browser.")
@_json
def report(spec: Path, store: Path | None, open_it: bool, as_json: bool) -> None:
    """Write the report of a spec from what its store holds now, and say where it is."""
    graph, folder, _, _ = _runnable(spec, store)
    run_folder = Store(folder).run_folder(graph.name, graph.id)
    if not run_folder.is_dir():
        raise BoomspecError(f"{spec}: not run yet with store {folder}", hint=f"boomspec run {spec}")
    command = [*_runner(graph, folder), "--report"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL if as_json else None)
    if done.returncode != 0:
        sys.exit(EXIT_RUN_FAILED)
    page = run_folder / "report" / "report.html"
    if as_json:
        click.echo(json.dumps({"report": str(page), "results": str(page.with_name("results.json"))}))
    if open_it:
        click.launch(str(page))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("size")
@click.argument("folder", type=click.Path(path_type=Path))
@_store
@click.option("--force", is_flag=True, help="Replace the model that is in the folder.")
@_json
def export(run: Path, size: str, folder: Path, store: Path | None, force: bool, as_json: bool) -> None:
    """Write one SIZE of RUN (a spec or a run's folder) into FOLDER, as a Hugging Face model with a model card.

    SIZE: student, teacher, or 24 layers, 3B, 80%, 6GiB (the largest not above is taken; the spec need not list it).
    all: every size, each into a folder of its own below FOLDER.
    """
    made = open_run(run, store)
    chosen = made.every() if size == "all" else (made.member(size),)
    with export_command(made, None if size == "all" else chosen[0], folder, force=force) as command:
        code = _wait(command)
    if code:
        sys.exit(code)
    lineage = made.lineage()
    folders = [folder / folder_name(lineage, member) if size == "all" else folder for member in chosen]
    written = [{"folder": str(f.absolute()), **m.to_json()} for f, m in zip(folders, chosen, strict=True)]
    if as_json:
        click.echo(json.dumps(written if size == "all" else written[0]))
        return
    for f, m in zip(folders, chosen, strict=True):
        click.echo(f"{f}: {m.layers} layers, {m.parameters:,} parameters, {compact_plan(m.plan)}")


@main.command()
@_spec
@_store
@click.option("--format", "form", type=click.Choice(["json", "mermaid"]), default="json", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write a file instead.")
def graph(spec: Path, store: Path | None, form: str, output: Path | None) -> None:
    """Print the compiled task graph; behind a search, what the store's answer leads to."""
    compiled, _ = _compile(spec, store)
    text = json.dumps(compiled.graph.to_json(), indent=1) if form == "json" else mermaid(compiled.graph)
    if output is None:
        click.echo(text)
    else:
        write_atomically(output, text + "\n")


@main.command()
def schema() -> None:
    """Print the JSON Schema of the spec language, for editors."""
    from boomspec.spec import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


def _compile(spec: Path, store: Path | None) -> tuple[Compiled, Path]:
    file = load_spec(spec)
    folder = store_folder(file, store)
    return compile_spec(file, answers_of(Store(folder))), folder


def _runnable(spec: Path, store: Path | None) -> tuple[TaskGraph, Path, int | None, tuple[str, ...]]:
    """A graph from a spec or a compiled graph file, its store, the CPUs to use, the searches that come first."""
    if spec.suffix == ".json":
        return read_graph(spec), (store or Path(DEFAULT_STORE)).absolute(), None, ()
    compiled, folder = _compile(spec, store)
    return compiled.graph, folder, load_spec(spec).spec.execution.cpus, compiled.pending


def _runner(graph: TaskGraph, folder: Path) -> list[str]:
    """Write the graph into its run's folder; the command that runs it."""
    if importlib.util.find_spec("ray") is None:
        raise BoomspecError("what runs a graph is not installed here", hint="pip install 'boomspec[run]'")
    store = Store(folder)
    store.check_writable()
    run_folder = store.run_folder(graph.name, graph.id)
    run_folder.mkdir(parents=True, exist_ok=True)
    path = run_folder / "graph.json"
    graph.write(path)
    return [sys.executable, "-P", "-m", "runners", str(path), "--store", str(folder)]


def _wait(command: list[str]) -> int:
    """Run a command to its end; an interrupt is the command's to handle."""
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    main()
