"""Heartbeats of tasks: they tell a process that hangs from one that works slowly.

Ray notices a process or a machine that has died, and the task is tried again. It does not notice one that stands still,
and a run would wait for ever. So a thread beside the body writes a heartbeat into the task's progress every minute. The
driver notes when there was none for ten minutes, and when there was no progress for half an hour: then the body may
hang in a download or a collective. Nothing is killed: a person may have stopped the process, a disk may come back.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from runners.runtime.context import Progress

ALIVE = "alive"  # the field of a line that is nothing but a heartbeat
_EVERY_SECONDS = 60.0
_SILENT_SECONDS = 600.0
_NO_PROGRESS_SECONDS = 1800.0
_ENDED = "(when it is ended, the task is tried again)"


@contextmanager
def beating(progress: Progress, *, every: float = _EVERY_SECONDS) -> Iterator[None]:
    """Write heartbeats while the context lasts."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(every):
            progress.alive()

    threading.Thread(target=beat, name="alive", daemon=True).start()
    try:
        yield
    finally:
        done.set()


class Heartbeats:
    """Which tasks are silent for how long. `now`: the seconds of a clock that never goes back.

    seconds: without a heartbeat. progress_seconds: without progress.
    """

    def __init__(
        self,
        *,
        seconds: float = _SILENT_SECONDS,
        progress_seconds: float = _NO_PROGRESS_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._alive, self._working = _Clock(seconds), _Clock(progress_seconds)
        self._where: dict[str, str] = {}

    def received(self, task_id: str, line: dict[str, Any]) -> None:
        """A task has written a line."""
        if "started" in line:
            self._where[task_id] = "on {host}, process {pid}".format_map({"host": "?", "pid": "?"} | line["started"])
        self._alive.set(task_id, self._now())
        if ALIVE not in line or task_id not in self._working.last:
            self._working.set(task_id, self._now())

    def ended(self, task_id: str) -> None:
        self._where.pop(task_id, None)
        for clock in (self._alive, self._working):
            clock.last.pop(task_id, None)
            clock.due.pop(task_id, None)

    def notes(self) -> Iterator[tuple[str, str]]:
        """Tasks that are silent, each with a line for people; the next one comes when it is silent twice as long."""
        now = self._now()
        silent = dict(self._alive.overdue(now))
        for task_id, seconds in silent.items():
            message = f"no word from it for {self._for(task_id, seconds)}: that process stands still {_ENDED}"
            yield task_id, f"{message}, or is gone and there is no room for another"
        for task_id, seconds in self._working.overdue(now):
            if task_id not in silent and now - self._alive.last[task_id] < self._alive.seconds:
                what = "that process lives, and works slowly or hangs"
                yield task_id, f"no progress for {self._for(task_id, seconds)}: {what} {_ENDED}"

    def _for(self, task_id: str, seconds: float) -> str:
        return f"{seconds / 60:.0f} minutes ({self._where.get(task_id, 'its machine is not known')})"


class _Clock:
    """When each task was last heard of, and when its silence is to be noted."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last: dict[str, float] = {}
        self.due: dict[str, float] = {}

    def set(self, task_id: str, now: float) -> None:
        self.last[task_id], self.due[task_id] = now, now + self.seconds

    def overdue(self, now: float) -> Iterator[tuple[str, float]]:
        """The tasks whose silence is to be noted now, each with its seconds."""
        for task_id in [task_id for task_id, due in self.due.items() if now >= due]:
            passed = now - self.last[task_id]
            self.due[task_id] = self.last[task_id] + 2 * passed
            yield task_id, passed
