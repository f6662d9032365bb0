"""Runs that have been made: their graph, their store, and whether the models of any size are there.

A run is named by its spec, its compiled graph, or its folder. No weights are read here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from boomspec.compile import answers_of, compile_spec
from boomspec.errors import BoomspecError
from boomspec.graph import TaskGraph, read_graph
from boomspec.sizes import Lineage, Member
from boomspec.sources import resolve_path
from boomspec.spec import SpecFile, load_spec
from boomspec.store import Store

DEFAULT_STORE = "boomspec-store"
GRAPH = "graph.json"


@dataclass(frozen=True)
class Run:
    """A compiled graph, the store that holds what it made, and how the person named it."""

    graph: TaskGraph
    store: Store
    named: Path

    def lineage(self) -> Lineage:
        """The family. Raises BoomspecError where its layers are still to be searched for."""
        if self.graph.family is None:
            raise self._unfinished("its layers or their order are still to be searched for")
        return self.graph.family

    def member(self, size: str) -> Member:
        """The member that answers a size. Raises BoomspecError unless what it is made of is there and whole."""
        member = self.lineage().pick(size)
        self.check_made({"t", *(layer[0] for layer in member.plan)})  # config and tokenizer are the teacher's
        return member

    def every(self) -> tuple[Member, ...]:
        """All members, once teacher and student are there and whole; else raises BoomspecError."""
        self.check_made({"t", "s"})
        return self.lineage().members

    def check_made(self, owners: set[str]) -> None:
        """Raise BoomspecError unless teacher ("t") and student ("s") are there and whole."""
        lineage = self.lineage()
        for owner in sorted(owners, reverse=True):
            task = lineage.teacher if owner == "t" else lineage.student
            if task not in self.graph.nodes:
                continue  # it is not made by the run; the one who reads it looks for it
            node = self.graph.nodes[task]
            if (damage := self.store.damage(node.task.kind, task)) is not None:
                raise BoomspecError(f"{self.named}: '{node.name}' is damaged: {damage}", hint="run it again")
            if not self.store.has(node.task.kind, task):
                raise self._unfinished(f"'{node.name}' is not in the store {self.store.root}")

    def _unfinished(self, reason: str) -> BoomspecError:
        spec = "SPEC" if self.named.is_dir() else self.named
        return BoomspecError(f"{self.named}: this run has not finished: {reason}", hint=f"boomspec run {spec}")


def open_run(run: str | os.PathLike[str], store: str | os.PathLike[str] | None = None) -> Run:
    """The run of a spec, of a graph file, or of a folder in `<store>/runs/`. Raises BoomspecError if it is none."""
    path, root = Path(run), None if store is None else Path(store)
    if path.is_dir():
        if not (path / GRAPH).is_file():
            raise BoomspecError(f"{path}: holds no {GRAPH}, so it is not the folder of a run")
        return Run(read_graph(path / GRAPH), Store(root or path.resolve().parents[1]), path)
    if path.suffix == ".json":
        return Run(read_graph(path), Store(root or DEFAULT_STORE), path)
    file = load_spec(path)
    found = Store(store_folder(file, root))
    return Run(compile_spec(file, answers_of(found)).graph, found, path)


def store_folder(file: SpecFile, store: Path | None) -> Path:
    """The store that was asked for, else the spec's own, else the default one here."""
    if store is not None:
        return store.absolute()
    named = file.spec.execution.store
    return resolve_path(file, named) if named else Path(DEFAULT_STORE).absolute()
