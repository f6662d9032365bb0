"""Tasks that have fallen silent: a process that was stopped, a disk or network that hangs, a machine that is cut off.

Ray notices a process or a machine that has died, and the task is tried again. One that merely stands still it does not
notice, and a run would wait for ever without a word. So every task gives a sign of life once a minute, from a thread of
its own beside the body, through the file of its progress. Who follows that tells when there was none for ten minutes,
and when the process lives but its body has said nothing for half an hour: it may hang in a download or a collective.
Nothing is killed: a person may have stopped the process, a disk may come back, and some work is just slow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from runners.runtime.context import Progress

ALIVE = "alive"  # the field of a line that is nothing but a sign of life
_EVERY_SECONDS = 60.0
_SILENT_SECONDS = 600.0
_QUIET_SECONDS = 1800.0
_ENDED = "(when it is ended, the task is tried again)"


@contextmanager
def beating(progress: Progress, *, every: float = _EVERY_SECONDS) -> Iterator[None]:
    """Give signs of life while the context lasts."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(every):
            progress.alive()

    thread = threading.Thread(target=beat, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


class Silence:
    """Who has said nothing for how long. `now`: the seconds of a clock that never goes back.

    seconds: without any sign of life. quiet_seconds: without a word of the body itself.
    """

    def __init__(
        self,
        *,
        seconds: float = _SILENT_SECONDS,
        quiet_seconds: float = _QUIET_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._alive, self._working = _Clock(seconds), _Clock(quiet_seconds)
        self._where: dict[str, str] = {}

    def heard(self, task_id: str, line: dict[str, Any]) -> None:
        """A task has said something."""
        if "started" in line:
            self._where[task_id] = "on {host}, process {pid}".format_map({"host": "?", "pid": "?"} | line["started"])
        self._alive.set(task_id, self._now())
        if ALIVE not in line or task_id not in self._working.last:
            self._working.set(task_id, self._now())

    def ended(self, task_id: str) -> None:
        self._where.pop(task_id, None)
        for clock in (self._alive, self._working):
            clock.forget(task_id)

    def notes(self) -> Iterator[tuple[str, str]]:
        """Tasks that are silent, each with a line for people; the next one comes when it is silent twice as long."""
        now = self._now()
        silent = dict(self._alive.overdue(now))
        for task_id, seconds in silent.items():
            said = f"no word from it for {self._for(task_id, seconds)}: that process stands still {_ENDED}"
            yield task_id, f"{said}, or is gone and there is no room for another"
        for task_id, seconds in self._working.overdue(now):
            if task_id not in silent and now - self._alive.last[task_id] < self._alive.seconds:
                said = f"no progress for {self._for(task_id, seconds)}: that process lives, and works slowly or hangs"
                yield task_id, f"{said} {_ENDED}"

    def _for(self, task_id: str, seconds: float) -> str:
        return f"{seconds / 60:.0f} minutes ({self._where.get(task_id, 'its machine is not known')})"


class _Clock:
    """When each task was last heard, and when it is time to say that it was not."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def set(self, task_id: str, now: float) -> None:
        self.last[task_id] = now
        self._due[task_id] = now + self.seconds

    def forget(self, task_id: str) -> None:
        self.last.pop(task_id, None)
        self._due.pop(task_id, None)

    def overdue(self, now: float) -> Iterator[tuple[str, float]]:
        """Those whose time has come, each with the seconds since it was heard."""
        for task_id in [task_id for task_id, due in self._due.items() if now >= due]:
            passed = now - self.last[task_id]
            self._due[task_id] = self.last[task_id] + 2 * passed
            yield task_id, passed
