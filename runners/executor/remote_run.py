"""Mirror the run folder to the store's URL, so that another machine can watch or resume.

A thread of the driver uploads the files that have changed, every few seconds and at the end. It never holds the run up,
and its first failure is noted. A run that continues on another machine first downloads what was written there.

Objects cannot be appended to: a file that has grown is uploaded as a whole. So all files share a rate of bytes. Small
ones need less than their share and go every time; a large one waits until its shares add up to its size.
"""

import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from boomspec.core.errors import first_line
from boomspec.store import Store
from boomspec.store.bucket import Bucket

_EVERY_SECONDS = 8.0
_RATE = 256 << 10  # bytes a second, while the run is at work: less than one GB an hour
_END_SECONDS = 60.0  # for what is still to be sent
_SLOWEST = 1 << 20  # bytes a second that a store takes at the end; for more than it takes in that time, more is waited
_SMALL = 1 << 20  # bytes of a file that is sent before larger ones
_GROWS = "events.jsonl"
_DOWNLOADED = ("status.json", "lock.json", "logs/")

Version = tuple[int, int]  # of a file: the time of its last change, and its size


class RunCopy:
    """The copy of one run's folder. Its methods return at once, `end` aside."""

    def __init__(self, folder: Path, objects: Bucket) -> None:
        self._folder, self._objects, self.url = folder, objects, objects.url
        self._sent: dict[str, Version] = {}
        self._shares: dict[str, int] = {}  # bytes, by name: what a file has been given since it was sent
        self.failures: queue.SimpleQueue[str] = queue.SimpleQueue()  # notes about them
        self._problem = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def begin(self) -> None:
        """Download what an earlier run of this graph has written on another machine; then upload what changes here."""
        remote = self._objects.entries()
        wanted = {}
        for name, entry in remote.items():
            file = self._folder / name
            size = file.stat().st_size if file.is_file() else -1
            missing = (name == _GROWS and size < entry.size) or (name.startswith(_DOWNLOADED) and size < 0)
            if missing and ".." not in file.parts:
                wanted[name] = (name, file, entry.size)
        self._objects.download_all(list(wanted.values()))
        for name, (changed, size) in self._files():  # those that need not be uploaded: the objects are the same
            there = remote.get(name)
            if there and there.size == size and (name in wanted or changed / 1e9 <= there.modified + 1e-3):
                self._sent[name] = (changed, size)
        self._thread.start()

    def end(self) -> str:
        """Send the rest and wait for it, but not for long. Returns what has gone wrong with that, or ""."""
        self._done.set()
        rest = 0
        with suppress(OSError):  # a file that is gone again
            rest = sum(size for _, size in self._changed().values())
        self._thread.join(max(_END_SECONDS, rest / _SLOWEST))
        return "it takes too long" if self._thread.is_alive() else self._problem

    def _work(self) -> None:
        noted = False
        while True:
            last = self._done.wait(_EVERY_SECONDS)
            self._problem = self._send(last=last)
            if self._problem and not noted:
                self.failures.put(f"what is known of this run is not sent to {self.url} for now: {self._problem}")
                noted = True
            if last:
                return

    def _send(self, *, last: bool) -> str:
        """Send what has changed, except at the end no more than its share. Returns what has gone wrong, or ""."""
        objects = self._objects.without_retries() if last else self._objects
        try:
            changed = self._changed()
            due = changed if last else affordable(changed, self._shares, int(_RATE * _EVERY_SECONDS))
            for large in (False, True):
                some = {name: version for name, version in due.items() if (version[1] > _SMALL) == large}
                for name in some:
                    self._shares.pop(name, None)
                objects.upload_all((self._folder / name, name) for name in some)
                self._sent |= some
        except Exception as error:
            return first_line(f"{type(error).__name__}: {error}")
        return ""

    def _changed(self) -> dict[str, Version]:
        return {name: version for name, version in self._files() if self._sent.get(name) != version}

    def _files(self) -> Iterator[tuple[str, Version]]:
        for file in self._folder.rglob("*"):
            name = file.relative_to(self._folder).as_posix()
            if any(part.startswith(".") for part in Path(name).parts) or not file.is_file():
                continue
            status = file.stat()
            yield name, (status.st_mtime_ns, status.st_size)


def affordable(changed: Mapping[str, Version], shares: dict[str, int], budget: int) -> dict[str, Version]:
    """Divide `budget` bytes among files, on top of their `shares`. Returns those that can be sent now.

    The events, by which others see how far the run is, come first and get half where they need it. Then from the
    smallest on: what one does not need, larger ones have.
    """
    rest, due = budget, {}
    ordered = sorted(changed, key=lambda name: (name != _GROWS, changed[name][1] - shares.get(name, 0)))
    for left, name in zip(range(len(ordered), 0, -1), ordered, strict=True):
        size, before = changed[name][1], shares.get(name, 0)
        parts = min(2, left) if name == _GROWS else left
        given = min(max(0, size - before), rest // parts)
        rest -= given
        shares[name] = before + given
        if shares[name] >= size:
            due[name] = changed[name]
    return due


@contextmanager
def copied(store: Store, folder: Path) -> Iterator[RunCopy | None]:
    """While the context lasts, keep a run's folder at the store's URL; None for a store in a folder."""
    if (objects := store.remote_copy(folder)) is None:
        yield None
        return
    copy = RunCopy(folder, objects)
    copy.begin()
    try:
        yield copy
    finally:
        if problem := copy.end():
            print(f"{folder} could not be sent to {copy.url}: {problem}", file=sys.stderr, flush=True)
