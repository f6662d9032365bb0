"""Sends the progress and the log of a task to the driver, from a machine that shares no folder with it.

    worker --writes--> files of its machine --every third of a second--> Relay --appends--> the driver's run folder

The relay is one actor of Ray on the driver's machine. Every piece has its offset, so one that comes twice is written
once. Nothing waits for it for long, and what is lost with a machine that dies is only for people.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import ray
from ray.exceptions import RayError

from runners.runtime.journal import log_file, progress_file

_EVERY_SECONDS = 0.3
_PIECE = 256 << 10  # bytes of one message
_END_SECONDS = 5.0  # for what is still to be sent when a task ends
_FILES = {"log": log_file, "progress": progress_file}


class Relay:
    """Appends to files of the run folder `folder`, and keeps which tasks are to stop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._have: dict[tuple[str, str, str], int] = {}  # bytes by file, task and source
        self._stopped: set[str] = set()

    def append(self, file: str, task_id: str, source: str, offset: int, data: bytes) -> None:
        """`data` begins at `offset` of what `source` writes into this file of a task."""
        key = (file, task_id, source)
        have = self._have.get(key, 0)
        if data and offset + len(data) <= have:
            return
        with _FILES[file](self._folder, task_id).open("ab") as target:
            target.write(data[max(0, have - offset) :])
        self._have[key] = max(have, offset + len(data))

    def stop(self, task_id: str) -> None:
        """The coordinator of a task wants its workers to save themselves and stop."""
        self._stopped.add(task_id)

    def stopped(self, task_id: str) -> bool:
        return task_id in self._stopped


@contextmanager
def relayed(relay: Any, folder: Path, task_id: str) -> Iterator[None]:
    """While the context lasts, send to `relay` what is appended to the files of a task in `folder`, of this machine."""
    paths = {name: file(folder, task_id) for name, file in _FILES.items()}
    # What was there before is not this attempt's.
    files = [_File(name, path, path.stat().st_size if path.exists() else 0) for name, path in paths.items()]
    source, done = token_hex(8), threading.Event()

    def work() -> None:
        last = False
        while not last:
            last = done.wait(_EVERY_SECONDS)
            for file in files:
                # A relay that is gone for good takes nothing more: the files here have it all.
                with suppress(OSError, RayError):
                    while file.send(relay, task_id, source, whole_lines=not last):
                        pass

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_END_SECONDS)  # a cluster that does not take the rest is not waited for


@dataclass
class _File:
    name: str
    path: Path
    start: int
    sent: int = 0

    def send(self, relay: Any, task_id: str, source: str, *, whole_lines: bool) -> bool:
        """Send the next piece and wait until it is taken. False where there is none."""
        if not self.path.exists():
            return False
        with self.path.open("rb") as file:
            file.seek(self.start + self.sent)
            data = file.read(_PIECE)
        if whole_lines and len(data) < _PIECE:
            data = data[: data.rfind(b"\n") + 1]  # pieces of several workers must not mix within a line
        if data or not (whole_lines or self.sent):  # an empty log is one, too
            ray.get(relay.append.remote(self.name, task_id, source, self.sent, data), timeout=_END_SECONDS)
            self.sent += len(data)
        return bool(data)
