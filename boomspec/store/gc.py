"""What a store holds that no run needs, and deleting it.

A run needs the artifact of every task in its graph, and the checkpoints of its unfinished tasks. Where the graph of
one run cannot be read, any artifact and any checkpoint could be needed: then none is deleted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import KINDS
from boomspec.store.interface import STORED_KINDS, Store, Stored
from boomspec.store.runs import PastRun, read_graph_data

GC_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Garbage:
    """Something that can go, and why. what: as in `Stored`, or "broken artifact"."""

    what: str
    reason: str
    bytes: int
    stored: Stored

    @property
    def kind(self) -> str:
        return self.stored.kind

    @property
    def path(self) -> Path | str:
        return self.stored.place

    def to_json(self) -> dict[str, Any]:
        ids = {"what": self.what, "kind": self.kind, "path": str(self.path)}
        return {**ids, "bytes": self.bytes, "reason": self.reason}


@dataclass(frozen=True)
class Needed:
    """The tasks and sources of all runs. unjudged: runs whose tasks are unknown, with the reason."""

    tasks: frozenset[str]
    unjudged: dict[str, str]


def forgotten(runs: list[PastRun], *, keep_last: int | None, older_than: float | None, now: float) -> list[PastRun]:
    """The runs to forget: not among the last `keep_last` of their name, and last seen over `older_than` seconds ago.

    Where both are given, both must hold. A run that is running, or whose graph cannot be read, is never forgotten.
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


def garbage(store: Store, runs: list[PastRun], *, forget: list[PastRun], cache: bool) -> tuple[list[Garbage], Needed]:
    """What can go from a store once the runs `forget` are forgotten, in the order in which it should go."""
    gone = {run.folder for run in forget}
    needed = _needed([run for run in runs if run.folder not in gone])

    def is_gone(task_id: str) -> bool:
        return task_id not in ids or not (needed.unjudged or task_id in needed.tasks)

    found = [
        _garbage(stored, stored.what, stored.reason or f"{run.state}, forgotten")
        for run in forget
        for stored in store.stored_run(run.folder)
    ]
    for stored in store.stored(STORED_KINDS, cache=cache):
        what, reason = _verdict(stored, needed)
        if reason:
            found.append(_garbage(stored, what, reason))
    for kind in KINDS:
        ids = store.ids(kind)
        found += [_garbage(stored, stored.what, stored.reason) for stored in store.dead_keys(kind, is_gone)]
    return found, needed


def delete(store: Store, item: Garbage) -> None:
    store.remove(item.stored)


def _needed(runs: list[PastRun]) -> Needed:
    """What these runs need. Graphs are read again: a run may have been compiled again meanwhile."""
    tasks: set[str] = set()
    unjudged: dict[str, str] = {}
    for run in runs:
        try:
            graph = read_graph_data(run.folder)
            tasks.update(graph["tasks"], graph.get("sources", ()))
        except BoomspecError as error:
            unjudged[run.folder.name] = error.message
    return Needed(frozenset(tasks), unjudged)


def _verdict(stored: Stored, needed: Needed) -> tuple[str, str]:
    """What to call it, and why it can go; "" where it stays."""
    unneeded = "of no run" if not needed.unjudged and stored.task not in needed.tasks else ""
    if stored.what == "artifact":
        if stored.damage is not None:
            return "broken artifact", "" if needed.unjudged else stored.damage
        return stored.what, unneeded
    if stored.what == "checkpoints":
        return stored.what, stored.reason or unneeded
    return stored.what, stored.reason


def _garbage(stored: Stored, what: str, reason: str) -> Garbage:
    size = _size(stored.place) if isinstance(stored.place, Path) else sum(stored.objects.values())
    return Garbage(what, reason, size, stored)


def _size(path: Path) -> int:
    """Bytes of all files below a path; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(Path(entry.path)) for entry in os.scandir(path))
