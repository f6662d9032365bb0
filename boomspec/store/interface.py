"""What a store offers: artifacts by kind and task id, runs, locks, and an index for early cut-off.

`FolderStore` keeps them in a folder that all machines share, `RemoteStore` as objects at a URL. Callers need not know
which: both can be used by many processes at once, and both work on files below `root` on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from boomspec.core.errors import BoomspecError
from boomspec.core.files import RESUME
from boomspec.store.record import ArtifactId, Record

if TYPE_CHECKING:
    from boomspec.store.bucket import Bucket

SOURCE = "source"  # the folder of uploaded sources, beside those of the kinds of tasks
Json = dict[str, Any]
Waiting = Callable[[], None]  # called once when we have to wait for another process
Report = Callable[[str], None]  # called with a message for people
Unread = dict[ArtifactId, BoomspecError] | None  # filled with the errors of artifacts that cannot be read now
MADE_OF = "made_of"  # the folder of the index for early cut-off


@dataclass(frozen=True)
class Workspace:
    """Where one task works: its payload goes into `path`, its checkpoints into `resume`."""

    path: Path
    resume: Path


@dataclass(frozen=True)
class Deletable:
    """Something in a store that `gc` may delete, and why: a file, a folder, or a group of objects.

    "artifact" and "checkpoints" belong to `task`; "leftover" is what dead processes left.
    """

    what: Literal["run", "artifact", "broken artifact", "checkpoints", "leftover", "cache"]
    path: Path | str  # a URL, for objects
    kind: str = ""  # of task
    task: str = ""
    reason: str = ""  # why it can go; "" where that depends on the runs
    damage: str | None = None  # of an artifact
    objects: tuple[str, ...] = ()  # in the order of deletion: first the one without which nobody looks for the others
    upload: str = ""  # id of an upload that never ended
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        ids = {"what": self.what, "kind": self.kind, "path": str(self.path)}
        return {**ids, "bytes": self.bytes, "reason": self.reason}


def stored_kinds() -> tuple[str, ...]:
    """The folders of artifacts: a kind of task each, and sources."""
    from boomspec.core.tasks import KINDS  # imported here: shell completion does without pydantic

    return (*KINDS, SOURCE)


def nothing(*_: Any) -> None:
    """The callback that does nothing."""


class Store(Protocol):
    """Artifacts, runs and locks. `ArtifactId` is (kind, task id).

    Methods raise BoomspecError for what cannot be read now: it may be whole, so it never counts as absent or damaged.
    """

    root: Path  # this machine's folder: the store itself, or the local cache of a store at a URL
    address: str  # a path or URL that `open_store` takes, on other machines too
    is_remote: bool  # whether machines reach it by a URL, and so may share no folder

    def __hash__(self) -> int:
        return id(self)

    def path(self, kind: str, task_id: str) -> Path:
        """Where an artifact's folder is on this machine, or would be. To read from one: `fetch`."""
        return self.root / kind / task_id

    def resume(self, kind: str, task_id: str) -> Path:
        """The folder of an unfinished task's checkpoints; absent where there are none."""
        return self.root / kind / f".{task_id}{RESUME}"

    def run_folder(self, name: str, graph_id: str) -> Path:
        return self.root / "runs" / f"{name}-{graph_id[:8]}"

    def has(self, kind: str, task_id: str) -> bool:
        return self.record(kind, task_id) is not None

    def check_writable(self) -> None:
        """Raise BoomspecError unless artifacts can be written, and locks or leases taken."""

    def check_is_store(self, *, may_be_absent: bool = False) -> None:
        """Raise BoomspecError unless it is a store or an empty place that may become one."""

    def ids(self, kind: str) -> set[str]:
        """Everything of a kind that may be an artifact: what is not in it is not in the store."""

    def record(self, kind: str, task_id: str) -> Record | None:
        """An artifact's record, or None where the task has not succeeded."""

    def records(self, tasks: Iterable[ArtifactId], *, unread: Unread = None) -> dict[ArtifactId, Record]:
        """The records of those that have one. `unread` as in `survey`."""

    def newest(self, kind: str, count: int) -> list[Record]:
        """The records of the `count` newest artifacts of a kind; where there are very many, of a sample."""

    def damage(self, kind: str, task_id: str, *, checksums: bool = False) -> str | None:
        """What is wrong with a published artifact, or None. Compares sizes, with `checksums` also contents."""

    def survey(
        self, tasks: Iterable[ArtifactId], *, checksums: bool = False, unread: Unread = None
    ) -> dict[ArtifactId, str | None]:
        """The `damage` of those that the store has something of; without `unread` the first error is raised."""

    def fetch(self, kind: str, task_id: str) -> Path:
        """A folder on this machine to read an artifact from."""

    def fetch_all(self, tasks: Iterable[ArtifactId]) -> dict[ArtifactId, Path]:
        """Fetch many artifacts at once."""

    def check_before_fetch(self, tasks: Iterable[ArtifactId]) -> None:
        """Raise BoomspecError for an artifact that is missing or damaged, unless `fetch` would."""

    def fetch_files(self, task: ArtifactId, names: Iterable[str]) -> Path:
        """A folder on this machine with at least these files of an artifact, those that it has."""

    def read(self, kind: str, task_id: str, name: str, *, most: int | None = None) -> bytes:
        """The content of one file of an artifact, or its first `most` bytes. Raises OSError."""

    def workspace(self, kind: str, task_id: str) -> AbstractContextManager[Workspace]:
        """A folder to work in, deleted at the end unless it is published."""

    def publish(self, workspace: Workspace, kind: str, task_id: str, identity: Json, provenance: Json) -> Path:
        """Publish the payload of a workspace, unless another writer has. Returns the artifact's folder."""

    def publish_copy(self, task: ArtifactId, of: str, record: Record, identity: Json, provenance: Json) -> bool:
        """Publish the payload of the artifact `of`, whose record this is, as that of `task`. False where it is gone."""

    def discard(self, kind: str, task_id: str) -> None:
        """Delete a damaged artifact."""

    def claimed(
        self, kind: str, task_id: str, *, owner: str = "", waiting: Waiting = nothing
    ) -> AbstractContextManager[None]:
        """Be the only process that works on a task; a new claim of the same `owner`, a run, replaces its old one."""

    def using(
        self, *, run: Path | None = None, waiting: Waiting = nothing, elsewhere: Report = nothing
    ) -> AbstractContextManager[None]:
        """Keep `gc` from cleaning up meanwhile; wait where it does so now. run: the folder of the run that we execute.

        Raises BoomspecError where another machine executes it, which only a store at a URL can tell; calls `elsewhere`
        with a message while that has to be found out.
        """

    def alone(self) -> AbstractContextManager[None]:
        """Be the only process that works with the store. Raises BoomspecError, naming the runs, where others do."""

    def running_elsewhere(self) -> frozenset[str]:
        """The folder names of runs whose leases at a URL are held, as far as clocks agree."""

    def run_folders(self, *, beginning: str = "") -> list[Path]:
        """The folders, on this machine, of all runs whose names begin so, dangling links included.

        Raises OSError where they cannot be listed: taken for "no runs", it would let `gc` delete what they need.
        """

    def run_called(self, name: str) -> Path | None:
        """The folder of the run of this folder name, with everything in it; None where there is none."""

    def run_address(self, folder: Path) -> str:
        """How to name a run's folder to people: a path, or a URL."""

    def remote_copy(self, folder: Path) -> Bucket | None:
        """The objects that copy a folder below `root` for other machines; None where they share the folder."""

    def note_key(self, kind: str, key: str, task_id: str) -> None:
        """Add an artifact that is about to be published to the index for early cut-off (`made_of.py`)."""

    def ids_by_key(self, kind: str, keys: Iterable[str]) -> dict[str, list[str]]:
        """The ids that the index has for these keys; their artifacts may be gone."""

    def stored(self, *, cache: bool) -> Iterator[Deletable]:
        """What `gc` may delete, with caches or without; not what is in use, unreadable, or not made by boomspec."""

    def stored_run(self, folder: Path, reason: str) -> Iterator[Deletable]:
        """A run that can go for this reason."""

    def dead_keys(self, kind: str, living: Set[str]) -> Iterator[Deletable]:
        """The index entries of artifacts that are not among the ids `living`."""

    def remove(self, stored: Deletable) -> None:
        """Delete something, out of sight first, so that nobody reads it half deleted."""
