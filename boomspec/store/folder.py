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

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from boomspec.core import files
from boomspec.core.errors import BoomspecError, redact
from boomspec.core.files import ABSENT, RESUME, flush, is_in_use, unreadable
from boomspec.store import record as records
from boomspec.store.lock import IN_USE, RUNNING, Waiting, in_use_error, is_running, nothing, shared_lock
from boomspec.store.record import RECORD, RUNS, ArtifactId, Damages, Deletable, Json, Record, Report, Unread, Workspace

if TYPE_CHECKING:
    from boomspec.store.bucket import Bucket

_FETCHED_AT_ONCE = 8
_SAY_WHERE = "say where it is: --store FOLDER (by default ./boomspec-store)"
_SAMPLE = 400  # artifacts of one kind, among which `newest` looks
_HIDDEN = re.compile(r"\.(?P<task>[0-9a-f]{64})\.(?P<rest>.+)")
_DISCARDED = re.compile(rf"\..+{re.escape(files.DISCARDED)}[0-9a-f]+")


class FolderStore:
    """Artifacts, runs and locks in a folder that all machines share. `ArtifactId` is (kind, task id).

    What callers may ask of any store: `RemoteStore` derives from this and keeps them as objects at a URL. Both can be
    used by many processes at once. Methods raise BoomspecError for what cannot be read now: it may be whole, so it
    never counts as absent or damaged.
    """

    root: Path  # this machine's folder: the store itself, or the local cache of a store at a URL
    address: str  # a path or URL that `open_store` takes, on other machines too
    is_remote = False  # whether machines reach it by a URL, and so may share no folder

    def __init__(self, root: Path | str) -> None:
        if "://" in str(root):
            raise BoomspecError(f"store '{redact(str(root))}': is a URL, not a folder", hint="give a folder")
        self.root = Path(root).absolute()
        self.address = str(self.root)

    def path(self, kind: str, task_id: str) -> Path:
        """Where an artifact's folder is on this machine, or would be. To read from one: `fetch`."""
        return self.root / kind / task_id

    def resume(self, kind: str, task_id: str) -> Path:
        """The folder of an unfinished task's checkpoints; absent where there are none."""
        return self.root / kind / f".{task_id}{RESUME}"

    def run_folder(self, name: str, graph_id: str) -> Path:
        return self.root / RUNS / f"{name}-{graph_id[:8]}"

    def check_writable(self) -> None:
        """Raise BoomspecError unless artifacts can be written, and locks or leases taken."""
        self.check_is_no_file()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as file:
                files.lock(file.fileno(), self.root)
        except OSError as error:
            message = f"store {self.root}: cannot be written: {error.strerror}"
            raise BoomspecError(message, hint="choose another folder with --store") from error

    def check_is_no_file(self) -> None:
        """Raise BoomspecError for a file: a store is a folder, or not there yet."""
        if self.root.exists() and not self.root.is_dir():
            raise BoomspecError(f"{self.root} is a file, not a store", hint=_SAY_WHERE)

    def check_is_store(self, *, may_be_absent: bool = False) -> None:
        """Raise BoomspecError unless it is a store or an empty place that may become one."""
        self.check_is_no_file()
        problem = None
        if not self.root.exists():
            problem = None if may_be_absent else f"there is no store {self.root}"
        elif any(self.root.iterdir()) and not (self.root / IN_USE).is_file():
            artifacts = (path.name for kind in records.stored_kinds() for path in self.root.glob(f"{kind}/[!.]*"))
            if not any(self.root.glob(f"{RUNS}/*/graph.json")) and not any(map(records.is_task_id, artifacts)):
                problem = f"{self.root} is not a store: it holds neither artifacts nor runs"
        if problem is not None:
            raise BoomspecError(problem, hint=_SAY_WHERE)

    def ids(self, kind: str) -> set[str]:
        """Everything of a kind that may be an artifact: what is not in it is not in the store."""
        return _names(self.root / kind)

    def has(self, kind: str, task_id: str) -> bool:
        return self.record(kind, task_id) is not None

    def record(self, kind: str, task_id: str) -> Record | None:
        """An artifact's record, or None where the task has not succeeded."""
        path = self.path(kind, task_id) / RECORD
        try:
            data = files.read_json(path)
        except (*ABSENT, ValueError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        return data if records.is_record(data) else None

    def records(self, tasks: Iterable[ArtifactId], *, unread: Unread = None) -> dict[ArtifactId, Record]:
        """The records of those that have one. `unread` as in `survey`."""
        found = {}
        for task in tasks:
            with _noting_error(task, unread):
                if (record := self.record(*task)) is not None:
                    found[task] = record
        return found

    def newest(self, kind: str, count: int) -> list[Record]:
        """The records of the `count` newest artifacts of a kind; where there are very many, of a sample."""
        try:
            with os.scandir(self.root / kind) as entries:
                folders = [entry for entry in islice(entries, _SAMPLE) if not entry.name.startswith(".")]
                newest = sorted(folders, key=lambda entry: entry.stat().st_mtime, reverse=True)[:count]
        except OSError:
            return []
        return list(self.records([(kind, entry.name) for entry in newest], unread={}).values())

    def damage(self, kind: str, task_id: str, *, checksums: bool = False) -> str | None:
        """What is wrong with a published artifact, or None. Compares sizes, with `checksums` also contents."""
        return self.judge((kind, task_id), checksums=checksums)[0]

    def is_whole(self, kind: str, task_id: str) -> bool:
        """Whether the store has an artifact, in files of the right sizes."""
        damage, record = self.judge((kind, task_id), checksums=False)
        return record is not None and damage is None

    def judge(self, task: ArtifactId, *, checksums: bool) -> tuple[str | None, Record | None]:
        """Damage and record of an artifact; both are None where there is nothing of it."""
        folder, record = self.path(*task), self.record(*task)
        if record is None and files.stat_of(folder) is not None:
            record = self.record(*task)  # it may have been published since
            if record is None:
                return f"{RECORD} is missing or unreadable", None
        return None if record is None else records.damage_of_files(record, folder, checksums=checksums), record

    def survey(self, tasks: Iterable[ArtifactId], *, checksums: bool = False, unread: Unread = None) -> Damages:
        """The `damage` of those that the store has something of; without `unread` the first error is raised."""
        ids, found = cache(self.ids), {}
        for task in tasks:
            with _noting_error(task, unread):
                if task[1] in ids(task[0]):
                    damage, record = self.judge(task, checksums=checksums)
                    if damage is not None or record is not None:
                        found[task] = damage
        return found

    def fetch(self, kind: str, task_id: str) -> Path:
        """A folder on this machine to read an artifact from."""
        return self.path(kind, task_id)

    def fetch_all(self, tasks: Iterable[ArtifactId]) -> dict[ArtifactId, Path]:
        """Fetch many artifacts at once."""
        tasks = list(dict.fromkeys(tasks))
        with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
            return dict(zip(tasks, pool.map(lambda task: self.fetch(*task), tasks), strict=True))

    def check_before_fetch(self, tasks: Iterable[ArtifactId]) -> None:
        """Raise BoomspecError for an artifact that is missing or damaged, unless `fetch` would."""
        tasks = list(tasks)
        found = self.survey(tasks)
        for kind, task_id in tasks:
            if (damage := found.get((kind, task_id), "it is not in the store")) is not None:
                raise BoomspecError(f"{kind} {task_id[:12]} cannot be used: {damage}", hint="run again")

    def fetch_files(self, task: ArtifactId, names: Iterable[str]) -> Path:
        """A folder on this machine with at least these files of an artifact, those that it has."""
        return self.path(*task)

    def read(self, kind: str, task_id: str, name: str, *, most: int | None = None) -> bytes:
        """The content of one file of an artifact, or its first `most` bytes. Raises OSError."""
        with (self.path(kind, task_id) / name).open("rb") as file:
            return file.read(-1 if most is None else most)

    @contextmanager
    def workspace(self, kind: str, task_id: str) -> Iterator[Workspace]:
        """A folder to work in, deleted at the end unless it is published."""
        parent = self.root / kind
        parent.mkdir(parents=True, exist_ok=True)
        with files.locked_folder(parent, f".{task_id}.") as folder:
            yield Workspace(folder, self.resume(kind, task_id))

    def publish(self, workspace: Workspace, kind: str, task_id: str, identity: Json, provenance: Json) -> Path:
        """Publish the payload of a workspace, unless another writer has. Returns the artifact's folder."""
        text = records.record_text(task_id, identity, records.listed_files(workspace.path), provenance)
        final = self.place(workspace.path, kind, task_id, text.encode())
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
        """Publish the payload of the artifact `of`, hard-linked where possible, as `task`. False where it is gone."""
        with self.workspace(*task) as workspace:
            for file in record["files"]:
                source, target = (folder / file["path"] for folder in (self.path(task[0], of), workspace.path))
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.hardlink_to(source)
                except FileNotFoundError:
                    raise
                except OSError:
                    shutil.copyfile(source, target)
                    flush(target)
            for folder in [path for path in workspace.path.rglob("*") if path.is_dir()]:
                flush(folder)
            if records.damage_of_files(record, workspace.path, checksums=False) is not None:
                return False
            text = records.record_text(task[1], identity, record["files"], provenance)
            self.place(workspace.path, *task, text.encode())
            shutil.rmtree(workspace.resume, ignore_errors=True)
        return True

    def discard(self, kind: str, task_id: str) -> None:
        """Delete a damaged artifact."""
        with suppress(FileNotFoundError):
            files.discard(self.path(kind, task_id))

    def claimed(
        self, kind: str, task_id: str, *, owner: str = "", waiting: Waiting = nothing
    ) -> AbstractContextManager[None]:
        """Be the only one at work on a task. Where claims outlive a process, an `owner` replaces its old one."""
        return files.claimed_folder(self.resume(kind, task_id), waiting)

    @contextmanager
    def using(
        self, *, run: Path | None = None, waiting: Waiting = nothing, elsewhere: Report = nothing
    ) -> Iterator[None]:
        """Keep `gc` from cleaning up meanwhile; wait where it does so now. run: the folder of the run that we execute.

        Raises BoomspecError where another machine executes it, which only a store at a URL can tell; calls `elsewhere`
        with a message while that has to be found out.
        """
        executed = nullcontext() if run is None else shared_lock(run / RUNNING, nothing)
        with shared_lock(self.root / IN_USE, waiting), executed:
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only process that works with the store. Raises BoomspecError, naming the runs, where others do."""
        handle = os.open(self.root / IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not files.lock(handle, self.root / IN_USE):
                raise in_use_error(self.root, [run.name for run in (self.root / RUNS).glob("*") if is_running(run)])
            yield
        finally:
            os.close(handle)

    def running_elsewhere(self) -> frozenset[str]:
        """The folder names of runs whose leases at a URL are held, as far as clocks agree."""
        return frozenset()

    def run_folders(self, *, beginning: str = "") -> list[Path]:
        """The folders, on this machine, of all runs whose names begin so, dangling links included.

        Raises OSError where they cannot be listed: taken for "no runs", it would let `gc` delete what they need.
        """
        runs = self.root / RUNS
        found = sorted(runs.iterdir()) if runs.exists() else []
        found = [path for path in found if path.name.startswith(beginning) and not path.name.startswith(".")]
        return [path for path in found if path.is_dir() or path.is_symlink()]

    def run_called(self, name: str) -> Path | None:
        """The folder of the run of this folder name, with everything in it; None where there is none."""
        folder = self.root / RUNS / name
        return folder if folder.is_dir() else None

    def run_address(self, folder: Path) -> str:
        """How to name a run's folder to people: a path, or a URL."""
        return str(folder)

    def remote_copy(self, folder: Path) -> "Bucket | None":
        """The objects that copy a folder below `root` for other machines; None where they share the folder."""
        return None

    def note_key(self, kind: str, key: str, task_id: str) -> None:
        """Add an artifact that is about to be published to the index for early cut-off (`made_of.py`)."""
        file = self.root / records.MADE_OF / kind / key / task_id
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def ids_by_key(self, kind: str, keys: Iterable[str]) -> dict[str, list[str]]:
        """The ids that the index has for these keys; their artifacts may be gone."""
        found = {key: [path.name for path in _entries(self.root / records.MADE_OF / kind / key)] for key in keys}
        return {key: own for key, ids in found.items() if (own := [i for i in ids if not i.startswith(".")])}

    def stored(self, *, cache: bool) -> Iterator[Deletable]:
        """What `gc` may delete, with caches or without; not what is in use, unreadable, or not made by boomspec."""
        for path in (path for kind in records.stored_kinds() for path in _entries(self.root / kind)):
            kind = path.parent.name
            if (hidden := _HIDDEN.fullmatch(path.name)) is not None:
                if not (path.is_dir() or path.name.endswith(files.LOCK)) or is_in_use(path):
                    continue
                if f".{hidden['rest']}" != RESUME:
                    yield Deletable("leftover", path, kind, reason="its process is dead")
                    continue
                finished = False
                with suppress(BoomspecError):  # what cannot be read may be whole
                    finished = self.is_whole(kind, hidden["task"])
                yield Deletable("checkpoints", path, kind, hidden["task"], "its task is finished" if finished else "")
            elif records.is_task_id(path.name):
                with suppress(BoomspecError, OSError):
                    record = path / RECORD
                    if not (record.is_file() and records.is_newer_version(record.read_bytes())):
                        yield Deletable("artifact", path, kind, path.name, damage=self.damage(kind, path.name))
        for folder in (self.root, self.root / RUNS):
            discarded = (path for path in _entries(folder) if _DISCARDED.fullmatch(path.name))
            yield from (Deletable("leftover", path, reason="of an earlier gc") for path in discarded)
        if cache and (self.root / "cache").is_dir():
            yield Deletable("cache", self.root / "cache", reason="libraries fill it again")

    def stored_run(self, folder: Path, reason: str) -> Iterator[Deletable]:
        """A run that can go for this reason."""
        yield Deletable("run", folder, reason=reason)

    def dead_keys(self, kind: str, living: Set[str]) -> Iterator[Deletable]:
        """The index entries of artifacts that are not among the ids `living`."""
        for key in _entries(self.root / records.MADE_OF / kind):
            ids = [path.name for path in _entries(key)]
            dead = [i for i in ids if i not in living and not is_in_use(self.resume(kind, i))]
            for path in [key] if dead == ids else [key / i for i in dead]:
                yield Deletable("leftover", path, kind, reason="its artifact is gone")

    def remove(self, stored: Deletable) -> None:
        """Delete something, out of sight first, so that nobody reads it half deleted."""
        files.discard(Path(stored.path), ignore_errors=False)


Store = FolderStore  # the name for a store of which it does not matter where it is


@contextmanager
def _noting_error(task: ArtifactId, unread: Unread) -> Iterator[None]:
    try:
        yield
    except BoomspecError as error:
        if unread is None:
            raise
        unread[task] = error


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise unreadable(folder, error) from error
