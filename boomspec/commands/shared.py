"""What several commands take and do: their common arguments, compiling a spec, starting the runners."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from boomspec.compile import Compiled, answers_of
from boomspec.compiling.pins import NO_PINS, Pins
from boomspec.compiling.sets import compile_experiments
from boomspec.errors import BoomspecError
from boomspec.graph import TaskGraph
from boomspec.graph_file import read_graph
from boomspec.reading.experiments import load_experiments, load_spec
from boomspec.runs import DEFAULT_STORE, store_folder
from boomspec.store import Store

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


_Function = TypeVar("_Function", bound=Callable[..., Any])


def _folder(_context: click.Context, _option: click.Parameter, value: str | None) -> Path | None:
    if value is not None and "://" in value:
        raise BoomspecError(f"only folders are supported as a store, not '{value}'", hint="give a path")
    return None if value is None else Path(value)


def offered(what: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completions by a function of `boomspec.completing`, which is imported only while a person types."""

    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found: list[CompletionItem] = getattr(importlib.import_module("boomspec.completing"), what)(incomplete)
        return found

    return complete


spec_argument = click.argument("spec", type=click.Path(path_type=Path), shell_complete=offered("specs"))


def _store(default: str) -> Callable[[_Function], _Function]:
    return click.option(
        "--store",
        metavar="FOLDER",
        shell_complete=offered("folders"),
        callback=_folder,
        help=f"Folder of the artifacts. Default: {default}.",
    )


store_option = _store(f"execution.store of the spec, else ./{DEFAULT_STORE}")
specless_store_option = _store(f"./{DEFAULT_STORE}")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def compiled_with(spec: Path, store: Path | None, pins: Pins = NO_PINS) -> tuple[Compiled, Path]:
    """A spec compiled with what the searches in its store have found, and the folder of that store."""
    files = tuple(replace(file, pins=pins) for file in load_experiments(spec))
    folder = store_folder(files[0], store)
    return compile_experiments(files, answers_of(Store(folder))), folder


def runnable(
    spec: Path, store: Path | None, pins: Pins = NO_PINS
) -> tuple[TaskGraph, Path, int | None, tuple[str, ...]]:
    """A graph from a spec or a compiled graph file, its store, the CPUs to use, the searches that come first."""
    if spec.suffix == ".json":
        return read_graph(spec), (store or Path(DEFAULT_STORE)).absolute(), None, ()
    compiled, folder = compiled_with(spec, store, pins)
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


def runner_output(module: str, *arguments: str) -> str:
    """What a module of the runners prints. Raises BoomspecError, with the end of its complaint, where it fails."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BoomspecError(f"{module} failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return done.stdout


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
