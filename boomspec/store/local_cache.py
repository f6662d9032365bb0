"""This machine's cache of a store at a URL: artifacts, records, and copies of the runs.

    <cache>/<kind>/<task id>/               an artifact that was fetched or published here
    <cache>/records/<kind>/<task id>        its record (`record.py`)
    <cache>/records/<kind>/<task id>.files  size, time and inode of its files when their checksums were last compared
    <cache>/locks/<kind>-<task id>          locked by the process that puts the artifact here
    <cache>/runs/<run>/                     what was downloaded of a run, or is still to be uploaded

A cached artifact is valid while its record equals the one at the URL and its files are unchanged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from boomspec.core.files import (
    ABSENT,
    RESUME,
    exclusive_lock,
    read_json,
    replacing,
    stat_of,
    unreadable,
    write_atomically,
)
from boomspec.core.identity import text_digest
from boomspec.store.bucket import Bucket, Entry
from boomspec.store.folder import FolderStore
from boomspec.store.interface import STORED_KINDS, Stored
from boomspec.store.opening import URL_FILE
from boomspec.store.record import RECORD, ArtifactId, Files, Record, damage_of_files

CACHE = "BOOMSPEC_CACHE"  # environment variable: the folder of all caches; default ~/.cache/boomspec
RUNS = "runs"
_URL_CHARACTERS = 60  # of a URL in the name of its cache
_SUMMARY = ("graph.json", "status.json", "lock.json", "events.jsonl", "report/results.json")  # for lists of runs
_PARALLEL_RUNS = 16


class LocalCache(FolderStore):
    """The cache of one URL, laid out as a store in a folder: tasks work and fetched artifacts lie in it."""

    def __init__(self, url: str) -> None:
        named = os.environ.get(CACHE)
        readable = "".join(c if c.isalnum() or c in ".-" else "-" for c in url.replace("://", "-"))[:_URL_CHARACTERS]
        folder = Path(named) if named else Path.home() / ".cache" / "boomspec"
        place = folder.expanduser().absolute() / "stores"
        super().__init__(place / f"{readable}-{text_digest(json.dumps(url))[:8]}")
        self.url = url

    def create(self) -> None:
        """Create the folder with a file that holds the URL."""
        file = self.root / URL_FILE
        if not file.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(file, f"{self.url}\n")

    def locked(self, task: ArtifactId) -> AbstractContextManager[None]:
        """Be the only process of this machine that puts this artifact into the cache."""
        return exclusive_lock(self.root / "locks" / "-".join(task))

    def is_valid(self, task: ArtifactId, record: Record, *, read: bool = False, always: bool = False) -> bool:
        """Whether the cache has the artifact of this record, with unchanged files.

        read: compare checksums of files that look changed; always: of all files. Raises BoomspecError where that
        cannot be known.
        """
        folder = self.path(*task)
        # As text, because NaN differs from itself.
        if json.dumps(_read(folder / RECORD)) != json.dumps(record):
            return False
        status = _status(folder, record["files"])  # before they are read
        unchanged = not always and _read(self._status_file(task)) == status
        if unchanged and damage_of_files(record, folder, checksums=False) is None:
            return True
        if not read or damage_of_files(record, folder, checksums=True) is not None:
            return False
        self._write_status(task, status)
        return True

    def keep(self, folder: Path, task: ArtifactId, record: bytes, files: Files) -> Path:
        """Make a folder whose files have just been checked the cached artifact."""
        self.discard(*task)  # of an older record
        self._write_status(task, _status(folder, files))
        return self.place(folder, *task, record)

    def download_runs(self, bucket: Bucket, beginning: str) -> set[str]:
        """Download what lists need of every run whose name begins so. Returns the names of their folders."""
        names = [name for name in bucket.names(RUNS) if name.startswith(beginning) and not name.startswith(".")]
        if names:
            with ThreadPoolExecutor(min(_PARALLEL_RUNS, len(names))) as pool:
                summaries = list(pool.map(lambda name: _summary(bucket, name), names))
            self._download(bucket, {name: entry for entries in summaries for name, entry in entries.items()})
        return set(names)

    def download_run(self, bucket: Bucket, name: str) -> bool:
        """Download everything of one run. False where there is none of that name."""
        found = bucket.entries(f"{RUNS}/{name}")
        self._download(bucket, found)
        return bool(found)

    def cached(self) -> Iterator[Stored]:
        """What can be fetched again; not the checkpoints and runs, which may not be uploaded yet."""
        for kind in STORED_KINDS:
            for path in sorted((self.root / kind).iterdir()) if (self.root / kind).is_dir() else ():
                if not path.name.endswith(RESUME):
                    yield Stored("cache", path, reason="it is fetched again")
        for name in ("records", "locks", "cache"):
            if (self.root / name).is_dir() and any((self.root / name).iterdir()):
                yield Stored("cache", self.root / name, reason="it is fetched again")

    def _download(self, bucket: Bucket, entries: Mapping[str, Entry]) -> None:
        """Download objects that differ from their local files, except from newer ones, which are still to be sent."""
        targets = {name: target for name, entry in entries.items() if _is_older(target := self._file(name), entry)}
        with ExitStack() as parts:
            for target in targets.values():
                target.parent.mkdir(parents=True, exist_ok=True)
            files = {name: parts.enter_context(replacing(target)) for name, target in targets.items()}
            bucket.download_all((name, part, entries[name].size) for name, part in files.items())
            for name, part in files.items():
                os.utime(part, (entries[name].modified, entries[name].modified))

    def _file(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/"):
            raise ValueError(f"{name} is no name for a file of a run")
        return self.root.joinpath(*parts)

    def _status_file(self, task: ArtifactId) -> Path:
        return self.root / "records" / task[0] / f"{task[1]}.files"

    def _write_status(self, task: ArtifactId, status: dict[str, list[Any]]) -> None:
        file = self._status_file(task)
        with suppress(OSError):  # such as a full disk: then the files are read again the next time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(status))


def _status(folder: Path, files: Files) -> dict[str, list[Any]]:
    """By path: sha256, size, time and inode, which change with a file but not when its folder is renamed."""
    found = {}
    for file in files:
        status = stat_of(folder / file["path"])
        seen = () if status is None else (status.st_size, status.st_mtime_ns, status.st_ino)
        found[file["path"]] = [file["sha256"], *seen]
    return found


def _summary(bucket: Bucket, run: str) -> dict[str, Entry]:
    place = f"{RUNS}/{run}"
    found = bucket.files(place) | bucket.files(f"{place}/report")
    return {name: entry for name, entry in found.items() if name.removeprefix(f"{place}/") in _SUMMARY}


def _is_older(file: Path, entry: Entry) -> bool:
    status = stat_of(file)
    if status is None:
        return True
    same = status.st_size == entry.size and abs(status.st_mtime - entry.modified) < 1e-3
    return not same and status.st_mtime <= entry.modified + 1e-3


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (*ABSENT, ValueError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error
