"""What commands share: compiling a spec, starting programs of the runners."""

import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from boomspec.commands.options import warn
from boomspec.compile.compiler import Compiled, compile_experiments, search_results_from
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import TaskGraph
from boomspec.core.machine import install_line
from boomspec.plan.locking import RunLock, required_lock
from boomspec.plan.model_checks import check_models
from boomspec.plan.run import GRAPH, check_runners, open_run, run_folder, store_of
from boomspec.spec.experiments import load_experiments, split_address
from boomspec.spec.spec_file import NO_PINS, Pins
from boomspec.store import Store, Where, open_store


def run_lock(spec: Path, *, locked: bool, ignore_packages: bool) -> RunLock | None:
    """The lock that a run keeps to, if any. Raises BoomspecError for options that do not go together, or no lock."""
    if ignore_packages and not locked:
        raise BoomspecError("--ignore-packages goes with --locked", hint="without a lock no versions are compared")
    return RunLock(*required_lock(spec), packages=not ignore_packages) if locked else None


def compiled_with(
    spec: Path, store: Where | None, pins: Pins = NO_PINS, failed: Collection[str] = ()
) -> tuple[Compiled, Store]:
    """A spec compiled with what the searches in its store have found, and that store."""
    files = tuple(replace(file, pins=pins) for file in load_experiments(spec))
    found = store_of(files[0], store)
    return compile_experiments(files, search_results_from(found), failed=failed), found


def runnable(
    spec: Path, store: Where | None, pins: Pins = NO_PINS, failed: Collection[str] = ()
) -> tuple[TaskGraph, Store, int | None, tuple[str, ...]]:
    """The graph of a spec, a file or a run's folder, its store, the CPUs to use, the searches that come first.

    failed: searches; experiments that wait for one of them are left out, where others remain.
    """
    path, _ = split_address(spec)
    if path.suffix == ".json" or run_folder(path, None if store is None else open_store(store)) is not None:
        run = open_run(spec, store)
        return run.graph, run.store, None, ()
    compiled, found = compiled_with(spec, store, pins, failed)
    warn(check_models(compiled, found))
    return compiled.graph, found, compiled.files[0].spec.execution.cpus, compiled.pending


def unchecked(graph: TaskGraph) -> Iterator[str]:
    """What a graph was compiled without."""
    if graph.unknown:
        yield f"lm-eval is not installed here: its tasks are not checked, and cannot be run ({install_line('run')})"


def runner(graph: TaskGraph, store: Store, **options: Any) -> list[str]:
    """Write the graph into its run's folder; the command that runs it."""
    graph.check_known()
    check_runners()
    store.check_writable()
    path = store.run_folder(graph.name, graph.id) / GRAPH
    graph.write(path)
    return module_command("runners", str(path), store=store.address, **options)


def wait_for(module: str, graph: TaskGraph, **options: Any) -> int:
    """Run a module of the runners on a graph in a temporary file. Returns its exit code.

    Not on the graph in the run's folder: a store may be read-only, and another spec's run may have made the models.
    """
    with tempfile.TemporaryDirectory(prefix="boomspec-") as temporary:
        path = Path(temporary, GRAPH)
        graph.write(path)
        return wait(module_command(module, str(path), **options))


def module_command(module: str, *arguments: str, **options: Any) -> list[str]:
    """The command that runs a module in this Python, without what lies in the current folder.

    options: by names without dashes. None, False and "" leave one out, True is a flag, a tuple repeats it.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        given = [one for one in (value if isinstance(value, tuple) else (value,)) if one not in (None, "")]
        command += [option if one is True else f"{option}={one}" for one in given if one is not False]
    return command


def runner_output(module: str, *arguments: str) -> str:
    """What a module of the runners prints. Raises BoomspecError, with the end of its complaint, where it fails."""
    done = subprocess.run(module_command(module, *arguments), capture_output=True, text=True)
    if done.returncode != 0:
        raise BoomspecError(f"{module} failed: {(done.stderr.strip().splitlines() or ['it printed nothing'])[-1]}")
    return done.stdout


def searches(graph: TaskGraph, pending: Iterable[str]) -> set[str]:
    """The ids of searches that are named so."""
    names = set(pending)
    return {node.id for node in graph.nodes.values() if node.name in names}


def say_left_out(spec: Path, graph: TaskGraph) -> None:
    """Say on stderr which experiments of a spec a graph does not have."""
    labels = dict.fromkeys(file.label for file in load_experiments(spec)) if spec.suffix != ".json" else {}
    left_out = [label for label in labels if label not in {experiment.label for experiment in graph.experiments}]
    if left_out and graph.experiments:
        click.echo(f"left out, for what its search needs, or the search, has failed: {', '.join(left_out)}", err=True)


def wait(command: list[str]) -> int:
    """Run a command to its end; an interrupt is the command's to handle. Returns its exit code."""
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
