"""Call functions every so many seconds, from one thread of this process for all of them.

A task has a heartbeat and a log that is copied. To start two threads takes longer than all else that a worker does for
an empty task, so they share one, which stays.
"""

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Call:
    function: Callable[[], None]
    every: float
    due: float
    running: threading.Lock = field(default_factory=threading.Lock)
    ended: bool = False


class _Clock:
    """The thread, and what it calls."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._changed = threading.Condition()
        self._wakes = -1.0  # when the thread looks next; -1: there is none yet

    def add(self, call: _Call) -> None:
        with self._changed:
            self._calls.append(call)
            if self._wakes < 0:
                threading.Thread(target=self._work, name="repeated", daemon=True).start()
                self._wakes = 0.0
            elif call.due < self._wakes:
                self._changed.notify()

    def remove(self, call: _Call) -> None:
        with self._changed:
            self._calls.remove(call)
        with call.running:  # it may be under way
            call.ended = True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._wakes = min((call.due for call in self._calls), default=threading.TIMEOUT_MAX)
                self._changed.wait(min(max(self._wakes - time.monotonic(), 0.0), threading.TIMEOUT_MAX))
                due = [call for call in self._calls if call.due <= time.monotonic()]
            for call in due:
                with call.running:
                    call.due = time.monotonic() + call.every
                    if not call.ended:
                        try:
                            call.function()
                        except Exception:
                            traceback.print_exc()


_clock = _Clock()


@contextmanager
def repeated(function: Callable[[], None], *, every: float) -> Iterator[None]:
    """Call a function every so many seconds while the context lasts. It is not running any more when that ends.

    It must not take long: the others wait for it. What it raises is printed.
    """
    call = _Call(function, every, time.monotonic() + every)
    _clock.add(call)
    try:
        yield
    finally:
        _clock.remove(call)
