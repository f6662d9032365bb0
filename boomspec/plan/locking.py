"""Resolve names to revisions and digests, write them as a lock, and report what has changed.

    graph + store (+ hub) --lock_of--> Lock
    spec + its lock --lock_now--> locks       what `boomspec lock` writes and `--check` compares
    graph + lock --RunLock.hold--> graph      what `boomspec run --locked` runs; raises where something has drifted

The hub is asked what a name stands for NOW; where it gives no answer, the local cache and then the lock are taken. A
locked run takes commits from the lock, whatever has happened to a branch since. The digests of the rows come from the
`tokenize` artifacts in the store; they are null until these are there.
"""

import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from boomspec.compile.compiler import compile_experiments, search_results_from
from boomspec.compile.lm_eval.tasks import read_task, stock_folder
from boomspec.compile.records import evaluations
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import CODE, Source, TaskGraph
from boomspec.core.machine import installed
from boomspec.core.task_data import DATA
from boomspec.core.tasks import Evaluate, LmEval, Tokenize
from boomspec.models.hub import UnreachableError, cached_checksums, cached_dataset, pinned_dataset, stated_checksums
from boomspec.plan.lock import Lock, LockedModel, LockedTask, LockedText, completed, drifts, lock_path, read_lock
from boomspec.plan.run import store_of
from boomspec.spec.experiments import load_experiments, split_address
from boomspec.spec.spec_file import Pins, request
from boomspec.store import Store, Where
from boomspec.store.sources import readable_source

LOCK = "lock.json"  # in the folder of a run
ROWS = "rows"  # in meta.json of a `tokenize` artifact


@dataclass
class Hub:
    """Asks the hub until it gives no answer; `unreachable` is why. Never where it is `offline`."""

    offline: bool = False
    unreachable: str | None = None

    def ask(self, question: Callable[[], Any]) -> Any:
        """The answer; None where there is none, or where the hub refuses one: for a gated or removed repository."""
        if self.offline or self.unreachable is not None:
            return None
        with suppress(BoomspecError):
            try:
                return question()
            except UnreachableError as error:
                self.unreachable = error.message
        return None


def lock_of(graph: TaskGraph, store: Store, hub: Hub, *, more: Iterable[tuple[LmEval, Source]] = ()) -> Lock:
    """The lock of a graph as things stand. `more`: measures that a graph which waits for a search does not have yet."""
    packages = {"python": platform.python_version(), **installed()}
    rows: dict[str, Any] = {task: _rows(store, task) for task in _tokenize(graph)}
    lock = Lock(spec=graph.name, models={}, datasets={}, texts={}, tasks={}, rows=rows, packages=packages)
    entries = _Entries(hub, lock)
    for source in graph.sources.values():
        match source.kind:
            case "model" | "tokenizer":
                entries.add_model(source)
            case "hub_dataset":
                name = request(source.identity["hub"], source.location.get("asked"))
                lock.datasets[name] = source.identity["revision"]
            case "text" | "held_out_text":
                entries.add_text(source)
    measures = {}
    for node in graph.nodes.values():
        record = node.task.record
        if isinstance(record, Evaluate) and isinstance(record.measure, LmEval):
            measures[record.measure.task] = graph.sources[node.task.inputs["tasks"]]
    for task, source in {**measures, **{measure.task: source for measure, source in more}}.items():
        entries.add_task(task, readable_source(store, source))
    return Lock.model_validate(lock.model_dump())  # what was filled in is checked, too


def record_lock(graph: TaskGraph, store: Store, folder: Path, *, used: Path | None = None) -> None:
    """Write the lock of a run into its folder, from its graph and the installed packages, without the network.

    used: the lock that the run keeps to; what is not known here is taken from it.
    """
    lock = lock_of(graph, store, Hub(offline=True))
    (completed(lock, read_lock(used)) if used is not None else lock).write(folder / LOCK)


def lock_now(spec: Path, store: Where | None = None) -> tuple[Lock, Lock | None, str | None]:
    """The lock of a whole spec file as things stand, the lock beside it, and why the hub gave no answer, if so.

    Raises BoomspecError for a lock that cannot be read or is of another spec.
    """
    path, label = split_address(spec)
    if label is not None:
        raise BoomspecError(f"a lock is of a whole file, not of '{label}' alone", hint=f"boomspec lock {path}")
    files = load_experiments(path)
    place, name = lock_path(path), files[0].spec.name
    locked = read_lock(place, spec=name) if place.exists() else None
    if locked is not None:
        files = tuple(replace(file, pins=locked.pins(only_offline=True)) for file in files)
    opened = store_of(files[0], store)
    compiled = compile_experiments(files, search_results_from(opened))
    waiting = [evaluation for file in files for evaluation in evaluations(file)] if compiled.pending else []
    measures = [(record.measure, source) for _, record, source in waiting]
    more = [(measure, source) for measure, source in measures if isinstance(measure, LmEval) and source is not None]
    hub = Hub()
    return lock_of(compiled.graph, opened, hub, more=more), locked, hub.unreachable


def required_lock(spec: Path) -> tuple[Path, Lock]:
    """The path and the lock of a spec, or of one of its experiments. Raises BoomspecError where there is none."""
    if spec.suffix == ".json" or spec.is_dir():
        message = f"{spec}: is compiled: what its names stand for is settled in it already"
        raise BoomspecError(message, hint="--locked takes a spec")
    path, label = split_address(spec)
    place = lock_path(path)
    if not place.exists():
        raise BoomspecError(f"{place}: there is no lock yet", hint=f"boomspec lock {path}")
    return place, read_lock(place, spec=None if label is not None else load_experiments(path)[0].spec.name)


@dataclass(frozen=True)
class RunLock:
    """The lock that a run keeps to."""

    place: Path
    lock: Lock
    packages: bool  # refuse other versions of packages, too

    @property
    def pins(self) -> Pins:
        return self.lock.pins()

    def hold(self, graph: TaskGraph, store: Store) -> TaskGraph:
        """The graph, with the rows that it has to read. Raises BoomspecError where something is not as locked."""
        if drifted := drifts(self.lock, lock_of(graph, store, Hub()), partial=True, packages=self.packages):
            rows = "\n".join(f"  {line}" for line in drift_lines(drifted))
            hint = "bring back what was locked, or take what is there now: boomspec lock SPEC"
            raise BoomspecError(f"{self.place}: what was locked has drifted, so nothing was run\n{rows}", hint=hint)
        nodes = dict(graph.nodes)
        for task in _tokenize(graph):  # these fail unless they read the rows that the lock knows
            if (known := self.lock.rows.get(task)) is not None:
                execution = replace(nodes[task].execution, rows=known.model_dump(mode="json"))
                nodes[task] = replace(nodes[task], execution=execution)
        return replace(graph, nodes=nodes)


def drift_lines(found: Sequence[object], *, most: int = 30) -> list[str]:
    """Differences for people, one a line, the first ones of many."""
    lines = [str(difference) for difference in found[:most]]
    return lines + ([f"... and {len(found) - most} more (all of them with --json)"] if len(found) > most else [])


@dataclass
class _Entries:
    """Fills the sections of a lock. Two things of one name get names of their own: "texts", "texts (2)"."""

    hub: Hub
    lock: Lock
    _owners: dict[tuple[str, str], Any] = field(default_factory=dict)

    def add_model(self, source: Source) -> None:
        identity, location = source.identity, source.location
        if "hub" in identity:
            commit = identity["revision"]
            name = self._name("models", request(identity["hub"], location.get("asked")), commit)
            if name not in self.lock.models:
                stated = self.hub.ask(lambda: stated_checksums(identity["hub"], commit)) or {}
                files = {**stated, **cached_checksums(identity["hub"], commit)}
                self.lock.models[name] = LockedModel(revision=commit, files=files)
            self.lock.models[name].files.update(_checksums(identity.get(CODE, {}).items()))
            return
        folder = Path(location["folder"])
        name = self._name("models", location.get("name", folder.name), folder)
        files = _checksums({**identity["sha256"], **identity.get(CODE, {})}.items())
        self.lock.models.setdefault(name, LockedModel(files={})).files.update(files)

    def add_text(self, source: Source) -> None:
        location = source.location
        names = location.get("names", [Path(place).name for place in location["files"]])
        digests = [file["sha256"] for file in source.identity["files"]]
        name = self._name("texts", location.get("name", "text"), source.id)
        files = _checksums(zip(names, digests, strict=True))
        self.lock.texts[name] = LockedText(format=source.identity["format"], source=source.id, files=files)

    def add_task(self, task: str, source: Source) -> None:
        stock = "lm_eval" in source.identity
        folder = stock_folder() if stock else Path(source.location["folder"])
        found = read_task(task, folder)
        named: list[tuple[str, str]] = []  # files outside of its folder: their names without their places, and digests
        for place, digests in zip(source.location.get(DATA, ()), source.identity.get(DATA, ()), strict=True):
            name = Path(place["path"]).name
            named += [(name if place["is_file"] else f"{name}/{file}", sha256) for file, sha256 in digests.items()]
        self.lock.tasks[task] = LockedTask(
            origin=f"lm_eval {source.identity['lm_eval']}" if stock else source.location.get("name", folder.name),
            sha256=found.digest(folder) if stock else source.identity["folder"],
            versions=found.versions,
            datasets=found.datasets,
            data=_checksums(named),
        )
        for dataset, revision in found.datasets.items():
            name = request(dataset, revision)
            if name not in self.lock.datasets:
                commit = self.hub.ask(partial(pinned_dataset, dataset, revision))
                self.lock.datasets[name] = commit or cached_dataset(dataset, revision)

    def _name(self, section: str, wanted: str, owner: Any) -> str:
        name, count = wanted, 1
        while self._owners.setdefault((section, name), owner) != owner:
            count += 1
            name = f"{wanted} ({count})"
        return name


def _tokenize(graph: TaskGraph) -> list[str]:
    return [node.id for node in graph.nodes.values() if node.task.kind == Tokenize.kind]


def _rows(store: Store, task: str) -> Any:
    """The rows that a `tokenize` artifact was made from; None where it is not there or does not say."""
    kind = Tokenize.kind
    if not store.is_whole(kind, task):
        return None
    return json.loads(store.read(kind, task, "meta.json")).get(ROWS)


def _checksums(digests: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By the names of files; the second file of a name is called "name (2)"."""
    counts, found = Counter[str](), dict[str, str]()
    for name, sha256 in digests:
        counts[name] += 1
        found[name if counts[name] == 1 else f"{name} ({counts[name]})"] = f"sha256:{sha256}"
    return found
