"""Tasks that have fallen silent: a process that was stopped, a disk or network that hangs, a machine that is cut off.

Ray notices a process or a machine that has died, and the task is tried again. One that merely stands still it does not
notice, and a run would wait for ever without a word. So every task gives a sign of life once a minute, from a thread of
its own beside the body, through the file of its progress; who follows that tells when there was none for ten minutes.
Nothing is killed: a person may have stopped the process, and a disk may come back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from runners.context import Progress

ALIVE = "alive"  # the field of a line that is nothing but a sign of life
_EVERY_SECONDS = 60.0
_SILENT_SECONDS = 600.0


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
    """Who has said nothing for how long. `now`: the seconds of a clock that never goes back."""

    def __init__(self, *, seconds: float = _SILENT_SECONDS, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = seconds, now
        self._heard: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._where: dict[str, str] = {}

    def heard(self, task_id: str, line: dict[str, Any]) -> None:
        """A task has said something."""
        if "started" in line:
            self._where[task_id] = "on {host}, process {pid}".format_map({"host": "?", "pid": "?"} | line["started"])
        self._heard[task_id] = self._now()
        self._due[task_id] = self._heard[task_id] + self._seconds

    def ended(self, task_id: str) -> None:
        for known in (self._heard, self._due, self._where):
            known.pop(task_id, None)

    def notes(self) -> Iterator[tuple[str, str]]:
        """Tasks that are silent, each with a line for people; the next one comes when it is silent twice as long."""
        now = self._now()
        for task_id, due in self._due.items():
            if now < due:
                continue
            silent = now - self._heard[task_id]
            self._due[task_id] = self._heard[task_id] + 2 * silent
            where = self._where.get(task_id, "its machine is not known")
            said = f"no word from it for {silent / 60:.0f} minutes ({where}): that process stands still"
            yield (
                task_id,
                f"{said} (when it is ended, the task is tried again), or is gone and there is no room for another",
            )
