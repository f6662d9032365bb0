"""Garbage-collect a store: find and delete artifacts that no run references.

A run needs the artifact of every task in its graph, and the checkpoints of its unfinished tasks. Where the graph of
one run cannot be read, any artifact and any checkpoint could be needed: then none is deleted.
"""

import os
from dataclasses import replace
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import KINDS
from boomspec.store.folder import Store
from boomspec.store.record import Deletable
from boomspec.store.runs import PastRun, read_graph_data

GC_SCHEMA_VERSION = 1


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


def garbage(
    store: Store, runs: list[PastRun], *, forget: list[PastRun], cache: bool
) -> tuple[list[Deletable], dict[str, str]]:
    """What can go once `forget` is forgotten, in order; and, with the reason, runs of unknown needs, which keep all."""
    gone, needed = {run.folder for run in forget}, set[str]()
    unjudged: dict[str, str] = {}
    for run in (run for run in runs if run.folder not in gone):
        try:
            graph = read_graph_data(run.folder)  # again: a run may have been compiled again meanwhile
            needed.update(graph["tasks"], graph.get("sources", ()))
        except BoomspecError as error:
            unjudged[run.folder.name] = error.message
    found = [item for run in forget for item in store.stored_run(run.folder, f"{run.state}, forgotten")]
    for item in store.stored(cache=cache):
        reason = item.reason
        if item.what == "artifact" and item.damage is not None:
            item = replace(item, what="broken artifact")
            reason = "" if unjudged else item.damage or ""
        elif item.what in ("artifact", "checkpoints") and not unjudged and item.task not in needed:
            reason = reason or "of no run"
        found += [replace(item, reason=reason)] if reason else []
    for kind in KINDS:
        ids = store.ids(kind)
        found += store.dead_keys(kind, ids if unjudged else ids & needed)
    return [replace(item, bytes=_size(item.path)) if isinstance(item.path, Path) else item for item in found], unjudged


def _size(path: Path) -> int:
    """Bytes of all files below a path; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(Path(entry.path)) for entry in os.scandir(path))
