"""A store in a folder: one folder per artifact, named by its task id.

    <store>/<kind>/<task id>/                the payload and artifact.json
    <store>/<kind>/.<task id>.<random>/      the workspace of a task; renamed to the above when it is done
    <store>/<kind>/.<task id>.<random>.lock  locked by the process that works there; removed with the workspace
    <store>/<kind>/.<task id>.resume/        checkpoints of a long task, removed when it is done
    <store>/<kind>/.<task id>.resume/.lock   locked by the process that writes them
    <store>/runs/<name>-<graph id>/          graph.json, events, logs and the report of a run
    <store>/made_of/<kind>/<key>/<task id>   the index for early cut-off (`made_of.py`)
    <store>/cache/                           caches of libraries; may be deleted at any time

artifact.json is written last in the workspace, and one rename publishes both. So its existence means success, a killed
process never leaves a broken artifact, and two writers of one task are harmless: the second finds the first one's
artifact and drops its own. Only what is known to be damaged is ever discarded.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

from boomspec.core.errors import BoomspecError, redact
from boomspec.core.files import (
    ABSENT,
    DISCARDED,
    LOCK,
    RESUME,
    claimed_folder,
    discard,
    flush,
    is_in_use,
    lock,
    locked_folder,
    read_json,
    stat_of,
    unreadable,
)
from boomspec.store.interface import (
    MADE_OF,
    Deletable,
    Json,
    Report,
    Store,
    Unread,
    Waiting,
    Workspace,
    nothing,
    stored_kinds,
)
from boomspec.store.lock import IN_USE, RUNNING, in_use_error, is_running, shared_lock
from boomspec.store.record import (
    RECORD,
    ArtifactId,
    Files,
    Record,
    damage_of_files,
    is_newer_version,
    is_record,
    is_task_id,
    listed_files,
    record_text,
)

_T = TypeVar("_T")
_SAMPLE = 400  # artifacts of one kind, among which `newest` looks
_HIDDEN = re.compile(r"\.(?P<task>[0-9a-f]{64})\.(?P<rest>.+)")
_DISCARDED = re.compile(rf"\..+{re.escape(DISCARDED)}[0-9a-f]+")


class FolderStore(Store):
    """A folder of artifacts, on one machine or on a volume that all machines share."""

    is_remote = False

    def __init__(self, root: Path | str) -> None:
        if "://" in str(root):
            raise BoomspecError(f"store '{redact(str(root))}': is a URL, not a folder", hint="give a folder")
        self.root = Path(root).absolute()
        self.address = str(self.root)

    def check_writable(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as file:
                lock(file.fileno(), self.root)
        except OSError as error:
            raise BoomspecError(
                f"store {self.root}: cannot be written: {error.strerror}", hint="choose another folder with --store"
            ) from error

    def check_is_store(self, *, may_be_absent: bool = False) -> None:
        problem = None
        if not self.root.exists():
            problem = None if may_be_absent else f"there is no store {self.root}"
        elif not self.root.is_dir():
            problem = f"{self.root} is a file, not a store"
        elif any(self.root.iterdir()) and not self._has_artifacts_or_runs():
            problem = f"{self.root} is not a store: it holds neither artifacts nor runs"
        if problem is not None:
            raise BoomspecError(problem, hint="say where it is: --store FOLDER (by default ./boomspec-store)")

    def _has_artifacts_or_runs(self) -> bool:
        if (self.root / IN_USE).is_file() or any((self.root / "runs").glob("*/graph.json")):
            return True
        return any(is_task_id(name.lstrip(".")[:64]) for kind in stored_kinds() for name in _names(self.root / kind))

    def ids(self, kind: str) -> set[str]:
        try:
            with os.scandir(self.root / kind) as entries:
                return {entry.name for entry in entries}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise unreadable(self.root / kind, error) from error

    def record(self, kind: str, task_id: str) -> Record | None:
        path = self.path(kind, task_id) / RECORD
        try:
            data = read_json(path)
        except (*ABSENT, ValueError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        return data if is_record(data) else None

    def records(self, tasks: Iterable[ArtifactId], *, unread: Unread = None) -> dict[ArtifactId, Record]:
        found = _of_each(tasks, lambda task: self.record(*task), unread)
        return {task: record for task, record in found.items() if record is not None}

    def newest(self, kind: str, count: int) -> list[Record]:
        try:
            with os.scandir(self.root / kind) as entries:
                folders = [entry for entry in islice(entries, _SAMPLE) if not entry.name.startswith(".")]
                newest = sorted(folders, key=lambda entry: entry.stat().st_mtime, reverse=True)[:count]
        except OSError:
            return []
        return list(self.records([(kind, entry.name) for entry in newest], unread={}).values())

    def damage(self, kind: str, task_id: str, *, checksums: bool = False) -> str | None:
        folder = self.path(kind, task_id)
        record = self.record(kind, task_id)
        if record is None and stat_of(folder) is not None:
            record = self.record(kind, task_id)  # it may have been published since
            if record is None:
                return f"{RECORD} is missing or unreadable"
        return None if record is None else damage_of_files(record, folder, checksums=checksums)

    def survey(
        self, tasks: Iterable[ArtifactId], *, checksums: bool = False, unread: Unread = None
    ) -> dict[ArtifactId, str | None]:
        ids = cache(self.ids)

        def survey(task: ArtifactId) -> list[str | None]:
            if task[1] not in ids(task[0]):
                return []
            damage = self.damage(*task, checksums=checksums)
            return [damage] if damage is not None or self.has(*task) else []

        return {task: found[0] for task, found in _of_each(tasks, survey, unread).items() if found}

    def fetch(self, kind: str, task_id: str) -> Path:
        return self.path(kind, task_id)

    def fetch_all(self, tasks: Iterable[ArtifactId]) -> dict[ArtifactId, Path]:
        return {task: self.path(*task) for task in tasks}

    def check_before_fetch(self, tasks: Iterable[ArtifactId]) -> None:
        tasks = list(tasks)
        found = self.survey(tasks)
        for kind, task_id in tasks:
            if (damage := found.get((kind, task_id), "it is not in the store")) is not None:
                raise BoomspecError(f"{kind} {task_id[:12]} cannot be used: {damage}", hint="run again")

    def fetch_files(self, task: ArtifactId, names: Iterable[str]) -> Path:
        return self.path(*task)

    def read(self, kind: str, task_id: str, name: str, *, most: int | None = None) -> bytes:
        with (self.path(kind, task_id) / name).open("rb") as file:
            return file.read(-1 if most is None else most)

    @contextmanager
    def workspace(self, kind: str, task_id: str) -> Iterator[Workspace]:
        parent = self.root / kind
        parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(parent, f".{task_id}.") as folder:
            yield Workspace(folder, self.resume(kind, task_id))

    def publish(self, workspace: Workspace, kind: str, task_id: str, identity: Json, provenance: Json) -> Path:
        """Compute checksums, write the record, and rename the workspace into place."""
        return self._publish(workspace, (kind, task_id), identity, provenance, listed_files(workspace.path))

    def _publish(self, workspace: Workspace, task: ArtifactId, identity: Json, provenance: Json, files: Files) -> Path:
        final = self.place(workspace.path, *task, record_text(task[1], identity, files, provenance).encode())
        shutil.rmtree(workspace.resume, ignore_errors=True)
        return final

    def place(self, folder: Path, kind: str, task_id: str, record: bytes) -> Path:
        """Write the record into a folder with the payload and make it the artifact, unless there is a whole one."""
        (folder / RECORD).write_bytes(record)
        flush(folder / RECORD)
        folder.chmod(0o755)  # a workspace is private, a store is shared
        final = self.path(kind, task_id)
        while True:
            try:
                folder.rename(final)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if self.damage(kind, task_id) is not None:
                self.discard(kind, task_id)
            elif self.has(kind, task_id):
                break
            # Else another process has discarded it since, and a third may have published again.
        flush(final.parent)
        return final

    def publish_copy(self, task: ArtifactId, of: str, record: Record, identity: Json, provenance: Json) -> bool:
        """The two artifacts share their files where the file system has hard links."""
        with self.workspace(*task) as workspace:
            for file in record["files"]:
                target = workspace.path / file["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(self.path(task[0], of) / file["path"], target)
            for folder in [path for path in workspace.path.rglob("*") if path.is_dir()]:
                flush(folder)
            if damage_of_files(record, workspace.path, checksums=False) is not None:
                return False
            self._publish(workspace, task, identity, provenance, record["files"])
        return True

    def discard(self, kind: str, task_id: str) -> None:
        with suppress(FileNotFoundError):
            discard(self.path(kind, task_id))

    def claimed(
        self, kind: str, task_id: str, *, owner: str = "", waiting: Waiting = nothing
    ) -> AbstractContextManager[None]:
        """Lock the task's resume folder, so that two runs never write the same checkpoints."""
        return claimed_folder(self.resume(kind, task_id), waiting)

    @contextmanager
    def using(
        self, *, run: Path | None = None, waiting: Waiting = nothing, elsewhere: Report = nothing
    ) -> Iterator[None]:
        with ExitStack() as held:
            held.enter_context(shared_lock(self.root / IN_USE, waiting))
            if run is not None:
                held.enter_context(shared_lock(run / RUNNING, nothing))
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        handle = os.open(self.root / IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not lock(handle, self.root / IN_USE):
                raise in_use_error(self.root, [run.name for run in (self.root / "runs").glob("*") if is_running(run)])
            yield
        finally:
            os.close(handle)

    def running_elsewhere(self) -> frozenset[str]:
        return frozenset()

    def run_folders(self, *, beginning: str = "") -> list[Path]:
        runs = self.root / "runs"
        found = sorted(runs.iterdir()) if runs.exists() else []
        found = [path for path in found if path.name.startswith(beginning) and not path.name.startswith(".")]
        return [path for path in found if path.is_dir() or path.is_symlink()]

    def run_called(self, name: str) -> Path | None:
        folder = self.root / "runs" / name
        return folder if folder.is_dir() else None

    def run_address(self, folder: Path) -> str:
        return str(folder)

    def remote_copy(self, folder: Path) -> None:
        return None

    def note_key(self, kind: str, key: str, task_id: str) -> None:
        file = self.root / MADE_OF / kind / key / task_id
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def ids_by_key(self, kind: str, keys: Iterable[str]) -> dict[str, list[str]]:
        found = {key: _names(self.root / MADE_OF / kind / key) for key in dict.fromkeys(keys)}
        return {key: ids for key, ids in found.items() if ids}

    def stored(self, *, cache: bool) -> Iterator[Deletable]:
        for kind in stored_kinds():
            for path in _entries(self.root / kind):
                if (hidden := _HIDDEN.fullmatch(path.name)) is not None:
                    if not (path.is_dir() or path.name.endswith(LOCK)) or is_in_use(path):
                        continue
                    if f".{hidden['rest']}" != RESUME:
                        yield Deletable("leftover", path, kind, reason="its process is dead")
                    else:
                        reason = "its task is finished" if self._is_whole(kind, hidden["task"]) else ""
                        yield Deletable("checkpoints", path, kind, hidden["task"], reason)
                elif is_task_id(path.name) and not _is_newer_version(path / RECORD):
                    with suppress(BoomspecError):  # what cannot be read may be whole
                        yield Deletable("artifact", path, kind, path.name, damage=self.damage(kind, path.name))
        for folder in (self.root, self.root / "runs"):
            discarded = (path for path in _entries(folder) if _DISCARDED.fullmatch(path.name))
            yield from (Deletable("leftover", path, reason="of an earlier gc") for path in discarded)
        if cache and (self.root / "cache").is_dir():
            yield Deletable("cache", self.root / "cache", reason="libraries fill it again")

    def _is_whole(self, kind: str, task_id: str) -> bool:
        try:
            return self.has(kind, task_id) and self.damage(kind, task_id) is None
        except BoomspecError:
            return False

    def stored_run(self, folder: Path, reason: str) -> Iterator[Deletable]:
        yield Deletable("run", folder, reason=reason)

    def dead_keys(self, kind: str, living: Set[str]) -> Iterator[Deletable]:
        for key in _entries(self.root / MADE_OF / kind):
            ids = [path.name for path in _entries(key)]
            dead = [i for i in ids if i not in living and not is_in_use(self.resume(kind, i))]
            for path in [key] if dead == ids else [key / i for i in dead]:
                yield Deletable("leftover", path, kind, reason="its artifact is gone")

    def remove(self, stored: Deletable) -> None:
        discard(Path(stored.path), ignore_errors=False)


def _of_each(tasks: Iterable[ArtifactId], read: Callable[[ArtifactId], _T], unread: Unread) -> dict[ArtifactId, _T]:
    found = {}
    for task in tasks:
        try:
            found[task] = read(task)
        except BoomspecError as error:
            if unread is None:
                raise
            unread[task] = error
    return found


def _link(source: Path, target: Path) -> None:
    """A hard link, where the file system can; else a copy."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        flush(target)


def _is_newer_version(record: Path) -> bool:
    try:
        return is_newer_version(record.read_bytes())
    except ABSENT:
        return False
    except OSError:
        return True


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except ABSENT:
        return []
