"""The runs of a store at a URL, brought to this machine as far as one asks about them.

A file is brought when it is not here, or differs in size or time and is not younger here: what runs here, and is not
sent yet, stays. What was brought has the time that it has there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from boomspec.core.files import stat_of, temporary_name
from boomspec.store.bucket import Bucket, Entry

RUNS = "runs"
_TOLD = ("graph.json", "status.json", "lock.json", "events.jsonl")  # what lists of runs are made of
_RESULTS = "report/results.json"
_AT_ONCE = 16  # runs


def pull_runs(bucket: Bucket, root: Path, *, beginning: str = "") -> list[str]:
    """Bring what tells of every run whose folder's name begins so. Returns the names of their folders."""
    names = [name for name in bucket.names(RUNS) if name.startswith(beginning) and not name.startswith(".")]
    if names:
        with ThreadPoolExecutor(min(_AT_ONCE, len(names))) as pool:
            found = list(pool.map(lambda name: _told(bucket, name), names))
        _bring(bucket, root, {name: entry for entries in found for name, entry in entries.items()})
    return sorted(names)


def pull_run(bucket: Bucket, root: Path, name: str) -> bool:
    """Bring everything of one run. False where there is none of that name."""
    there = bucket.entries(f"{RUNS}/{name}")
    _bring(bucket, root, there)
    return bool(there)


def _told(bucket: Bucket, run: str) -> dict[str, Entry]:
    place = f"{RUNS}/{run}"
    there = bucket.files(place) | bucket.files(f"{place}/{PurePosixPath(_RESULTS).parent}")
    wanted = {f"{place}/{name}" for name in (*_TOLD, _RESULTS)}
    return {name: entry for name, entry in there.items() if name in wanted}


def _bring(bucket: Bucket, root: Path, entries: dict[str, Entry]) -> None:
    wanted = {name: entry for name, entry in entries.items() if _differs(_place(root, name), entry)}
    parts = {name: _place(root, name) for name in wanted}
    parts = {name: temporary_name(place) for name, place in parts.items()}
    try:
        bucket.download_all((name, parts[name], entry.size) for name, entry in wanted.items())
        for name, entry in wanted.items():
            os.utime(parts[name], (entry.modified, entry.modified))
            parts[name].replace(_place(root, name))
    finally:
        _forget(parts.values())


def _place(root: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        raise ValueError(f"{name} is no name for a file of a run")
    return root.joinpath(*parts)


def _differs(place: Path, entry: Entry) -> bool:
    here = stat_of(place)
    if here is None:
        return True
    same = here.st_size == entry.size and abs(here.st_mtime - entry.modified) < 1e-3
    return not same and here.st_mtime <= entry.modified + 1e-3


def _forget(parts: Iterable[Path]) -> None:
    for part in parts:
        part.unlink(missing_ok=True)
