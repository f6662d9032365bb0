"""What a store holds that no run needs, and getting rid of it.

A run needs the artifact of every task in its graph, and the checkpoints of those that are not made yet. Where the
graph of one run cannot be read, any artifact and any checkpoint could be its: then none is called unneeded.
What boomspec did not make (other folders, files with other names, records of a newer version) is left alone, and so is
what cannot be read: it may be whole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from boomspec.core.errors import BoomspecError
from boomspec.core.files import ABSENT, DISCARDED, LOCK, RESUME, discard, lock_file
from boomspec.core.tasks import KINDS
from boomspec.store import RECORD, RECORD_VERSION, Store
from boomspec.store.runs import PastRun, is_task_id, read_graph_data
from boomspec.store.sources import SOURCE
from boomspec.store.twins import MADE_OF

GC_SCHEMA_VERSION = 1
What = Literal["run", "artifact", "broken artifact", "checkpoints", "leftover", "cache"]
_HIDDEN = re.compile(r"\.(?P<task>[0-9a-f]{64})\.(?P<rest>.+)")
_GRAVE = re.compile(rf"\..+{re.escape(DISCARDED)}[0-9a-f]+")


@dataclass(frozen=True)
class Garbage:
    """One file, folder or group of objects that can go, and why."""

    what: What
    kind: str  # of task; "" where there is none
    path: Path | str  # a URL, where it is objects
    bytes: int
    reason: str
    objects: tuple[str, ...] = ()  # in the order in which they should go
    upload: str = ""  # of an object that never came to be

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "kind": self.kind,
            "path": str(self.path),
            "bytes": self.bytes,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Needed:
    """The tasks and sources of all runs; `unjudged`: runs whose tasks are not known, each with the reason."""

    tasks: frozenset[str]
    unjudged: dict[str, str]


def forgotten(runs: list[PastRun], *, keep_last: int | None, older_than: float | None, now: float) -> list[PastRun]:
    """The runs to forget: not among the last `keep_last` of their name, and last seen `older_than` seconds ago.

    Where both are given, both must hold. A run that is running, or whose graph cannot be read, is never one of them.
    """
    if keep_last is None and older_than is None:
        return []
    newer: dict[str, int] = {}
    found = []
    for run in sorted(runs, key=lambda run: -run.last_seen):
        newer[run.name] = newer.get(run.name, 0) + 1
        old = older_than is None or now - run.last_seen > older_than
        surplus = keep_last is None or newer[run.name] > keep_last
        if old and surplus and run.problem is None and run.state != "running":
            found.append(run)
    return found


def needed_tasks(runs: list[PastRun]) -> Needed:
    """What these runs need. Graphs are read again: a run may have been compiled anew meanwhile."""
    tasks: set[str] = set()
    unjudged: dict[str, str] = {}
    for run in runs:
        try:
            graph = read_graph_data(run.folder)
            tasks.update(graph["tasks"], graph.get("sources", ()))
        except BoomspecError as error:
            unjudged[run.folder.name] = error.message
    return Needed(frozenset(tasks), unjudged)


def garbage(store: Store, runs: list[PastRun], *, forget: list[PastRun], cache: bool) -> tuple[list[Garbage], Needed]:
    """What can go from a store once the runs `forget` are forgotten, in the order in which it should go."""
    gone = {run.folder for run in forget}
    needed = needed_tasks([run for run in runs if run.folder not in gone])
    if store.bucket is not None:
        from boomspec.store.gc_remote import garbage_at_url  # here: a folder needs no library for URLs
        from boomspec.store.remote import RemoteStore

        assert isinstance(store, RemoteStore)
        return list(garbage_at_url(store, needed, forget=forget, cache=cache)), needed
    found = [Garbage("run", "", run.folder, size_on_disk(run.folder), age(run)) for run in forget]
    for kind in (*KINDS, SOURCE):
        found += _of_kind(store, kind, needed)
    for kind in KINDS:
        found += _of_index(store, kind, needed)
    for folder in (store.root, store.root / "runs"):
        graves = [path for path in _entries(folder) if _GRAVE.fullmatch(path.name)]
        found += [Garbage("leftover", "", path, size_on_disk(path), "of an earlier gc") for path in graves]
    if cache and (store.root / "cache").is_dir():
        path = store.root / "cache"
        found.append(Garbage("cache", "", path, size_on_disk(path), "libraries fill it again"))
    return found, needed


def delete(store: Store, item: Garbage) -> None:
    """Delete one item: out of sight by one rename, so that nothing half-deleted is ever read.

    Of objects the one goes first without which nobody looks for the others.
    """
    if store.bucket is not None and item.upload:
        store.bucket.abort(item.objects[0], item.upload)
        return
    if store.bucket is not None and item.objects:
        store.bucket.delete(item.objects[:1])
        store.bucket.delete(item.objects[1:])
        return
    discard(Path(item.path), ignore_errors=False)


def size_on_disk(path: Path) -> int:
    """Bytes of all files below a path; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(size_on_disk(Path(entry.path)) for entry in os.scandir(path))


def _of_kind(store: Store, kind: str, needed: Needed) -> Iterator[Garbage]:
    for path in _entries(store.root / kind):
        task, hidden = path.name, _HIDDEN.fullmatch(path.name)
        if hidden is not None:
            found = _hidden(store, kind, path, hidden["task"], hidden["rest"], needed)
        elif not is_task_id(task) or _is_foreign_file(path / RECORD):
            continue
        else:
            found = None if needed.unjudged else _artifact(store, kind, task, needed)
        if found is not None:
            yield Garbage(found[0], kind, path, size_on_disk(path), found[1])


def _of_index(store: Store, kind: str, needed: Needed) -> Iterator[Garbage]:
    """What the index of equal inputs says of artifacts that are gone, or go now."""
    there = store.ids(kind)
    for key in _entries(store.root / MADE_OF / kind):
        ids = [path.name for path in _entries(key)]
        dead = [i for i in ids if is_unlisted(i, there, needed) and not _is_held(store.resume(kind, i))]
        for path in [key] if dead == ids else [key / i for i in dead]:
            yield Garbage("leftover", kind, path, size_on_disk(path), "its artifact is gone")


def is_unlisted(task: str, there: set[str], needed: Needed) -> bool:
    """Whether a task has no artifact, or will have none when this is over. `there`: the folders of its kind."""
    return task not in there or not (needed.unjudged or task in needed.tasks)


def _artifact(store: Store, kind: str, task: str, needed: Needed) -> tuple[What, str] | None:
    try:
        damage = store.damage(kind, task)
    except BoomspecError:
        return None
    if damage is not None:
        return "broken artifact", damage
    return None if task in needed.tasks else ("artifact", "of no run")


def _hidden(store: Store, kind: str, path: Path, task: str, rest: str, needed: Needed) -> tuple[What, str] | None:
    """What a folder beside the artifacts is, or a lock, if it can go."""
    if not (path.is_dir() or path.name.endswith(LOCK)) or _is_held(path):
        return None  # a living process works in it
    if f".{rest}" != RESUME:
        return "leftover", "its process is dead"
    if _is_finished(store, kind, task):
        return "checkpoints", "its task is finished"
    if not needed.unjudged and task not in needed.tasks:
        return "checkpoints", "of no run"
    return None


def _is_finished(store: Store, kind: str, task: str) -> bool:
    try:
        return store.has(kind, task) and store.damage(kind, task) is None
    except BoomspecError:
        return False


def is_foreign(text: bytes) -> bool:
    """Whether a record is of a version that this boomspec cannot judge."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "record" in data and data["record"] != RECORD_VERSION


def _is_foreign_file(record: Path) -> bool:
    try:
        return is_foreign(record.read_bytes())
    except ABSENT:
        return False
    except OSError:
        return True


def _is_held(path: Path) -> bool:
    """Whether a living process holds a folder, or a lock; where that cannot be told, it does."""
    lock = path if path.name.endswith(LOCK) else path / LOCK if path.name.endswith(RESUME) else _beside(path)
    try:
        if not lock.exists():
            return lock == path  # it has ended meanwhile
        if (handle := lock_file(lock)) is None:
            return True
    except OSError:
        return True
    os.close(handle)
    return False


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{LOCK}")


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def age(run: PastRun) -> str:
    return f"{run.state}, forgotten"
