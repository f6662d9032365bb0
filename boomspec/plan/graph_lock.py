"""Makes the lock of a graph: what the names behind its sources stand for now.

    graph + store (+ hub) --lock_of--> Lock

The digest of the rows comes from the `tokenize` artifacts in the store; what has not been read yet is null. Nothing
here knows the spec language: a graph file can be locked, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval.index import stock_folder
from boomspec.compile.lm_eval.tasks import TaskDefinition, read_task
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import CODE, Source, TaskGraph
from boomspec.core.machine import installed, python
from boomspec.core.task_data import DATA
from boomspec.core.tasks import Evaluate, LmEval, Tokenize
from boomspec.models.hub import UnreachableError, cached_checksums, cached_dataset, pinned_dataset, stated_checksums
from boomspec.plan.lock import Lock, LockedModel, LockedStreams, LockedTask, LockedText, completed, read_lock
from boomspec.spec.spec_file import request
from boomspec.store import Store
from boomspec.store.sources import readable_source

LOCK = "lock.json"  # in the folder of a run
ROWS = "rows"  # in meta.json of a `tokenize` artifact
_META = "meta.json"


@dataclass
class Asked:
    """What the hub has said. Once it gives no answer it is not asked again; `silence` is why."""

    silence: str | None = None
    asks: bool = True

    def ask(self, question: Callable[[], Any]) -> Any:
        """The answer, or None where there is none to be had."""
        if not self.asks or self.silence is not None:
            return None
        try:
            return question()
        except UnreachableError as error:
            self.silence = error.message
        except BoomspecError:
            pass  # a refusal: a gated or removed repository says nothing
        return None


@dataclass
class _Entries:
    """The sections in the making. Two things of one name get names of their own: "texts", "texts (2)"."""

    models: dict[str, LockedModel] = field(default_factory=dict)
    datasets: dict[str, str | None] = field(default_factory=dict)
    texts: dict[str, LockedText] = field(default_factory=dict)
    tasks: dict[str, LockedTask] = field(default_factory=dict)
    owners: dict[tuple[str, str], Any] = field(default_factory=dict)

    def name(self, section: str, wanted: str, owner: Any) -> str:
        name, count = wanted, 1
        while self.owners.setdefault((section, name), owner) != owner:
            count += 1
            name = f"{wanted} ({count})"
        return name


def lock_of(graph: TaskGraph, store: Store, *, asked: Asked, more: Iterable[tuple[LmEval, Source]] = ()) -> Lock:
    """The lock of a graph as things stand. `asked`: to put questions to the hub, or `Asked(asks=False)`.

    `more`: measures that a graph which waits for a search does not have yet.
    """
    entries = _Entries()
    for source in graph.sources.values():
        match source.kind:
            case "model" | "tokenizer":
                _add_model(entries, source, asked)
            case "hub_dataset":
                name = request(source.identity["hub"], source.location.get("asked"))
                entries.datasets[name] = source.identity["revision"]
            case "text" | "held_out_text":
                _add_text(entries, source)
    for measure, source in {measure.task: (measure, source) for measure, source in (*_measures(graph), *more)}.values():
        _add_task(entries, measure.task, readable_source(store, source), asked)
    return Lock(
        spec=graph.name,
        models=entries.models,
        datasets=entries.datasets,
        texts=entries.texts,
        tasks=entries.tasks,
        rows={task: read_rows(store, task) for task in _tokenize(graph)},
        packages={"python": python(), **installed()},
    )


def record_lock(graph: TaskGraph, store: Store, folder: Path, *, used: Path | None = None) -> None:
    """Write the lock of a run into its folder: the names as they stand in its graph, and the packages installed here.

    No network: what is not known here is taken from the lock `used`, of a run that keeps to one.
    """
    lock = lock_of(graph, store, asked=Asked(asks=False))
    (completed(lock, read_lock(used)) if used is not None else lock).write(folder / LOCK)


def expecting(graph: TaskGraph, lock: Lock) -> TaskGraph:
    """The graph whose `tokenize` tasks fail unless they read the rows that the lock knows."""
    nodes = dict(graph.nodes)
    for task in _tokenize(graph):
        if (rows := lock.rows.get(task)) is not None:
            execution = replace(nodes[task].execution, rows=rows.model_dump(mode="json"))
            nodes[task] = replace(nodes[task], execution=execution)
    return replace(graph, nodes=nodes)


def read_rows(store: Store, task: str) -> LockedStreams | None:
    """What a `tokenize` artifact says of the rows that it was made from; None where it is not there or does not say."""
    kind = Tokenize.kind
    if not store.has(kind, task) or store.damage(kind, task) is not None:
        return None
    meta = json.loads(store.read(kind, task, _META))
    return None if ROWS not in meta else LockedStreams.model_validate(meta[ROWS])


def _tokenize(graph: TaskGraph) -> list[str]:
    return [node.id for node in graph.nodes.values() if node.task.kind == Tokenize.kind]


def _measures(graph: TaskGraph) -> Iterable[tuple[LmEval, Source]]:
    for node in graph.nodes.values():
        record = node.task.record
        if isinstance(record, Evaluate) and isinstance(record.measure, LmEval):
            yield record.measure, graph.sources[node.task.inputs["tasks"]]


def _add_model(entries: _Entries, source: Source, asked: Asked) -> None:
    identity, location = source.identity, source.location
    if "hub" in identity:
        name, commit = request(identity["hub"], location.get("asked")), identity["revision"]
        name = entries.name("models", name, commit)
        if name not in entries.models:
            stated = asked.ask(lambda: stated_checksums(identity["hub"], commit)) or {}
            files = {**stated, **cached_checksums(identity["hub"], commit)}
            entries.models[name] = LockedModel(revision=commit, files=files)
        entries.models[name].files.update(_checksums(identity.get(CODE, {})))
        return
    folder = Path(location["folder"])
    name = entries.name("models", location.get("name", folder.name), folder)
    known = entries.models[name].files if name in entries.models else {}
    files = {**identity["sha256"], **identity.get(CODE, {})}
    entries.models[name] = LockedModel(files={**known, **_checksums(files)})


def _add_text(entries: _Entries, source: Source) -> None:
    places = source.location["files"]
    names = _unique(source.location.get("names", [Path(place).name for place in places]))
    digests = [file["sha256"] for file in source.identity["files"]]
    name = entries.name("texts", source.location.get("name", "text"), source.id)
    files = _checksums(dict(zip(names, digests, strict=True)))
    entries.texts[name] = LockedText(format=source.identity["format"], source=source.id, files=files)


def _add_task(entries: _Entries, task: str, source: Source, asked: Asked) -> None:
    stock = "lm_eval" in source.identity
    folder = stock_folder() if stock else Path(source.location["folder"])
    found = read_task(task, folder)
    entries.tasks[task] = LockedTask(
        origin=f"lm_eval {source.identity['lm_eval']}" if stock else source.location.get("name", folder.name),
        sha256=found.digest(folder) if stock else source.identity["folder"],
        versions=found.versions,
        datasets=found.datasets,
        data=_task_data(source),
    )
    _add_datasets(entries, found, asked)


def _task_data(source: Source) -> dict[str, str]:
    """The checksums of the files outside of its folder that a task names, by their names, without their places."""
    named: list[tuple[str, str]] = []
    for place, digests in zip(source.location.get(DATA, ()), source.identity.get(DATA, ()), strict=True):
        path = Path(place["path"])
        named += [
            (path.name if place["is_file"] else f"{path.name}/{name}", sha256) for name, sha256 in digests.items()
        ]
    return _checksums(dict(zip(_unique(name for name, _ in named), (sha256 for _, sha256 in named), strict=True)))


def _add_datasets(entries: _Entries, found: TaskDefinition, asked: Asked) -> None:
    for dataset, revision in found.datasets.items():
        name = request(dataset, revision)
        if name not in entries.datasets:
            commit = asked.ask(partial(pinned_dataset, dataset, revision))
            entries.datasets[name] = commit or cached_dataset(dataset, revision)


def _checksums(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: f"sha256:{sha256}" for name, sha256 in digests.items()}


def _unique(names: Iterable[str]) -> list[str]:
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return found
