"""What several commands take and do: their common arguments, compiling a spec, starting the runners."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import click

from boomspec.compile import Compiled, answers_of, compile_spec
from boomspec.errors import BoomspecError
from boomspec.graph import TaskGraph, read_graph
from boomspec.runs import DEFAULT_STORE, store_folder
from boomspec.spec import load_spec
from boomspec.store import Store


def _folder(_context: click.Context, _option: click.Parameter, value: str | None) -> Path | None:
    if value is not None and "://" in value:
        raise BoomspecError(f"only folders are supported as a store, not '{value}'", hint="give a path")
    return None if value is None else Path(value)


spec_argument = click.argument("spec", type=click.Path(path_type=Path))
store_option = click.option(
    "--store",
    metavar="FOLDER",
    callback=_folder,
    help=f"Folder of the artifacts. Default: execution.store of the spec, else ./{DEFAULT_STORE}.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def compiled_with(spec: Path, store: Path | None) -> tuple[Compiled, Path]:
    """A spec compiled with what the searches in its store have found, and the folder of that store."""
    file = load_spec(spec)
    folder = store_folder(file, store)
    return compile_spec(file, answers_of(Store(folder))), folder


def runnable(spec: Path, store: Path | None) -> tuple[TaskGraph, Path, int | None, tuple[str, ...]]:
    """A graph from a spec or a compiled graph file, its store, the CPUs to use, the searches that come first."""
    if spec.suffix == ".json":
        return read_graph(spec), (store or Path(DEFAULT_STORE)).absolute(), None, ()
    compiled, folder = compiled_with(spec, store)
    return compiled.graph, folder, load_spec(spec).spec.execution.cpus, compiled.pending


def runner(graph: TaskGraph, folder: Path) -> list[str]:
    """Write the graph into its run's folder; the command that runs it."""
    check_runners()
    store = Store(folder)
    store.check_writable()
    run_folder = store.run_folder(graph.name, graph.id)
    run_folder.mkdir(parents=True, exist_ok=True)
    path = run_folder / "graph.json"
    graph.write(path)
    return [sys.executable, "-P", "-m", "runners", str(path), "--store", str(folder)]


def check_runners() -> None:
    """Raise BoomspecError where only the compiler is installed."""
    if importlib.util.find_spec("ray") is None:
        raise BoomspecError("what runs a graph is not installed here", hint="pip install 'boomspec[run]'")


def wait(command: list[str]) -> int:
    """Run a command to its end; an interrupt is the command's to handle. Returns its exit code."""
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
