"""Open a run by its spec, its compiled graph or its folder, and find the models of its sizes. No weights are read."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from boomspec.compile.compiler import compile_experiments, search_results_from
from boomspec.compile.places import path_text, resolve_path
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import TaskGraph, listed
from boomspec.core.graph_file import read_graph
from boomspec.core.layers import STUDENT, TEACHER, Owner
from boomspec.core.machine import install_line
from boomspec.core.sizes import Lineage, Member
from boomspec.core.tasks import Comparison, Report
from boomspec.spec.experiments import load_experiments, split_address
from boomspec.spec.spec_file import SpecFile
from boomspec.store import (
    Store,
    check_spelling,
    check_url,
    is_url,
    open_store,
    store_of_run,
    usual_store,
)  # fmt: skip

GRAPH = "graph.json"
_FILES = (".yaml", ".yml", ".json")  # of specs and graphs: no run is called so


def check_runners(*needed: str) -> None:
    """Raise BoomspecError where only the compiler is installed. `needed`: packages; by default what runs a graph."""
    if any(importlib.util.find_spec(package) is None for package in needed or ("ray",)):
        raise BoomspecError("what runs a graph is not installed here", hint=install_line("run"))


@dataclass(frozen=True)
class Run:
    """A compiled graph, the store of its artifacts, and the name that the person gave."""

    graph: TaskGraph
    store: Store
    named: Path
    whole: TaskGraph | None = None  # that `graph` is one experiment of; None: it is all of it

    def lineage(self) -> Lineage:
        """The family. Raises BoomspecError where there are several, or its layers are still to be searched for."""
        if len(labels := [experiment.label for experiment in self.graph.experiments]) > 1:
            message = f"{self.named}: which of its experiments? name one: {self.named}#{labels[0]}"
            raise BoomspecError(message, hint=listed(labels))
        if self.graph.family is None:
            raise self._unfinished("its layers or their order are still to be searched for")
        return self.graph.family

    def member(self, size: str) -> Member:
        """The member that answers a size. Raises BoomspecError unless the models that it needs are there and whole."""
        member = self.lineage().pick(size)
        self.check_made({TEACHER, *(layer.owner for layer in member.plan)})  # config and tokenizer are the teacher's
        return member

    def every(self) -> tuple[Member, ...]:
        """All members, once teacher and student are there and whole; else raises BoomspecError."""
        self.check_made({TEACHER, STUDENT})
        return self.lineage().members

    def check_made(self, owners: set[Owner]) -> None:
        lineage = self.lineage()
        for owner in sorted(owners, reverse=True):
            task = lineage.teacher if owner == TEACHER else lineage.student
            if (node := self.graph.nodes.get(task)) is None:
                continue  # it is not made by the run; the one who reads it looks for it
            if (damage := self.store.damage(node.task.kind, task)) is not None:
                raise BoomspecError(f"{self.named}: '{node.name}' is damaged: {damage}", hint="run it again")
            if not self.store.has(node.task.kind, task):
                raise self._unfinished(f"'{node.name}' is not in the store {self.store.address}")

    def numbers(self) -> tuple[Report, dict[str, str]]:
        """What is measured of its only experiment: the cells of a report, and by their inputs the tasks that give them.

        Raises BoomspecError where that is not known yet, or there are several experiments.
        """
        self.lineage()
        label = self.graph.experiments[0].label
        for node in (self.whole or self.graph).nodes.values():
            match node.task.record:
                case Report() as report:
                    return report.model_copy(update={"trainings": {}, "searches": {}}), node.task.inputs
                case Comparison(experiments=experiments):  # in the place of the reports of its experiments
                    own = next(one for one in experiments if one.label == label)
                    cells = (*own.cells, *(own.deployed or ()))
                    inputs = {cell.input: node.task.inputs[f"{label}/{cell.input}"] for cell in cells}
                    return Report(cells=own.cells, trainings={}, deployed=own.deployed), inputs
        raise BoomspecError(f"{self.named}: it measures nothing")

    def _unfinished(self, reason: str) -> BoomspecError:
        spec = "SPEC" if self.named.is_dir() else self.named
        return BoomspecError(f"{self.named}: this run has not finished: {reason}", hint=f"boomspec run {spec}")


def open_run(run: str | os.PathLike[str], store: str | os.PathLike[str] | None = None) -> Run:
    """The run of a spec, of a graph file, or of a folder in `<store>/runs/`. Raises BoomspecError if it is none.

    A label behind '#' names one of its experiments. A run's folder may be named alone, "quickstart-1a2b3c4d", or
    by the start of that, "quickstart", where only one starts so.
    """
    path, label = split_address(run)
    where = None if store is None else open_store(store)
    path = run_folder(path, where) or path
    if (is_folder := path.is_dir()) or path.suffix == ".json":
        if is_folder and not (path / GRAPH).is_file():
            raise BoomspecError(f"{path}: holds no {GRAPH}, so it is not the folder of a run")
        whole = read_graph(path / GRAPH if is_folder else path)
        graph = whole if label is None else whole.only(label, named=path)
        return Run(graph, where or (store_of_run(path) if is_folder else open_store(usual_store())), path, whole)
    files = load_experiments(run)
    found = store_of(files[0], store)
    return Run(compile_experiments(files, search_results_from(found)).graph, found, Path(run))


def run_folder(path: Path, store: Store | None) -> Path | None:
    """The folder of a run: the path itself, or one of the store by its whole name, else by the start of its name.

    None for anything else. Raises BoomspecError where several names start so.
    """
    if path.is_dir():
        return path
    if len(path.parts) != 1 or path.exists() or path.suffix in _FILES:
        return None
    place = store or open_store(usual_store())
    if (exact := place.run_called(path.name)) is not None:
        return exact
    names = [folder.name for folder in place.run_folders(beginning=path.name)]
    if len(names) > 1:
        raise BoomspecError(f"{len(names)} runs are called {path.name}...", hint=f"one of {', '.join(names[:8])}")
    return place.run_called(names[0]) if names else None


def store_of(file: SpecFile, store: str | os.PathLike[str] | None) -> Store:
    """The store that was asked for, else the spec's own, else the environment's, else the default one here."""
    if store is not None:
        return open_store(store)
    if (named := file.spec.execution.store) is None:
        return open_store(usual_store())
    place = ("execution", "store")
    named = path_text(file, place, named)
    try:
        check_spelling(named)  # where a variable has given it, the language could not
        if is_url(named):
            check_url(named)
    except BoomspecError as error:
        raise file.error(file.problem(place, error.message, error.hint)) from error
    return open_store(named if is_url(named) else resolve_path(file, place, named))
