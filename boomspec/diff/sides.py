"""Load the two inputs of a comparison: spec, spec at a git revision, graph file or run.

    specs/x.yaml             a spec; specs/x.yaml#label one experiment of it
    HEAD~2:specs/x.yaml      a spec at a git revision, with what it extends; what it reads is what lies here now
    graph.json               a compiled graph, or a plan that was saved
    <store>/runs/x-1234abcd  a run, by its folder or, in the store of --store, by its name; it has results

A spec that is right but cannot be compiled here (its files are gone, the hub gives no answer) is still a side: what it
says can be compared.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boomspec.compile.compiler import Compiled, compile_experiments, search_results_from
from boomspec.compile.resolved import resolve
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Experiment, TaskGraph
from boomspec.core.graph_file import read_graph
from boomspec.diff.git import Revision, revision
from boomspec.plan.plan import is_plan, read_plan
from boomspec.plan.run import GRAPH, run_folder, store_of
from boomspec.spec.document import Document, parse_document, read_document
from boomspec.spec.experiments import load_experiments
from boomspec.spec.spec_file import SpecFile
from boomspec.store import FolderStore, Store, Where, open_store, store_of_run, usual_store


@dataclass(frozen=True)
class ComparedInput:
    """One side: its experiments, and what is known of them."""

    named: str
    experiments: tuple[Experiment, ...]
    store: Store  # where its artifacts are, or would be
    compiled: Compiled | None = None  # None where it cannot be compiled here: `problem` says why
    is_run: bool = False  # so that it has results
    problem: str | None = None
    note: str | None = None

    @property
    def graph(self) -> TaskGraph | None:
        return None if self.compiled is None else self.compiled.graph

    def to_json(self) -> dict[str, Any]:
        labels = [experiment.label for experiment in self.experiments]
        known = {"run": self.is_run, "compiled": self.compiled is not None, "problem": self.problem, "note": self.note}
        return {"named": self.named, "experiments": labels, **known}


def both(old: str, new: str, store: Where | None = None) -> tuple[ComparedInput, ComparedInput]:
    """Read two sides. Where the first cannot be compiled the other is not: a silent hub takes its time."""
    first = given(old, store)
    second = given(new, store, refused=None if first.graph is not None else "the other side cannot")
    if not any(side.compiled is None or side.compiled.files for side in (first, second)):
        second = _compiled_again(second)  # so that fields can be changed one by one
    return first, second


def given(text: str, store: Where | None = None, *, refused: str | None = None) -> ComparedInput:
    """Read one side. Raises BoomspecError where it cannot be read. `refused`: why a spec is not compiled."""
    named, label = text, None
    if "#" in text and not (Path(text).exists() or Path(text.partition(":")[2]).is_file()):
        named, _, label = text.rpartition("#")
    path = Path(named)
    path = run_folder(path, None if store is None else open_store(store)) or path
    if path.is_dir() or (path.suffix == ".json" and path.exists()):
        side = _compiled(path, store)
        if label is None:
            return side
        assert side.graph is not None
        graph = side.graph.only(label, named=side.named)
        return replace(side, named=f"{side.named}#{label}", experiments=graph.experiments, compiled=Compiled(graph, {}))
    if ":" in named and not path.exists():
        name, _, inside = named.partition(":")
        files, note = _at_revision(revision(name), inside, label)
        return replace(spec_given(text, files, store, refused=refused), note=note)
    return spec_given(text, load_experiments(text), store, refused=refused)


def spec_given(
    named: str, files: Sequence[SpecFile], store: Where | None = None, *, refused: str | None = None
) -> ComparedInput:
    """A spec as a side: compiled where that can be done here. `refused`: why it is not even tried."""
    folder = store_of(files[0], store)
    try:
        if refused is not None:
            raise BoomspecError(refused)
        compiled = compile_experiments(files, search_results_from(folder))
    except BoomspecError as error:
        plain = tuple(Experiment(f.label, f.axes, {}, resolve(f.spec).to_json()) for f in files)
        return ComparedInput(named, plain, folder, problem=error.message)
    return ComparedInput(named, compiled.graph.experiments, folder, compiled)


def _at_revision(found: Revision, inside: str, label: str | None) -> tuple[tuple[SpecFile, ...], str | None]:
    """The experiments of a spec at a revision, and what has to be known of them."""
    here = os.path.relpath(found.find(inside))
    try:
        files = load_experiments(here if label is None else f"{here}#{label}", read=found.document)
    except BoomspecError as error:
        raise BoomspecError(f"at revision {found.name}: {error.message}", hint=error.hint) from error
    reads_files = any(
        any(
            text.files or (text.held_out and text.held_out.files)
            for text in (spec.data.texts if spec.data else {}).values()
        )
        or (spec.evaluate is not None and spec.evaluate.tasks_folder)
        for spec in (file.spec for file in files)
    )
    return files, "the files that it reads are those that lie here now" if reads_files else None


def _compiled(path: Path, store: Where | None) -> ComparedInput:
    """The folder of a run, a saved plan or a compiled graph as a side."""
    if path.is_dir():
        if not (path / GRAPH).is_file():
            runs = [path / "runs" / run.name for run in FolderStore(path).run_folders()]
            hint = f"name a run of it: {', '.join(map(str, runs[:3]))}" if runs else None
            raise BoomspecError(f"{path}: holds no {GRAPH}, so it is not the folder of a run", hint=hint)
        graph = read_graph(path / GRAPH)
        found = store_of_run(path) if store is None else open_store(store)
        return ComparedInput(found.run_address(path), graph.experiments, found, Compiled(graph, {}), is_run=True)
    if is_plan(path):
        plan = read_plan(path)
        graph, store = plan.graph, plan.store
    else:
        graph = read_graph(path)
    return ComparedInput(str(path), graph.experiments, open_store(store or usual_store()), Compiled(graph, {}))


def _compiled_again(side: ComparedInput) -> ComparedInput:
    """A side of a graph file with the spec in it, where the files that it reads lie here, unchanged."""
    assert side.graph is not None
    graph, places = side.graph, [Path.cwd()]
    for source in graph.sources.values():
        for path in [*source.location.get("files", ())[:1], *filter(None, [source.location.get("folder")])]:
            places += list(Path(path).parents)[:3]
    for place in dict.fromkeys(folder / f"{graph.name}.yaml" for folder in places) if not graph.reads_hub else ():

        def read(wanted: Path, place: Path = place) -> Document:
            return parse_document(graph.spec, place) if wanted == place else read_document(wanted)

        try:
            compiled = compile_experiments(load_experiments(place, read=read), search_results_from(side.store))
        except (BoomspecError, OSError):
            continue
        if graph.nodes.keys() <= compiled.graph.nodes.keys():
            return replace(side, compiled=replace(compiled, graph=graph))
    return side
