"""What is known of a run, kept at the store's URL while it runs: for others to watch, and for when its machine is gone.

A thread of the driver sends what has changed in the run's folder, every few seconds and at the end. It never holds the
run up, and the first time that it fails is noted. A run that goes on from another machine first brings here what was
written there.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from boomspec.errors import first_line
from boomspec.store import Store

if TYPE_CHECKING:
    from boomspec.store.bucket import Bucket

_EVERY_SECONDS = 8.0
_END_SECONDS = 60.0  # for what is still to be sent
_GROWS = "events.jsonl"
_BROUGHT = ("status.json", "lock.json", "logs/")


class RunMirror:
    """The copy of one run's folder. Its methods return at once, `end` aside."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self._folder, self._bucket, self._prefix = folder, bucket, f"runs/{folder.name}"
        self._sent: dict[str, tuple[int, int]] = {}  # time of the last change and size, by name
        self._failed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._problem = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    @property
    def url(self) -> str:
        return f"{self._bucket.url}/{self._prefix}"

    def begin(self) -> None:
        """Bring what an earlier run of this graph has written from another machine; then send what is written here."""
        there = {name.removeprefix(f"{self._prefix}/"): e for name, e in self._bucket.entries(self._prefix).items()}
        wanted = []
        for name, entry in there.items():
            file = self._folder / name
            size = file.stat().st_size if file.is_file() else -1
            if (name == _GROWS and size < entry.size) or (name.startswith(_BROUGHT) and size < 0):
                wanted.append((f"{self._prefix}/{name}", file, entry.size))
        self._bucket.download_all(item for item in wanted if ".." not in item[1].parts)
        self._thread.start()

    def failures(self) -> Iterator[str]:
        """What to tell about it since the last call."""
        while not self._failed.empty():
            yield self._failed.get()

    def end(self) -> str:
        """Send the rest and wait for it, but not for long. Returns what has gone wrong with that, or ""."""
        self._done.set()
        self._thread.join(_END_SECONDS)
        return "it takes too long" if self._thread.is_alive() else self._problem

    def _work(self) -> None:
        told = False
        while True:
            last = self._done.wait(_EVERY_SECONDS)
            self._problem = self._send(self._bucket.hurried() if last else self._bucket)
            if self._problem and not told:
                self._failed.put(f"what is known of this run is not sent to {self.url} for now: {self._problem}")
                told = True
            if last:
                return

    def _send(self, bucket: Bucket) -> str:
        """Send what has changed. Returns what has gone wrong, or ""."""
        try:
            now = dict(self._files())
            changed = [name for name, version in now.items() if self._sent.get(name) != version]
            bucket.upload_all((self._folder / name, f"{self._prefix}/{name}") for name in changed)
        except Exception as error:
            return first_line(f"{type(error).__name__}: {error}")
        self._sent |= {name: now[name] for name in changed}
        return ""

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for file in self._folder.rglob("*"):
            name = file.relative_to(self._folder).as_posix()
            if any(part.startswith(".") for part in Path(name).parts) or not file.is_file():
                continue
            status = file.stat()
            yield name, (status.st_mtime_ns, status.st_size)


@contextmanager
def mirrored(store: Store, folder: Path) -> Iterator[RunMirror | None]:
    """While the context lasts, keep a run's folder at the store's URL; None for a store in a folder."""
    if store.bucket is None:
        yield None
        return
    mirror = RunMirror(folder, store.bucket)
    mirror.begin()
    try:
        yield mirror
    finally:
        if problem := mirror.end():
            print(f"{folder} could not be sent to {mirror.url}: {problem}", file=sys.stderr, flush=True)
