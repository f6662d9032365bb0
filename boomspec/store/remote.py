"""A store at a URL: objects of S3, Google Cloud Storage or Azure, worked on in a cache on this machine.

    <url>/<kind>/<task id>/<attempt>/...        the payload that one writer has uploaded
    <url>/<kind>/<task id>/artifact.json        the record, which names its attempt; written last
    <url>/<kind>/.<task id>.resume/             checkpoints of a long task
    <url>/<kind>/.<task id>.lease               who works on a task (`leases.py`)
    <url>/runs/<name>-<graph id>/               copies of a run's files
    <url>/made_of/<kind>/<key>/<task id>        the index for early cut-off (`made_of.py`)
    <url>/.in-use/<token>                       who uses the store (`leases.py`)

There is no rename. The record is one object, created only where there is none: two writers of one task never mix their
files, and the second one finds the first one's artifact and drops its own. A killed writer leaves an attempt that no
record names; nobody reads it, and `gc` deletes it.
"""

import errno
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.files import RESUME, write_atomically
from boomspec.store import leases
from boomspec.store import record as records
from boomspec.store.bucket import Bucket, ObjectInfo
from boomspec.store.folder import FolderStore
from boomspec.store.local_cache import CACHE, Listing, LocalCache, parsed_record, payload_object, record_object
from boomspec.store.lock import IN_USE, Waiting, is_running, nothing
from boomspec.store.record import RECORD, ArtifactId, Damages, Deletable, Files, Json, Record, Report, Unread, Workspace

_PROBE = ".probe"
_KEYS_ONE_BY_ONE = 8  # for more keys all of a kind are listed, a thousand with each request
_HIDDEN = re.compile(r"\.(?P<task>[0-9a-f]{64})\.(?P<rest>resume|lease)")


class RemoteStore(FolderStore):
    """Artifacts at a URL. `root` is the local cache, which may be deleted while nothing runs: tasks work there."""

    is_remote = True

    def __init__(self, url: str, *, report: Report | None = None, retry_seconds: float | None = None) -> None:
        self.bucket = Bucket(url, report=report, retry_seconds=retry_seconds)
        self.address = self.bucket.url
        self._cache = LocalCache(self.bucket)
        self.root = self._cache.root

    def check_writable(self) -> None:
        try:
            self._cache.check_writable()
            self._cache.create()
        except (BoomspecError, OSError) as error:
            message = f"{self.root}, where this machine keeps what it has of {self.address}: {error}".partition("\n")[0]
            raise BoomspecError(message, hint=f"{CACHE} names another folder") from error
        name = f"{_PROBE}/{secrets.token_hex(8)}"
        self.bucket.write(name, b"boomspec")
        if self.bucket.read(name) != b"boomspec":
            raise BoomspecError(f"store {self.address}: does not give back what was written")
        self.bucket.delete([name])

    def check_is_store(self, *, may_be_absent: bool = False) -> None:
        names = self.bucket.names()
        if names and not names & {*records.stored_kinds(), IN_USE, records.RUNS}:
            hint = "say where it is: --store FOLDER (by default ./boomspec-store)"
            raise BoomspecError(f"{self.address} is not a store: it holds neither artifacts nor runs", hint=hint)

    def ids(self, kind: str) -> set[str]:
        return self.bucket.names(kind)

    def record(self, kind: str, task_id: str) -> Record | None:
        return parsed_record(self._cache.record_data((kind, task_id)))

    def records(self, tasks: Iterable[ArtifactId], *, unread: Unread = None) -> dict[ArtifactId, Record]:
        tasks = dict.fromkeys(tasks)
        found = self._cache.remote_records(tasks, self._cache.listing(tasks))
        return {task: record for task, record in found.items() if record is not None}

    def newest(self, kind: str, count: int) -> list[Record]:
        listing = self.bucket.entries(kind)
        ids = {parts[1] for name in listing if (parts := name.split("/"))[2:] == [RECORD]}
        newest = sorted(ids, key=lambda i: listing[record_object((kind, i))].modified, reverse=True)[:count]
        found = self._cache.remote_records([(kind, task_id) for task_id in newest], listing)
        return [record for record in found.values() if record is not None]

    def judge(self, task: ArtifactId, *, checksums: bool) -> tuple[str | None, Record | None]:
        return self._cache.judged_now(task, checksums=checksums)

    def survey(self, tasks: Iterable[ArtifactId], *, checksums: bool = False, unread: Unread = None) -> Damages:
        """Nothing is ever `unread`: kinds are listed as a whole, which fails or not."""
        tasks = dict.fromkeys(tasks)
        judged = self._cache.judged(tasks, self._cache.listing(tasks), checksums=checksums)
        return {task: damage for task, (damage, _) in judged.items()}

    def fetch(self, kind: str, task_id: str) -> Path:
        """Download the artifact, unless the cache has it. Raises BoomspecError where it is missing or damaged."""
        task, data = (kind, task_id), self._cache.record_data((kind, task_id))
        if data is None:
            raise BoomspecError(f"{kind} {task_id[:12]} is not in the store {self.address}", hint="run again")
        if (record := parsed_record(data)) is None:
            raise self._damaged(task, f"{RECORD} is unreadable")
        if not self._cache.is_valid(task, record):
            with self._cache.locked(task):
                if not self._cache.is_valid(task, record, read=True):  # another process may have fetched it since
                    self._download(task, data, record)
        return self.path(kind, task_id)

    def check_before_fetch(self, tasks: Iterable[ArtifactId]) -> None:
        pass  # `fetch` checks each, and listing all of a kind takes long

    def fetch_files(self, task: ArtifactId, names: Iterable[str]) -> Path:
        """Downloads nothing else, such as the model beside the numbers of a training."""
        folder = self.root / "cache" / "numbers" / task[1]
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            with suppress(FileNotFoundError):
                data = self.read(*task, name)
                write_atomically(folder / name, data)
        return folder

    def read(self, kind: str, task_id: str, name: str, *, most: int | None = None) -> bytes:
        task, record = (kind, task_id), self.record(kind, task_id)
        file = next((file for file in record["files"] if file["path"] == name), None) if record is not None else None
        if record is None or file is None:
            raise FileNotFoundError(errno.ENOENT, "not in the store", f"{self.address}/{kind}/{task_id}/{name}")
        data = self.bucket.read(payload_object(task, record, name), most=min(most, file["bytes"]) if most else None)
        if most is None and (len(data) != file["bytes"] or sha256(data).hexdigest() != file["sha256"]):
            raise self._damaged(task, records.checksum_damage(file))
        return data

    def publish(self, workspace: Workspace, kind: str, task_id: str, identity: Json, provenance: Json) -> Path:
        """Upload the payload, then the record; then keep the artifact in the cache."""
        task, attempt, files = (kind, task_id), secrets.token_hex(8), records.listed_files(workspace.path)
        place = f"{kind}/{task_id}/{attempt}"
        self.bucket.upload_all((workspace.path / file["path"], f"{place}/{file['path']}") for file in files)
        record = records.record_text(task_id, identity, files, provenance, attempt=attempt).encode()
        if self._write_record(task, place, files, record):
            with self._cache.locked(task):
                self._cache.keep(workspace.path, task, record, files)
        else:
            self.fetch(kind, task_id)
        self._delete_checkpoints(task)
        return self.path(kind, task_id)

    def publish_copy(self, task: ArtifactId, of: str, record: Record, identity: Json, provenance: Json) -> bool:
        """The objects are copied within the bucket; nothing is transferred to this machine."""
        attempt, files = secrets.token_hex(8), record["files"]
        place, source = f"{task[0]}/{task[1]}/{attempt}", (task[0], of)
        pairs = ((payload_object(source, record, file["path"]), f"{place}/{file['path']}") for file in files)
        self.bucket.copy_all(pairs)
        text = records.record_text(task[1], identity, files, provenance, attempt=attempt)
        self._write_record(task, place, files, text.encode())
        self._delete_checkpoints(task)
        return True

    def discard(self, kind: str, task_id: str) -> None:
        """The record goes first, so that nobody reads what is half deleted."""
        record, found = record_object((kind, task_id)), self.bucket.entries(f"{kind}/{task_id}")
        self.bucket.delete([record])
        self.bucket.delete(name for name in found if name != record)
        self._cache.discard(kind, task_id)

    @contextmanager
    def claimed(self, kind: str, task_id: str, *, owner: str = "", waiting: Waiting = nothing) -> Iterator[None]:
        """By a lock on this machine, and by a lease among machines."""
        lease = leases.held(self.bucket, f"{kind}/.{task_id}.lease", owner=owner, waiting=waiting)
        with super().claimed(kind, task_id, waiting=waiting), lease:
            yield

    @contextmanager
    def using(
        self, *, run: Path | None = None, waiting: Waiting = nothing, elsewhere: Report = nothing
    ) -> Iterator[None]:
        with super().using(run=run, waiting=waiting), leases.in_use(self.bucket, run, waiting, elsewhere):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with super().alone(), leases.alone(self.bucket):
            yield

    def running_elsewhere(self) -> frozenset[str]:
        return frozenset(str(lease["run"]) for lease in leases.living(self.bucket).values() if lease.get("run"))

    def run_folders(self, *, beginning: str = "") -> list[Path]:
        """Downloads what lists of runs need. Includes runs that execute here and are not uploaded yet."""
        remote = self._cache.download_runs(beginning)
        found = super().run_folders(beginning=beginning)
        return [path for path in found if path.name in remote or is_running(path)]

    def run_called(self, name: str) -> Path | None:
        remote = self._cache.download_run(name)
        folder = super().run_called(name)
        return folder if folder is not None and (remote or is_running(folder)) else None

    def run_address(self, folder: Path) -> str:
        return f"{self.address}/{records.RUNS}/{folder.name}"

    def remote_copy(self, folder: Path) -> Bucket:
        return self.bucket.below(folder.relative_to(self.root).as_posix())

    def note_key(self, kind: str, key: str, task_id: str) -> None:
        # Not every store likes empty objects.
        self.bucket.write(f"{records.MADE_OF}/{kind}/{key}/{task_id}", f"{task_id}\n".encode())

    def ids_by_key(self, kind: str, keys: Iterable[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {key: [] for key in keys}
        if len(found) <= _KEYS_ONE_BY_ONE:
            found = {key: sorted(self.bucket.names(f"{records.MADE_OF}/{kind}/{key}")) for key in found}
        else:
            for name in self.bucket.entries(f"{records.MADE_OF}/{kind}"):
                key, task_id = name.split("/")[-2:]
                if key in found:
                    found[key].append(task_id)
        return {key: ids for key, ids in found.items() if ids}

    def stored(self, *, cache: bool) -> Iterator[Deletable]:
        """While anybody uses the store, an attempt, checkpoints or an upload may be theirs, and are left out."""
        living, there = leases.living(self.bucket), self.bucket.names()
        busy = leases.others_work(self.bucket)
        for kind in (kind for kind in records.stored_kinds() if kind in there):
            found = self._stored_of(kind, self.bucket.entries(kind))
            yield from (item for item in found if item.what == "artifact" or not busy)
        if not busy:
            leftover = partial(self._objects, "leftover", reason="its process is dead")
            for entries in (self.bucket.entries(folder) for folder in (IN_USE, _PROBE) if folder in there):
                yield from (leftover(name, {name: info}) for name, info in entries.items() if name not in living)
            for name, upload in self.bucket.unfinished().items():
                url, reason = f"{self.address}/{name}", "an upload that never ended"
                yield Deletable("leftover", url, name.partition("/")[0], reason=reason, objects=(name,), upload=upload)
        if cache:
            yield from self._cache.cached()

    def _stored_of(self, kind: str, listing: dict[str, ObjectInfo]) -> Iterator[Deletable]:
        groups: dict[str, dict[str, ObjectInfo]] = {}
        for name, entry in listing.items():
            groups.setdefault(name.split("/")[1], {})[name] = entry
        leftover = partial(self._objects, "leftover", reason="its process is dead")
        ids = [(kind, name) for name in groups if records.is_task_id(name)]
        judged = self._cache.judged(ids, listing, checksums=False)
        for name, group in groups.items():
            place = f"{kind}/{name}"
            if records.is_task_id(name):
                if (recorded := record_object((kind, name))) in group:
                    damage, record = judged.get((kind, name), (None, None))
                    if record is None:
                        with suppress(FileNotFoundError):
                            if records.is_newer_version(self.bucket.read(recorded)):
                                continue
                    own = f"{place}/{record['attempt']}/" if record is not None else f"{place}/"
                    artifact = {n: e for n, e in group.items() if n == recorded or n.startswith(own)}
                    yield self._objects("artifact", place, artifact, kind, task=name, damage=damage, first=recorded)
                    group = {n: e for n, e in group.items() if n not in artifact}
                if group:
                    yield leftover(place, group, kind)
            elif (hidden := _HIDDEN.fullmatch(name)) is not None and hidden["rest"] == "lease":
                yield leftover(place, group, kind)
            elif hidden is not None:
                finished = judged.get((kind, hidden["task"]), ("", None))[0] is None
                reason = "its task is finished" if finished else ""
                yield self._objects("checkpoints", place, group, kind, task=hidden["task"], reason=reason)

    def stored_run(self, folder: Path, reason: str) -> Iterator[Deletable]:
        place = f"{records.RUNS}/{folder.name}"
        yield self._objects("run", place, self.bucket.entries(place), first=f"{place}/graph.json", reason=reason)
        if folder.is_dir():
            yield Deletable("cache", folder, reason="what was brought here of it")

    def dead_keys(self, kind: str, living: Set[str]) -> Iterator[Deletable]:
        listing = self.bucket.entries(f"{records.MADE_OF}/{kind}") if not leases.others_work(self.bucket) else {}
        if dead := {name: entry for name, entry in listing.items() if name.rpartition("/")[2] not in living}:
            yield self._objects("leftover", f"{records.MADE_OF}/{kind}", dead, kind, reason="its artifact is gone")

    def remove(self, stored: Deletable) -> None:
        if stored.upload:
            self.bucket.abort(stored.objects[0], stored.upload)
        elif isinstance(stored.path, Path):
            super().remove(stored)
        else:
            self.bucket.delete(stored.objects[:1])
            self.bucket.delete(stored.objects[1:])

    def _objects(
        self, what: Any, place: str, group: Listing, kind: str = "", *, first: str = "", **more: Any
    ) -> Deletable:
        """A group of objects, of which `first` is deleted first: without it nobody looks for the others."""
        names = tuple(sorted(group, key=lambda name: (name != first, name)))
        size = sum(entry.size for entry in group.values())
        return Deletable(what, f"{self.address}/{place}", kind, bytes=size, objects=names, **more)

    def _write_record(self, task: ArtifactId, place: str, files: Files, record: bytes) -> bool:
        """Write the record of uploaded files. Deletes them instead where another writer has published meanwhile."""
        there = self.bucket.entries(place)
        for file in files:
            if (entry := there.get(f"{place}/{file['path']}")) is None or entry.size != file["bytes"]:
                raise BoomspecError(f"store {self.address}: lost {file['path']} of {task[0]} {task[1][:12]}")
        name = record_object(task)
        if not self.bucket.write(name, record, create=True):
            if self.is_whole(*task):
                self.bucket.delete(there)
                return False
            self.bucket.write(name, record)
        return True

    def _delete_checkpoints(self, task: ArtifactId) -> None:
        shutil.rmtree(self.resume(*task), ignore_errors=True)
        self.bucket.delete(self.bucket.entries(f"{task[0]}/.{task[1]}{RESUME}"))

    def _download(self, task: ArtifactId, data: bytes, record: Record) -> None:
        """Download an artifact into a workspace, and keep it in the cache once all of it is right."""
        with self.workspace(*task) as workspace:
            folder, files = workspace.path, record["files"]
            paths = [(file["path"], file["bytes"]) for file in files]
            try:
                digests = self.bucket.download_all(
                    (payload_object(task, record, path), folder / path, size) for path, size in paths
                )
            except FileNotFoundError as error:
                raise self._damaged(task, f"a file is missing: {error}") from error
            for file, digest in zip(files, digests, strict=True):
                if digest != file["sha256"]:
                    raise self._damaged(task, records.checksum_damage(file))
            self._cache.keep(folder, task, data, files)

    def _damaged(self, task: ArtifactId, damage: str) -> BoomspecError:
        message = f"{task[0]} {task[1][:12]} in the store {self.address} is damaged: {damage}"
        return BoomspecError(message, hint="boomspec run SPEC --verify makes it anew")
