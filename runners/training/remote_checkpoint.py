"""Upload and fetch training checkpoints at a store's URL, to resume on another machine.

    <url>/<kind>/.<task id>.resume/step-00000120.<attempt>/   files of `runners/training/checkpoint.py`; state.json last
                                   payload/                   what rank 0 has made for its coordinator

A thread uploads them beside the training, which waits for it before the next one. Every worker uploads the files that
it wrote. Rank 0 writes state.json when all of them are there, and then deletes what is older than the newest two. What
cannot be uploaded is noted once and never ends a training.
"""

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from boomspec.core.errors import first_line
from boomspec.core.files import replace_folder
from boomspec.core.graph import Node
from boomspec.core.work_sizes import KEPT_CHECKPOINTS
from boomspec.store import Store
from boomspec.store.bucket import Bucket
from runners.runtime.context import Progress

STATE = "state.json"
PART = ".part-"
State = tuple[bytes, Collection[str]]  # the content of state.json, and all files that must be there before it
_PAYLOAD = "payload"
_OTHERS_SECONDS = 600.0  # for the files of the other workers to be there
_LOOK_SECONDS = 1.0


def remote_checkpoints(store: Store, node: Node, progress: Progress) -> "RemoteCheckpoints | None":
    """Those of a task, where its store is at a URL and it trains."""
    objects = store.remote_copy(store.resume(node.task.kind, node.id)) if node.task.record.trains else None
    return None if objects is None else RemoteCheckpoints(objects, progress.note)


class RemoteCheckpoints:
    """The checkpoints in `objects`. `note` is called with lines for people."""

    def __init__(self, objects: Bucket, note: Callable[[str], None]) -> None:
        self._objects, self._note = objects, note
        self._thread: threading.Thread | None = None
        self._failed = False

    def publish(self, name: str, files: Sequence[Path], state: State | None = None, *, delete: bool = False) -> None:
        """Upload these files of the checkpoint `name` in a thread; `delete` them then. `state`: from rank 0."""

        def upload() -> None:
            try:
                self._upload(name, files, state)
            except Exception as error:
                if not self._failed:
                    reason = first_line(f"{type(error).__name__}: {error}")
                    self._note(f"a checkpoint could not be sent to the store, and is on this machine alone: {reason}")
                self._failed = True
            finally:
                if delete:
                    for file in files:
                        file.unlink(missing_ok=True)
                    with suppress(OSError):
                        files[0].parent.rmdir()  # when it was the last worker's of this machine

        self.wait()
        self._thread = threading.Thread(target=upload, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def names(self) -> list[str]:
        """The whole checkpoints there, the newest first."""
        whole = {name.removesuffix(f"/{STATE}") for name in self._objects.entries() if name.endswith(f"/{STATE}")}
        return sorted((name for name in whole if re.fullmatch(r"step-\d{8}\.\w+", name)), reverse=True)

    def fetch(self, name: str, folder: Path) -> Path:
        """Bring the checkpoint `name` into `folder`. Returns its place there."""
        folder.mkdir(parents=True, exist_ok=True)
        part, place = Path(tempfile.mkdtemp(prefix=PART, dir=folder)), folder / step_of(name)
        try:
            self._download(name, part)
            replace_folder(part, place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._note(f"fetched the checkpoint of step {int(place.name[5:])} from the store")
        return place

    def deliver(self, folder: Path) -> None:
        """Upload a payload for the coordinator, which calls `receive` on another machine."""
        self._objects.delete(self._objects.entries(_PAYLOAD))
        files = [file for file in folder.rglob("*") if file.is_file()]
        self._objects.upload_all((file, f"{_PAYLOAD}/{file.relative_to(folder).as_posix()}") for file in files)

    def receive(self, folder: Path) -> None:
        """Bring the payload that rank 0 has delivered into `folder`."""
        self._download(_PAYLOAD, folder)

    def _download(self, below: str, folder: Path) -> None:
        wanted = []
        for name, entry in self._objects.entries(below).items():
            file = folder / name.removeprefix(f"{below}/")
            if not file.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{name} is no name for a file in a checkpoint")
            wanted.append((name, file, entry.size))
        self._objects.download_all(wanted)

    def _upload(self, name: str, files: Sequence[Path], state: State | None) -> None:
        self._objects.upload_all((file, f"{name}/{file.name}") for file in files)
        if state is None:
            return
        wanted, until = {f"{name}/{other}" for other in state[1]}, time.monotonic() + _OTHERS_SECONDS
        while missing := wanted - self._objects.entries(name).keys():
            if time.monotonic() > until:
                raise TimeoutError(f"{len(missing)} files of other workers are not there")
            time.sleep(_LOOK_SECONDS)
        self._objects.write(f"{name}/{STATE}", state[0])
        kept = (*(f"{kept}/" for kept in self.names()[:KEPT_CHECKPOINTS]), f"{_PAYLOAD}/")
        self._objects.delete(name for name in self._objects.entries() if not name.startswith(kept))


def step_of(name: str) -> str:
    """The folder of a checkpoint on a machine: without the attempt that wrote it."""
    return name.partition(".")[0]
