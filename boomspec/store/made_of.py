"""Early cut-off: what a task is made of byte for byte, and the artifact that was made of the same before.

    key = sha256(canonical JSON {kind, version, params, {role: contents of the artifact, or id of the source}})

A task's id goes by the ids of its inputs, which are others where something behind them has changed: a text in other
files, the version of a kind. Where these give the same bytes all the same, the key is the same, and so is the result:
it is published under the new id, and nothing is computed. So it goes on down the graph.

Tasks that read no artifact have one key for each id, and what only shows numbers is quickly drawn again: they take no
part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from boomspec.core.graph import Task, TaskGraph
from boomspec.core.identity import digest
from boomspec.store import Store
from boomspec.store.twins import ids_by_key


def contents_of(record: Mapping[str, Any]) -> str:
    """The digest of an artifact's payload, by its record: of what its files are called and hold."""
    return digest(sorted([file["path"], file["sha256"]] for file in record["files"]))


def key_of(identity: Mapping[str, Any], contents: Mapping[str, str]) -> str:
    """The key of a task with this identity (kind, version, params, inputs). `contents`: of its artifacts, by id."""
    return digest({**identity, "inputs": {role: contents.get(i, i) for role, i in identity["inputs"].items()}})


def key_in(store: Store, task: Task, kinds: Mapping[str, str]) -> str | None:
    """The key of a task whose inputs are in the store; None where it takes no part. `kinds`: of artifacts, by id."""
    own = {i: kinds[i] for i in task.inputs.values() if i in kinds}
    if not own or task.record.shows_numbers:
        return None
    contents = {i: contents_of(record) for i, kind in own.items() if (record := store.record(kind, i)) is not None}
    return key_of(task.identity(), contents) if contents.keys() == own.keys() else None


def twins(graph: TaskGraph, store: Store, task_ids: Iterable[str], *, checksums: bool) -> dict[str, str]:
    """Of the tasks `task_ids`, which are not in the store, those that are there under another id: that id, by theirs.

    All others that they read are in the store. Asked of many tasks at once: of all whose inputs are known, and then of
    those behind them.
    """
    waiting = {i: graph.nodes[i].task for i in task_ids}
    waiting = {i: task for i, task in waiting.items() if not task.record.shows_numbers and graph.task_inputs(i)}
    contents: dict[str, str] = {}
    found: dict[str, str] = {}
    missing = set(task_ids)
    while wave := [i for i in waiting if missing.isdisjoint(graph.task_inputs(i))]:
        read = {n: graph.nodes[n].task.kind for i in wave for n in graph.task_inputs(i) if n not in contents}
        records = store.records((kind, i) for i, kind in read.items())
        contents |= {i: contents_of(record) for (_, i), record in records.items()}
        keys: dict[str, dict[str, str]] = {}  # by kind, then by task
        for i in wave:
            task = waiting.pop(i)
            if all(n in contents for n in graph.task_inputs(i)):
                keys.setdefault(task.kind, {})[i] = key_of(task.identity(), contents)
        for i, other, record in _sound(store, keys, checksums=checksums):
            found[i], contents[i] = other, contents_of(record)
            missing.discard(i)
    return found


def _sound(
    store: Store, keys: Mapping[str, Mapping[str, str]], *, checksums: bool
) -> list[tuple[str, str, dict[str, Any]]]:
    """Of tasks with these keys those with an artifact that is whole: task, id and record of it."""
    named = {kind: ids_by_key(store, kind, own.values()) for kind, own in keys.items()}
    candidates = [(kind, i) for kind, by_key in named.items() for ids in by_key.values() for i in ids]
    if not candidates:
        return []
    whole = {
        task for task, damage in store.survey(candidates, checksums=checksums, unread={}).items() if damage is None
    }
    records = store.records(whole)
    return [
        (i, other, records[kind, other])
        for kind, own in keys.items()
        for i, key in own.items()
        for other in [next((o for o in named[kind].get(key, ()) if (kind, o) in records), None)]
        if other is not None
    ]
