"""Reading a store at a URL through a cache on this machine: artifacts, records, and copies of the runs.

    <cache>/<kind>/<task id>/               an artifact that was fetched or published here
    <cache>/records/<kind>/<task id>        its record: the version of its object on the first line, then its text
    <cache>/records/<kind>/<task id>.files  size, time and inode of its files when their checksums were last compared
    <cache>/locks/<kind>-<task id>          locked by the process that puts the artifact here
    <cache>/runs/<run>/                     what was downloaded of a run, or is still to be uploaded

A cached artifact is valid while its record equals the one at the URL and its files are unchanged.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from boomspec.core.files import ABSENT, RESUME, exclusive_lock, replacing, stat_of, unreadable, write_atomically
from boomspec.core.identity import text_digest
from boomspec.store import record as records
from boomspec.store.bucket import Bucket, ObjectInfo
from boomspec.store.folder import FolderStore
from boomspec.store.opening import URL_FILE
from boomspec.store.record import RECORD, RUNS, ArtifactId, Deletable, Files, Record, parsed_json, stored_kinds

CACHE = "BOOMSPEC_CACHE"  # environment variable: the folder of all caches; default ~/.cache/boomspec
_URL_CHARACTERS = 60  # of a URL in the name of its cache
_SUMMARY = ("graph.json", "status.json", "lock.json", "events.jsonl", "report/results.json")  # for lists of runs
_PARALLEL_RUNS = 16
_ATTEMPT = re.compile(r"[0-9a-f]{16}")
Listing = Mapping[str, ObjectInfo]
Judged = tuple[str | None, Record | None]  # damage and record


def record_object(task: ArtifactId) -> str:
    """The object of an artifact's record."""
    return f"{task[0]}/{task[1]}/{RECORD}"


def payload_object(task: ArtifactId, record: Record, path: str) -> str:
    """The object of one file of an artifact."""
    return f"{task[0]}/{task[1]}/{record['attempt']}/{path}"


def parsed_record(data: bytes | None) -> Record | None:
    """The record in an object; None where there is none, it is invalid, or names files outside of its folder."""
    record: Any = None if data is None else parsed_json(data)
    return record if records.is_record(record) and _ATTEMPT.fullmatch(str(record.get("attempt"))) else None


class LocalCache(FolderStore):
    """The cache of one bucket, laid out as a store in a folder: tasks work and fetched artifacts lie in it."""

    def __init__(self, bucket: Bucket) -> None:
        named, url = os.environ.get(CACHE), bucket.url
        readable = "".join(c if c.isalnum() or c in ".-" else "-" for c in url.replace("://", "-"))[:_URL_CHARACTERS]
        folder = Path(named) if named else Path.home() / ".cache" / "boomspec"
        place = folder.expanduser().absolute() / "stores"
        super().__init__(place / f"{readable}-{text_digest(json.dumps(url))[:8]}")
        self._bucket = bucket

    def create(self) -> None:
        """Create the folder with a file that holds the URL."""
        file = self.root / URL_FILE
        if not file.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(file, f"{self._bucket.url}\n")

    def locked(self, task: ArtifactId) -> AbstractContextManager[None]:
        """Be the only process of this machine that puts this artifact into the cache."""
        return exclusive_lock(self.root / "locks" / "-".join(task))

    def is_valid(self, task: ArtifactId, record: Record, *, read: bool = False, always: bool = False) -> bool:
        """Whether the artifact is cached, unchanged. read: compare checksums of what looks changed; always: of all."""
        folder = self.path(*task)
        # As text, because NaN differs from itself.
        if json.dumps(_read(folder / RECORD)) != json.dumps(record):
            return False
        status = _status(folder, record["files"])  # before they are read
        unchanged = not always and _read(self._status_file(task)) == status
        if unchanged and records.damage_of_files(record, folder, checksums=False) is None:
            return True
        if not read or records.damage_of_files(record, folder, checksums=True) is not None:
            return False
        self._write(self._status_file(task), json.dumps(status).encode())
        return True

    def keep(self, folder: Path, task: ArtifactId, record: bytes, files: Files) -> Path:
        """Make a folder whose files have just been checked the cached artifact."""
        self.discard(*task)  # of an older record
        self._write(self._status_file(task), json.dumps(_status(folder, files)).encode())
        return self.place(folder, *task, record)

    def record_data(self, task: ArtifactId) -> bytes | None:
        """The text of the record at the URL, None where there is none."""
        try:
            return self._bucket.read(record_object(task))
        except FileNotFoundError:
            return None

    def listing(self, tasks: Iterable[ArtifactId]) -> dict[str, ObjectInfo]:
        """All objects of the tasks' kinds, a thousand with each request."""
        kinds = {kind for kind, _ in tasks}
        if len(kinds) > 1:  # a folder that is not there would cost three requests
            kinds &= self._bucket.names()
        with ThreadPoolExecutor(max(1, len(kinds))) as pool:
            return dict(item for listing in pool.map(self._bucket.entries, kinds) for item in listing.items())

    def judged(self, tasks: Iterable[ArtifactId], listing: Listing, *, checksums: bool) -> dict[ArtifactId, Judged]:
        """Damage and record of those of the tasks whose record a listing has."""
        found: dict[ArtifactId, Judged] = {}
        for task, record in self.remote_records(tasks, listing).items():
            judged: Judged = self._damage(task, record, listing, checksums=checksums), record
            if judged[0] is not None:  # or it was published again since the listing
                judged = self.judged_now(task, checksums=checksums)
            if judged != (None, None):
                found[task] = judged
        return found

    def judged_now(self, task: ArtifactId, *, checksums: bool) -> Judged:
        """Damage and record as they are now; looks again where the record changes meanwhile."""
        data = self.record_data(task)
        while data is not None:
            record = parsed_record(data)
            damage = self._damage(task, record, self._bucket.entries("/".join(task)), checksums=checksums)
            before, data = data, self.record_data(task) if damage is not None else data
            if before == data:
                return damage, record
        return None, None

    def _damage(self, task: ArtifactId, record: Record | None, listing: Listing, *, checksums: bool) -> str | None:
        """How the objects in a listing differ from their record. With `checksums`, discards a damaged cached copy."""
        if record is None:
            return f"{RECORD} is missing or unreadable"
        for file in record["files"]:
            entry = listing.get(name := payload_object(task, record, file["path"]))
            if damage := records.size_damage(file, None if entry is None else entry.size):
                return damage
            if checksums and self._bucket.digest(name, file["bytes"]) != file["sha256"]:
                return records.checksum_damage(file)
        if checksums and self.path(*task).exists():
            with self.locked(task):
                if not self.is_valid(task, record, read=True, always=True):
                    self.discard(*task)  # it is fetched again
        return None

    def remote_records(self, tasks: Iterable[ArtifactId], listing: Listing) -> dict[ArtifactId, Record | None]:
        """Those of the tasks' records that a listing has; None for invalid ones. Cached ones are not downloaded."""
        entries = {task: entry for task in tasks if (entry := listing.get(record_object(task))) is not None}
        files = {task: self.root.joinpath("records", *task) for task in entries}
        texts: dict[ArtifactId, bytes] = {}
        for task, entry in entries.items():
            with suppress(OSError):
                version, _, data = files[task].read_bytes().partition(b"\n")
                if version == entry.version.encode() and len(data) == entry.size:
                    texts[task] = data
        missing = {record_object(task): task for task in entries if task not in texts}
        for name, data in self._bucket.read_all(missing).items():
            texts[task := missing[name]] = data
            if len(data) == entries[task].size:  # else it was written again since the listing
                self._write(files[task], entries[task].version.encode() + b"\n" + data)
        return {task: parsed_record(text) for task, text in texts.items()}

    def download_runs(self, beginning: str) -> set[str]:
        """Download what lists need of every run whose name begins so. Returns the names of their folders."""
        self.create()

        def summary(run: str) -> Listing:
            place = f"{RUNS}/{run}"
            found = self._bucket.files(place) | self._bucket.files(f"{place}/report")
            return {name: entry for name, entry in found.items() if name.removeprefix(f"{place}/") in _SUMMARY}

        runs = {name for name in self._bucket.names(RUNS) if name.startswith(beginning) and not name.startswith(".")}
        with ThreadPoolExecutor(_PARALLEL_RUNS) as pool:
            self._download({name: entry for entries in pool.map(summary, runs) for name, entry in entries.items()})
        return runs

    def download_run(self, name: str) -> bool:
        """Download everything of one run. False where there is none of that name."""
        self.create()
        found = self._bucket.entries(f"{RUNS}/{name}")
        self._download(found)
        return bool(found)

    def cached(self) -> Iterator[Deletable]:
        """What can be fetched again; not the checkpoints and runs, which may not be uploaded yet."""
        artifacts = (path for kind in stored_kinds() for path in sorted(self.root.glob(f"{kind}/*")))
        others = (self.root / name for name in ("records", "locks", "cache") if any(self.root.glob(f"{name}/*")))
        for path in (*(path for path in artifacts if not path.name.endswith(RESUME)), *others):
            yield Deletable("cache", path, reason="it is fetched again")

    def _download(self, entries: Listing) -> None:
        """Download objects that differ from their local files, except from newer ones, which are still to be sent."""
        targets = {}
        for name, entry in entries.items():
            parts = PurePosixPath(name).parts
            if ".." in parts or name.startswith("/"):
                raise ValueError(f"{name} is no name for a file of a run")
            target = self.root.joinpath(*parts)
            status = stat_of(target)
            same = status is not None and status.st_size == entry.size and abs(status.st_mtime - entry.modified) < 1e-3
            if status is None or not (same or status.st_mtime > entry.modified + 1e-3):
                target.parent.mkdir(parents=True, exist_ok=True)
                targets[name] = target
        with ExitStack() as parts_of:
            files = {name: parts_of.enter_context(replacing(target)) for name, target in targets.items()}
            self._bucket.download_all((name, part, entries[name].size) for name, part in files.items())
            for name, part in files.items():
                os.utime(part, (entries[name].modified, entries[name].modified))

    def _status_file(self, task: ArtifactId) -> Path:
        return self.root / "records" / task[0] / f"{task[1]}.files"

    def _write(self, file: Path, content: bytes) -> None:
        with suppress(OSError):  # such as a full disk: then it is read again the next time
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part:
                part.write_bytes(content)


def _status(folder: Path, files: Files) -> dict[str, list[Any]]:
    """By path: sha256, size, time and inode, which change with a file but not when its folder is renamed."""
    found = {}
    for file in files:
        status = stat_of(folder / file["path"])
        seen = () if status is None else (status.st_size, status.st_mtime_ns, status.st_ino)
        found[file["path"]] = [file["sha256"], *seen]
    return found


def _read(path: Path) -> Any:
    try:
        return parsed_json(path.read_bytes())
    except ABSENT:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
