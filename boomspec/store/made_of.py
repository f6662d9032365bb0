"""Reuse an artifact whose inputs have identical content, under a new task id (early cut-off).

    key = sha256(canonical JSON {kind, version, params, {role: contents of the artifact, or id of the source}})

A task's id depends on the ids of its inputs. Those change with anything upstream, such as a text in other files or the
version of a kind, even where the inputs' bytes do not. Then the key is the same, and so is the result: it is published
under the new id without computing, and the same holds for the tasks downstream. Tasks that read no artifact have one
key per id, and reports are quickly drawn again: neither takes part.

The store's index maps keys to task ids. An entry is written before its artifact is published, so that every artifact
has one whoever is killed in between; so an entry does not prove that there is an artifact. `gc` deletes dead entries.
"""

from collections.abc import Iterable, Mapping

from boomspec.core.graph import Task, TaskGraph
from boomspec.core.identity import digest
from boomspec.store.folder import Store
from boomspec.store.record import Json


def contents_of(record: Json) -> str:
    """The digest of an artifact's payload: of the names and checksums in its record."""
    return digest(sorted([file["path"], file["sha256"]] for file in record["files"]))


def key_of(identity: Json, contents: Mapping[str, str]) -> str:
    """The key of a task with this identity (kind, version, params, inputs). contents: of artifacts, by id."""
    return digest({**identity, "inputs": {role: contents.get(i, i) for role, i in identity["inputs"].items()}})


def content_key(store: Store, task: Task, kinds: Mapping[str, str]) -> str | None:
    """The key of a task whose inputs are in the store; None where it takes no part. kinds: of artifacts, by id."""
    own = {i: kinds[i] for i in task.inputs.values() if i in kinds}
    if not own or task.record.shows_numbers:
        return None
    contents = {i: contents_of(record) for i, kind in own.items() if (record := store.record(kind, i)) is not None}
    return key_of(task.identity(), contents) if contents.keys() == own.keys() else None


def equal_artifacts(graph: TaskGraph, store: Store, task_ids: Iterable[str], *, checksums: bool) -> dict[str, str]:
    """For tasks that are not in the store, the ids of whole artifacts there that were made of the same inputs.

    All their inputs that are not in `task_ids` must be in the store. The store is asked once per level of the graph.
    """
    waiting = {i: graph.nodes[i].task for i in task_ids}
    waiting = {i: task for i, task in waiting.items() if not task.record.shows_numbers and graph.task_inputs(i)}
    contents: dict[str, str] = {}
    found: dict[str, str] = {}
    missing = set(task_ids)
    while level := [i for i in waiting if missing.isdisjoint(graph.task_inputs(i))]:
        unread = {n: graph.nodes[n].task.kind for i in level for n in graph.task_inputs(i) if n not in contents}
        records = store.records((kind, i) for i, kind in unread.items())
        contents |= {i: contents_of(record) for (_, i), record in records.items()}
        keys: dict[str, dict[str, str]] = {}  # by kind, then by task
        for i in level:
            task = waiting.pop(i)
            if all(n in contents for n in graph.task_inputs(i)):
                keys.setdefault(task.kind, {})[i] = key_of(task.identity(), contents)
        indexed = {kind: store.ids_by_key(kind, own.values()) for kind, own in keys.items()}
        candidates = [(kind, i) for kind, by_key in indexed.items() for ids in by_key.values() for i in ids]
        survey = store.survey(candidates, checksums=checksums, unread={}) if candidates else {}
        whole = [task for task, damage in survey.items() if damage is None]
        records = store.records(whole) if whole else {}
        for kind, i, key in ((kind, i, key) for kind, own in keys.items() for i, key in own.items()):
            others = (other for other in indexed[kind].get(key, ()) if (kind, other) in records)
            if (other := next(others, None)) is not None:
                found[i], contents[i] = other, contents_of(records[kind, other])
                missing.discard(i)
    return found


def publish_equal(
    store: Store, kind: str, task_id: str, of: str, identity: Json, more: Json, *, checksums: bool
) -> bool:
    """Publish the artifact `of`, with its provenance and `more`, as `task_id`. False where it is missing or damaged."""
    try:
        record = store.record(kind, of)
        if record is None or store.damage(kind, of, checksums=checksums) is not None:
            return False
        return store.publish_copy((kind, task_id), of, record, identity, {**record["provenance"], **more})
    except FileNotFoundError:  # discarded meanwhile
        return False
