"""Turn Ctrl-C and SIGTERM into a flag that the run polls, to stop cleanly."""

import signal
from types import FrameType
from typing import Self


class Interrupt:
    """While the context lasts, the first SIGINT or SIGTERM sets `requested`; the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> Self:
        self.arm()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def arm(self) -> None:
        """Take the signals (again): ray.init puts its own handler of SIGTERM into place."""
        for number in self._previous:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
