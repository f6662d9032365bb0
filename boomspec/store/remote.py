"""A store at a URL: objects of S3, Google Cloud Storage or Azure, worked on through a folder of this machine.

    <url>/<kind>/<task id>/<attempt>/...        the payload that one writer has put there
    <url>/<kind>/<task id>/artifact.json        the record, which names its attempt; written last
    <url>/<kind>/.<task id>.resume/             checkpoints of a long task
    <url>/<kind>/.<task id>.lease               who is at work on a task (`leases.py`)
    <url>/runs/<name>-<graph id>/               what is known of a run
    <url>/.in-use/<token>                       who works with the store

There is no rename. The record is one object, which is there as a whole or not at all, and is made only where there is
none: two writers of one task never mix their files, and the second one finds the first one's result and drops its own.
A writer that is killed leaves an attempt that no record names; nobody reads it, and `gc` deletes it.

The folder on this machine is laid out as a store itself: tasks work in it, and what was fetched lies in it. An artifact
in it counts only while its record is the one at the URL.
"""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.files import RESUME, flush, locked_folder
from boomspec.store import leases
from boomspec.store.bucket import Bucket, Entry
from boomspec.store.download_runs import pull_run, pull_runs
from boomspec.store.folder import FolderStore, Workspace
from boomspec.store.local_cache import CACHE, alone_here, holds, local_folder, mark, remember, sound
from boomspec.store.lock import is_running
from boomspec.store.record import RECORD, Task, listed_files, record_text
from boomspec.store.records import payload_name, read_record, read_records, record_name

LEASE = ".lease"
_FETCHED_AT_ONCE = 8


class RemoteStore(FolderStore):
    """Artifacts at a URL. `root` is this machine's folder for it, which may be deleted while nothing runs."""

    bucket: Bucket

    def __init__(self, url: str, *, tell: Callable[[str], None] | None = None, patience: float | None = None) -> None:
        self.bucket = Bucket(url, tell=tell, seconds=patience)
        super().__init__(local_folder(self.bucket.url))

    @property
    def address(self) -> str:
        return self.bucket.url

    def check_writable(self) -> None:
        """Raise BoomspecError unless objects can be written, read and deleted there, and files written here."""
        try:
            super().check_writable()
            mark(self.root, self.address)
        except (BoomspecError, OSError) as error:
            message = f"{self.root}, where this machine keeps what it has of {self.address}: {error}".partition("\n")[0]
            raise BoomspecError(message, hint=f"{CACHE} names another folder") from error
        name = f".probe/{secrets.token_hex(8)}"
        self.bucket.write(name, b"boomspec")
        if self.bucket.read(name) != b"boomspec":
            raise BoomspecError(f"store {self.address}: does not give back what was written")
        self.bucket.delete([name])

    def fetch(self, kind: str, task_id: str) -> Path:
        """A folder on this machine with the artifact, downloaded once and checked against its record.

        Raises BoomspecError where the store has none, or a damaged one.
        """
        published = self._published(kind, task_id)
        if published is None:
            raise BoomspecError(f"{kind} {task_id[:12]} is not in the store {self.address}", hint="run again")
        text, record = published
        if record is None:
            raise self._damaged(kind, task_id, f"{RECORD} is unreadable")
        if holds(self.root, (kind, task_id), record):
            return self.path(kind, task_id)
        with alone_here(self.root, kind, task_id):
            if not sound(self.root, (kind, task_id), record):  # another process may have fetched it meanwhile
                self._download(kind, task_id, text, record)
        return self.path(kind, task_id)

    def read(self, kind: str, task_id: str, name: str, *, most: int | None = None) -> bytes:
        """The contents of one file of an artifact; only it is downloaded, or its first `most` bytes."""
        published = self._published(kind, task_id)
        record = published[1] if published is not None else None
        entry = next((file for file in record["files"] if file["path"] == name), None) if record is not None else None
        if record is None or entry is None:
            raise FileNotFoundError(errno.ENOENT, "not in the store", f"{self.address}/{kind}/{task_id}/{name}")
        data = self.bucket.read(
            payload_name((kind, task_id), record, name), most=min(most, entry["bytes"]) if most else None
        )
        if most is None and (len(data) != entry["bytes"] or sha256(data).hexdigest() != entry["sha256"]):
            raise self._damaged(kind, task_id, f"{name} does not match its checksum")
        return data

    def ids(self, kind: str) -> set[str]:
        return self.bucket.names(kind)

    def fetch_all(self, tasks: Iterable[Task]) -> None:
        with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
            for _ in pool.map(lambda task: self.fetch(*task), dict.fromkeys(tasks)):
                pass

    def record(self, kind: str, task_id: str) -> dict[str, Any] | None:
        published = self._published(kind, task_id)
        return published[1] if published is not None else None

    def damage(self, kind: str, task_id: str, *, checksums: bool = False) -> str | None:
        published = self._published(kind, task_id)
        while published is not None:
            there = self.bucket.entries(f"{kind}/{task_id}")
            damage = self._damage(kind, task_id, published[1], there, checksums=checksums)
            before, published = published, self._published(kind, task_id) if damage is not None else published
            if before == published:
                return damage
        return None  # or it was made anew, and looked at again

    def records(
        self, tasks: Iterable[Task], *, unread: dict[Task, BoomspecError] | None = None
    ) -> dict[Task, dict[str, Any]]:
        tasks = dict.fromkeys(tasks)
        read = self._records(self._recorded(tasks, self._there({kind for kind, _ in tasks})))
        return {task: record for task, record in read.items() if record is not None}

    def newest(self, kind: str, count: int) -> list[dict[str, Any]]:
        found = {}
        for name, entry in self.bucket.entries(kind).items():
            task, _, file = name.removeprefix(f"{kind}/").partition("/")
            if file == RECORD:
                found[kind, task] = entry
        newest = sorted(found, key=lambda task: found[task].modified, reverse=True)[:count]
        return [record for record in self._records({task: found[task] for task in newest}).values() if record]

    def survey(
        self, tasks: Iterable[Task], *, checksums: bool = False, unread: dict[Task, BoomspecError] | None = None
    ) -> dict[Task, str | None]:
        """As `Store.survey`. A bucket is listed as a whole, so that nothing is `unread`: it fails or not."""
        tasks = dict.fromkeys(tasks)
        judged = self.judged(tasks, self._there({kind for kind, _ in tasks}), checksums=checksums)
        return {task: damage for task, (damage, _) in judged.items()}

    def judged(
        self, tasks: Iterable[Task], there: Mapping[str, Entry], *, checksums: bool = False
    ) -> dict[Task, tuple[str | None, dict[str, Any] | None]]:
        """The damage and the record of those tasks that have one in the listing `there`."""
        found: dict[Task, tuple[str | None, dict[str, Any] | None]] = {}
        for task, record in self._records(self._recorded(tasks, there)).items():
            damage = self._damage(*task, record, there, checksums=checksums)
            if damage is not None:  # or it was made anew since the listing
                damage, record = self.damage(*task, checksums=checksums), self.record(*task)
                if damage is None and record is None:
                    continue
            found[task] = damage, record
        return found

    def run_folders(self, *, beginning: str = "") -> list[Path]:
        """Folders of this machine with what tells of the runs; those that are only here yet are among them."""
        mark(self.root, self.address)
        there = pull_runs(self.bucket, self.root, beginning=beginning)
        here = super().run_folders(beginning=beginning)
        return [path for path in here if path.name in there or is_running(path)]

    def run_called(self, name: str) -> Path | None:
        mark(self.root, self.address)
        there = pull_run(self.bucket, self.root, name)
        folder = super().run_called(name)
        return folder if folder is not None and (there or is_running(folder)) else None

    def discard(self, kind: str, task_id: str) -> None:
        """Remove a damaged artifact: its record first, so that nobody reads what is half deleted."""
        there = self.bucket.entries(f"{kind}/{task_id}")
        self.bucket.delete([record_name((kind, task_id))])
        self.bucket.delete(name for name in there if name != record_name((kind, task_id)))
        super().discard(kind, task_id)

    @contextmanager
    def claimed(
        self, kind: str, task_id: str, *, owner: str = "", waiting: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Hold the task: on this machine by a lock, beyond it by a lease."""
        with super().claimed(kind, task_id, owner=owner, waiting=waiting):
            name = f"{kind}/.{task_id}{LEASE}"
            with leases.held(self.bucket, name, owner=owner, waiting=waiting):
                yield

    def publish(
        self,
        workspace: Workspace,
        kind: str,
        task_id: str,
        identity: dict[str, Any],
        provenance: dict[str, Any],
        *,
        files: list[dict[str, Any]] | None = None,
    ) -> Path:
        """Upload the payload, then the record; then keep it here. Returns this machine's folder of the artifact."""
        attempt = secrets.token_hex(8)
        files = listed_files(workspace.path) if files is None else files
        place = f"{kind}/{task_id}/{attempt}"
        self.bucket.upload_all((workspace.path / file["path"], f"{place}/{file['path']}") for file in files)
        there = self.bucket.entries(place)
        for file in files:
            if (entry := there.get(f"{place}/{file['path']}")) is None or entry.size != file["bytes"]:
                raise BoomspecError(f"store {self.address}: lost {file['path']} of {kind} {task_id[:12]}")
        text = record_text(task_id, identity, files, provenance, attempt=attempt)
        if self.record_is_ours(kind, task_id, text):
            (workspace.path / RECORD).write_text(text, encoding="utf-8")
            flush(workspace.path / RECORD)
            with alone_here(self.root, kind, task_id):
                super().discard(kind, task_id)  # of an artifact that was discarded at the URL
                final = self._keep(workspace.path, kind, task_id, files)
        else:
            self.bucket.delete(there)
            final = self.fetch(kind, task_id)
        shutil.rmtree(workspace.resume, ignore_errors=True)
        self.bucket.delete(self.bucket.entries(f"{kind}/.{task_id}{RESUME}"))
        return final

    def _there(self, kinds: Iterable[str]) -> dict[str, Entry]:
        """All objects of some kinds: a thousand with each request, as S3 lists them."""
        kinds = list(kinds)
        if len(kinds) > 1:  # a folder that is not there would cost three requests
            kinds = sorted(self.bucket.names().intersection(kinds))
        with ThreadPoolExecutor(max(1, len(kinds))) as pool:
            listings = list(pool.map(self.bucket.entries, kinds))
        return {name: entry for listing in listings for name, entry in listing.items()}

    def _recorded(self, tasks: Iterable[Task], there: Mapping[str, Entry]) -> dict[Task, Entry]:
        return {task: entry for task in tasks if (entry := there.get(record_name(task))) is not None}

    def _records(self, entries: dict[Task, Entry]) -> dict[Task, dict[str, Any] | None]:
        return read_records(self.bucket, entries, self.root / "records")

    def record_is_ours(self, kind: str, task_id: str, text: str) -> bool:
        """Write the record, unless another writer has published the artifact and it is whole."""
        name = record_name((kind, task_id))
        if self.bucket.write(name, text.encode("utf-8"), create=True):
            return True
        if self.damage(kind, task_id) is None and self.has(kind, task_id):
            return False
        self.bucket.write(name, text.encode("utf-8"))
        return True

    def _published(self, kind: str, task_id: str) -> tuple[str, dict[str, Any] | None] | None:
        """The record at the URL: its text, and what it says where it can be read. None where there is none."""
        try:
            data = self.bucket.read(record_name((kind, task_id)))
        except FileNotFoundError:
            return None
        return read_record(data)

    def _download(self, kind: str, task_id: str, text: str, record: dict[str, Any]) -> None:
        """Bring an artifact here. What is in the working folder becomes the artifact once all of it is right."""
        parent = self.root / kind
        parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(parent, f".{task_id}.") as folder:
            files = record["files"]
            items = [(payload_name((kind, task_id), record, f["path"]), folder / f["path"], f["bytes"]) for f in files]
            try:
                digests = self.bucket.download_all(items)
            except FileNotFoundError as error:
                raise self._damaged(kind, task_id, f"a file is missing: {error}") from error
            for file, digest in zip(files, digests, strict=True):
                if digest != file["sha256"]:
                    raise self._damaged(kind, task_id, f"{file['path']} does not match its checksum")
            (folder / RECORD).write_text(text, encoding="utf-8")
            flush(folder / RECORD)
            super().discard(kind, task_id)
            self._keep(folder, kind, task_id, files)

    def _keep(self, folder: Path, kind: str, task_id: str, files: list[dict[str, Any]]) -> Path:
        """Make a folder whose files have just been checked this machine's copy."""
        remember(self.root, (kind, task_id), folder, files)
        return self._rename(folder, kind, task_id)

    def _damage(
        self, kind: str, task_id: str, record: dict[str, Any] | None, there: Mapping[str, Entry], *, checksums: bool
    ) -> str | None:
        """How the objects `there` differ from what their record says. With `checksums` a copy here that does goes."""
        if record is None:
            return f"{RECORD} is missing or unreadable"
        for file in record["files"]:
            place = payload_name((kind, task_id), record, file["path"])
            if (entry := there.get(place)) is None:
                return f"{file['path']} is missing"
            if entry.size != file["bytes"]:
                return f"{file['path']} has {entry.size} bytes, its record says {file['bytes']}"
            if checksums and self.bucket.digest(place, entry.size) != file["sha256"]:
                return f"{file['path']} does not match its checksum"
        if checksums and self.path(kind, task_id).exists():
            with alone_here(self.root, kind, task_id):
                if not sound(self.root, (kind, task_id), record, through=True):
                    super().discard(kind, task_id)  # it is fetched again
        return None

    def _damaged(self, kind: str, task_id: str, damage: str) -> BoomspecError:
        message = f"{kind} {task_id[:12]} in the store {self.address} is damaged: {damage}"
        return BoomspecError(message, hint="boomspec run SPEC --verify makes it anew")
