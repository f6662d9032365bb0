"""Heartbeats of tasks: they tell a process that hangs from one that works slowly.

Ray notices a process or a machine that has died, and the task is tried again. It does not notice one that stands still,
and a run would wait for ever. So a thread beside the body writes a heartbeat into the task's progress every minute. The
driver notes when there was none for ten minutes, and when there was no progress for half an hour: then the body may
hang in a download or a collective. Nothing is killed: a person may have stopped the process, a disk may come back.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from runners.runtime.context import Progress
from runners.runtime.repeated import repeated

ALIVE = "alive"  # the field of a line that is nothing but a heartbeat
_EVERY_SECONDS = 60.0
_ENDED = "(when it is ended, the task is tried again)"


def beating(progress: Progress, *, every: float = _EVERY_SECONDS) -> AbstractContextManager[None]:
    """Write heartbeats while the context lasts."""
    return repeated(progress.alive, every=every)


class Heartbeats:
    """Which tasks are silent: `seconds` without a heartbeat, or without progress. `now`: a clock that only rises."""

    def __init__(
        self, *, seconds: float = 600.0, progress_seconds: float = 1800.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now, self._limits = now, {"heartbeat": seconds, "progress": progress_seconds}
        # By task, then by what is heard of it: when it was heard last, and when its absence is to be noted.
        self._heard: dict[str, dict[str, tuple[float, float]]] = {}
        self._where: dict[str, str] = {}

    def received(self, task_id: str, line: dict[str, Any]) -> None:
        """A task has written a line."""
        if "started" in line:
            self._where[task_id] = "on {host}, process {pid}".format_map({"host": "?", "pid": "?"} | line["started"])
        heard, now = self._heard.setdefault(task_id, {}), self._now()
        for what, limit in self._limits.items():
            if what == "heartbeat" or ALIVE not in line or what not in heard:
                heard[what] = now, now + limit

    def ended(self, task_id: str) -> None:
        self._where.pop(task_id, None)
        self._heard.pop(task_id, None)

    def notes(self) -> Iterator[tuple[str, str]]:
        """Tasks that are silent, each with a line for people; the next one comes when it is silent twice as long."""
        now = self._now()
        for task_id, heard in list(self._heard.items()):
            silent = now - heard["heartbeat"][0] >= self._limits["heartbeat"]
            for what, (last, _) in [(what, times) for what, times in heard.items() if now >= times[1]]:
                heard[what] = last, last + 2 * (now - last)
                minutes = f"{(now - last) / 60:.0f} minutes ({self._where.get(task_id, 'its machine is not known')})"
                if what == "heartbeat":
                    message = f"no word from it for {minutes}: that process stands still {_ENDED}"
                    yield task_id, f"{message}, or is gone and there is no room for another"
                elif not silent:
                    what = "that process lives, and works slowly or hangs"
                    yield task_id, f"no progress for {minutes}: {what} {_ENDED}"
