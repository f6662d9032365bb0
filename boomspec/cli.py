"""The command line: each command parses, calls one function, prints.

Exit codes: 0 fine, 1 the run failed, 2 the spec or the call is wrong, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from boomspec import __version__
from boomspec.compile import Compiled, check_spec, compile_spec
from boomspec.errors import EXIT_RUN_FAILED, BoomspecError, SpecError
from boomspec.graph import TaskGraph, read_graph
from boomspec.plan import needed
from boomspec.show import mermaid, plan_json, print_family, print_plan
from boomspec.spec import SpecFile, load_spec
from boomspec.store import Store, write_atomically

DEFAULT_STORE = "boomspec-store"

_spec = click.argument("spec", type=click.Path(path_type=Path))
_store = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
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
        model = file.spec.teacher.model
        click.echo(f"layers and sizes are not checked: '{model}' is not on this machine (boomspec plan asks the hub)")


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
    print_family(compiled.family)
    print_plan(compiled.graph, result, folder)


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
    graph, folder, cpus = _runnable(spec, store)
    Store(folder).check_writable()
    run_folder = Store(folder).run_folder(graph.name, graph.id)
    run_folder.mkdir(parents=True, exist_ok=True)
    path = run_folder / "graph.json"
    graph.write(path)
    command = [sys.executable, "-m", "runners", str(path), "--store", str(folder)]
    command += ["--address", address] if address else []
    command += ["--cpus", str(cpus)] if cpus else []
    command += ["--verify"] * verify + ["--plain"] * plain
    # The runners replace this process: the compiler's room never imports theirs, and signals reach them.
    sys.stdout.flush()
    os.execv(sys.executable, command)


@main.command()
@_spec
@_store
@click.option("--open", "open_it", is_flag=True, help="Open the page in a browser.")
@_json
def report(spec: Path, store: Path | None, open_it: bool, as_json: bool) -> None:
    """Write the report of a spec from what its store holds now, and say where it is."""
    graph, folder, _ = _runnable(spec, store)
    run_folder = Store(folder).run_folder(graph.name, graph.id)
    if not run_folder.is_dir():
        raise BoomspecError(f"{spec}: not run yet with store {folder}", hint=f"boomspec run {spec}")
    path = run_folder / "graph.json"
    graph.write(path)
    command = [sys.executable, "-m", "runners", str(path), "--store", str(folder), "--report"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL if as_json else None)
    if done.returncode != 0:
        sys.exit(EXIT_RUN_FAILED)
    page = run_folder / "report" / "report.html"
    if as_json:
        click.echo(json.dumps({"report": str(page), "results": str(page.with_name("results.json"))}))
    if open_it:
        click.launch(str(page))


@main.command()
@_spec
@click.option("--format", "form", type=click.Choice(["json", "mermaid"]), default="json", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write a file instead.")
def graph(spec: Path, form: str, output: Path | None) -> None:
    """Print the compiled task graph."""
    compiled = compile_spec(load_spec(spec))
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
    return compile_spec(file), _store_folder(file, store)


def _runnable(spec: Path, store: Path | None) -> tuple[TaskGraph, Path, int | None]:
    """A graph from a spec, or from a compiled graph file (then the store must be named)."""
    if spec.suffix == ".json":
        return read_graph(spec), (store or Path(DEFAULT_STORE)).absolute(), None
    file = load_spec(spec)
    return compile_spec(file).graph, _store_folder(file, store), file.spec.execution.cpus


def _store_folder(file: SpecFile, store: Path | None) -> Path:
    if store is not None:
        return store.absolute()
    named = file.spec.execution.store
    return (file.folder / Path(named).expanduser()).resolve() if named else Path(DEFAULT_STORE).absolute()


if __name__ == "__main__":
    main()
