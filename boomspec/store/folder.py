"""A store in a folder: one folder per artifact, named by what it is.

    <store>/<kind>/<task id>/                the payload and artifact.json
    <store>/<kind>/.<task id>.<random>/      a task at work; renamed to the above when it is done
    <store>/<kind>/.<task id>.<random>.lock  locked by the process that works there; removed with the folder
    <store>/<kind>/.<task id>.resume/        checkpoints of a long task, removed when it is done
    <store>/<kind>/.<task id>.resume/.lock   locked by the process that writes them
    <store>/runs/<name>-<graph id>/          graph.json, events, logs and the report of a run
    <store>/made_of/                         what artifacts were made of (`twins.py`)
    <store>/cache/                           what libraries keep while tasks run; may be deleted at any time

artifact.json is written last, inside the working folder; one rename publishes both. So its existence
means success, a killed process never leaves a broken artifact, and two writers of the same task are
harmless: the second finds the first one's result and drops its own. What cannot be read now may be whole: that is an
error, and only what is known to be damaged is ever discarded.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boomspec.core.errors import BoomspecError, redact
from boomspec.core.files import (
    ABSENT,
    RESUME,
    discard,
    flush,
    lock,
    lock_folder,
    locked_folder,
    read_json,
    stat_of,
    unlock_folder,
    unreadable,
)
from boomspec.store.damage import damage_of_files
from boomspec.store.record import RECORD, Task, is_record, listed_files, record_text

if TYPE_CHECKING:
    from boomspec.store.bucket import Bucket

_POLL_SECONDS = 0.5
_LOOKED_AT = 400  # artifacts of one kind


@dataclass(frozen=True)
class Workspace:
    """Where one task works. Payload goes into `path`; what a killed task continues from, into `resume`."""

    path: Path
    resume: Path


class FolderStore:
    """A folder of artifacts. Safe to use from many processes at once."""

    bucket: Bucket | None = None  # what a store at a URL keeps its objects in

    def __init__(self, root: Path | str) -> None:
        if "://" in str(root):
            raise BoomspecError(f"store '{redact(str(root))}': is a URL, not a folder", hint="give a folder")
        self.root = Path(root).absolute()

    @property
    def address(self) -> str:
        """What names the store to people, to other processes and on other machines: `open_store` takes it."""
        return str(self.root)

    def check_writable(self) -> None:
        """Raise BoomspecError unless artifacts can be written here, and their writers be told apart."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as file:
                lock(file.fileno(), self.root)
        except OSError as error:
            raise BoomspecError(
                f"store {self.root}: cannot be written: {error.strerror}", hint="choose another folder with --store"
            ) from error

    def path(self, kind: str, task_id: str) -> Path:
        """Where an artifact's folder is on this machine, or would be. To read from one: `fetch`."""
        return self.root / kind / task_id

    def fetch(self, kind: str, task_id: str) -> Path:
        """A folder on this machine to read an artifact from, which the store has."""
        return self.path(kind, task_id)

    def fetch_all(self, tasks: Iterable[Task]) -> None:
        """Have many artifacts at hand, so that `fetch` is quick for each."""

    def read(self, kind: str, task_id: str, name: str, *, most: int | None = None) -> bytes:
        """The contents of one file of an artifact, of its first `most` bytes. Raises OSError where it cannot be read.

        Nothing else of the artifact has to be fetched for it.
        """
        with (self.path(kind, task_id) / name).open("rb") as file:
            return file.read(-1 if most is None else most)

    def ids(self, kind: str) -> set[str]:
        """Everything of a kind that has a folder: what is not in it is not in the store."""
        try:
            with os.scandir(self.root / kind) as entries:
                return {entry.name for entry in entries}
        except FileNotFoundError:
            return set()

    def resume(self, kind: str, task_id: str) -> Path:
        """Where checkpoints of an unfinished task lie; absent where there are none."""
        return self.root / kind / f".{task_id}{RESUME}"

    def run_folder(self, name: str, graph_id: str) -> Path:
        return self.root / "runs" / f"{name}-{graph_id[:8]}"

    def run_folders(self, *, beginning: str = "") -> list[Path]:
        """The folders of all runs whose names begin so, whatever they hold, and links that lead nowhere now.

        Raises OSError where they cannot be listed: who took that for "no runs" would delete what they need.
        """
        runs = self.root / "runs"
        found = sorted(runs.iterdir()) if runs.exists() else []
        found = [path for path in found if path.name.startswith(beginning) and not path.name.startswith(".")]
        return [path for path in found if path.is_dir() or path.is_symlink()]

    def run_called(self, name: str) -> Path | None:
        """The folder of the run whose folder is called so, with all that it holds; None where there is none."""
        folder = self.root / "runs" / name
        return folder if folder.is_dir() else None

    def record(self, kind: str, task_id: str) -> dict[str, Any] | None:
        """The artifact's record, or None where the task has not succeeded. Raises BoomspecError where it is unknown."""
        path = self.path(kind, task_id) / RECORD
        try:
            data = read_json(path)
        except (*ABSENT, ValueError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        return data if is_record(data) else None

    def records(
        self, tasks: Iterable[Task], *, unread: dict[Task, BoomspecError] | None = None
    ) -> dict[Task, dict[str, Any]]:
        """The records of those that have one. `unread` as in `survey`."""
        found = {}
        for task in tasks:
            try:
                found[task] = self.record(*task)
            except BoomspecError as error:
                if unread is None:
                    raise
                unread[task] = error
        return {task: record for task, record in found.items() if record is not None}

    def newest(self, kind: str, count: int) -> list[dict[str, Any]]:
        """The records of the `count` newest artifacts of a kind; where there are very many, of those looked at."""
        try:
            with os.scandir(self.root / kind) as entries:
                folders = [entry for entry in islice(entries, _LOOKED_AT) if not entry.name.startswith(".")]
                newest = sorted(folders, key=lambda entry: entry.stat().st_mtime, reverse=True)[:count]
        except OSError:
            return []
        found = []
        for entry in newest:
            with suppress(BoomspecError):  # another one does as well
                found.append(self.record(kind, entry.name))
        return [record for record in found if record is not None]

    def has(self, kind: str, task_id: str) -> bool:
        return self.record(kind, task_id) is not None

    def damage(self, kind: str, task_id: str, *, checksums: bool = False) -> str | None:
        """Say what is wrong with a published artifact, or None. Sizes always, contents with `checksums`.

        Raises BoomspecError, as `survey` does, where something of it cannot be read: it may be whole.
        """
        folder = self.path(kind, task_id)
        record = self.record(kind, task_id)
        if record is None and stat_of(folder) is not None:
            record = self.record(kind, task_id)  # it may have come since it was looked for
            if record is None:
                return f"{RECORD} is missing or unreadable"
        return None if record is None else damage_of_files(record, folder, checksums=checksums)

    def survey(
        self, tasks: Iterable[Task], *, checksums: bool = False, unread: dict[Task, BoomspecError] | None = None
    ) -> dict[Task, str | None]:
        """The `damage` of each of these tasks that the store has something of. Those with None can be used.

        unread: gets those that cannot be read now, instead of an error; they are neither whole nor damaged.
        """
        tasks = list(tasks)
        found: dict[Task, str | None] = {}
        there: dict[str, set[str] | BoomspecError] = {}
        for kind, task_id in tasks:
            try:
                if kind not in there:
                    there[kind] = self._listed(kind)
                if isinstance(listed := there[kind], BoomspecError):
                    raise listed
                if task_id in listed:
                    damage = self.damage(kind, task_id, checksums=checksums)
                    if damage is not None or self.has(kind, task_id):
                        found[kind, task_id] = damage
            except BoomspecError as error:
                if unread is None:
                    raise
                unread[kind, task_id] = error
        return found

    def _listed(self, kind: str) -> set[str] | BoomspecError:
        try:
            return self.ids(kind)
        except OSError as error:
            return unreadable(self.root / kind, error)

    def discard(self, kind: str, task_id: str) -> None:
        """Remove a damaged artifact: out of sight by one rename, then deleted."""
        with suppress(FileNotFoundError):
            discard(self.path(kind, task_id))

    @contextmanager
    def claimed(
        self, kind: str, task_id: str, *, owner: str = "", waiting: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Hold the task's resume folder, so that two runs do not write the same checkpoints.

        The second one waits for the first, having called `waiting` once, and then finds its artifact. A dead process
        holds nothing. `owner`: the run that this is; of one run there is only one at work on a task.
        """
        resume = self.resume(kind, task_id)
        handle = lock_folder(resume)
        if handle is None:
            waiting()
            while (handle := lock_folder(resume)) is None:
                time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            unlock_folder(resume, handle)

    @contextmanager
    def workspace(self, kind: str, task_id: str) -> Iterator[Workspace]:
        """A folder to work in, removed at the end unless `publish` renamed it."""
        parent = self.root / kind
        parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(parent, f".{task_id}.") as folder:
            yield Workspace(folder, self.resume(kind, task_id))

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
        """Checksum the payload, write the record, rename into place. Returns the artifact's folder.

        files: what a record says of the payload, where that is known and on the disk already.
        """
        target = workspace.path / RECORD
        files = listed_files(workspace.path) if files is None else files
        target.write_text(record_text(task_id, identity, files, provenance), encoding="utf-8")
        flush(target)
        final = self._rename(workspace.path, kind, task_id)
        shutil.rmtree(workspace.resume, ignore_errors=True)
        return final

    def _rename(self, folder: Path, kind: str, task_id: str) -> Path:
        """Make a finished folder the artifact, unless there is a whole one."""
        folder.chmod(0o755)  # it was private; a store is shared
        final = FolderStore.path(self, kind, task_id)
        while True:
            try:
                folder.rename(final)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if FolderStore.damage(self, kind, task_id) is not None:
                FolderStore.discard(self, kind, task_id)
            elif FolderStore.has(self, kind, task_id):
                break
            # Else it was discarded between the two; and behind a discarded one another writer's may have come.
        flush(final.parent)
        return final
