"""Garbage-collect a store: find and delete artifacts that no run references.

A run needs the artifact of every task in its graph, and the checkpoints of its unfinished tasks. Where the graph of
one run cannot be read, any artifact and any checkpoint could be needed: then none is deleted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import KINDS
from boomspec.store.contents import Deletable
from boomspec.store.folder import Store
from boomspec.store.runs import PastRun, read_graph_data

GC_SCHEMA_VERSION = 1


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


def garbage(store: Store, runs: list[PastRun], *, forget: list[PastRun], cache: bool) -> tuple[list[Deletable], Needed]:
    """What can go from a store once the runs `forget` are forgotten, in the order in which it should go."""
    gone, tasks = {run.folder for run in forget}, set[str]()
    unjudged: dict[str, str] = {}
    for run in (run for run in runs if run.folder not in gone):
        try:
            graph = read_graph_data(run.folder)  # again: a run may have been compiled again meanwhile
            tasks.update(graph["tasks"], graph.get("sources", ()))
        except BoomspecError as error:
            unjudged[run.folder.name] = error.message
    needed = Needed(frozenset(tasks), unjudged)
    found = [item for run in forget for item in store.stored_run(run.folder, f"{run.state}, forgotten")]
    found += [item for stored in store.stored(cache=cache) if (item := _judged(stored, needed)).reason]
    for kind in KINDS:
        ids = store.ids(kind)
        found += store.dead_keys(kind, ids if unjudged else ids & tasks)
    return [replace(item, bytes=_size(item.path)) if isinstance(item.path, Path) else item for item in found], needed


def _judged(stored: Deletable, needed: Needed) -> Deletable:
    """The same with the reason why it can go; "" where it stays."""
    unneeded = "of no run" if not needed.unjudged and stored.task not in needed.tasks else ""
    if stored.what == "artifact" and stored.damage is not None:
        return replace(stored, what="broken artifact", reason="" if needed.unjudged else stored.damage)
    if stored.what in ("artifact", "checkpoints"):
        return replace(stored, reason=stored.reason or unneeded)
    return stored


def _size(path: Path) -> int:
    """Bytes of all files below a path; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(Path(entry.path)) for entry in os.scandir(path))
