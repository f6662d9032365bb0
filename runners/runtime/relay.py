"""Sends the progress and the log of a task to the driver, from a machine that shares no folder with it.

    worker --writes--> files of its machine --every third of a second--> Relay --appends--> the driver's run folder

The relay is one actor of Ray on the driver's machine. Every piece has its offset, so one that comes twice is written
once. Nothing waits for it for long, and what is lost with a machine that dies is only for people.
"""

from __future__ import annotations

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
    sender = _Sender(relay, folder, task_id)
    try:
        yield
    finally:
        sender.end()


@dataclass
class _File:
    name: str
    path: Path
    start: int  # what was there before is not this attempt's
    sent: int = 0


class _Sender:
    def __init__(self, relay: Any, folder: Path, task_id: str) -> None:
        self._relay, self._task, self._source = relay, task_id, token_hex(8)
        paths = {name: file(folder, task_id) for name, file in _FILES.items()}
        self._files = [_File(n, path, path.stat().st_size if path.exists() else 0) for n, path in paths.items()]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Send the rest. A cluster that does not take it is not waited for."""
        self._done.set()
        self._thread.join(_END_SECONDS)

    def _work(self) -> None:
        while True:
            last = self._done.wait(_EVERY_SECONDS)
            for file in self._files:
                # A relay that is gone for good takes nothing more: the files here have it all.
                with suppress(OSError, RayError):
                    while self._send(file, whole_lines=not last):
                        pass
            if last:
                return

    def _send(self, file: _File, *, whole_lines: bool) -> bool:
        """Send the next piece and wait until it is taken. False where there is none."""
        if not file.path.exists():
            return False
        with file.path.open("rb") as source:
            source.seek(file.start + file.sent)
            data = source.read(_PIECE)
        if whole_lines and len(data) < _PIECE:
            data = data[: data.rfind(b"\n") + 1]  # pieces of several workers must not mix within a line
        if data or not (whole_lines or file.sent):  # an empty log is one, too
            sent = self._relay.append.remote(file.name, self._task, self._source, file.sent, data)
            ray.get(sent, timeout=_END_SECONDS)
            file.sent += len(data)
        return bool(data)
