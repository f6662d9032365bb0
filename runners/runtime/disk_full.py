"""A disk that is full, said as what it is: which one, and how much is free.

The error comes in many shapes (an OSError, often without the file's name; safetensors' own; one that caused another),
so it is told by its number or by the system's own words for it. It must be asked before anything is tidied up: behind
that there is room again.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from boomspec.core.errors import EXIT_RUN_FAILED, BoomspecError
from boomspec.core.sizes import shown_bytes

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_WORDS = tuple(os.strerror(number) for number in _NUMBERS)
_HINT = "make room (boomspec gc lists what no run needs); the same command then goes on from here"


class FullDiskError(BoomspecError):
    """There is no room for what a run writes."""

    exit_code = EXIT_RUN_FAILED


def is_full(error: BaseException) -> bool:
    """Whether this error, or one that it came from, is that of a full disk or of a quota that is used up."""
    while True:
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return True
        if any(words in str(error) for words in _WORDS):
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause


@contextmanager
def explained(*places: Path) -> Iterator[None]:
    """Raise FullDiskError in place of the error of a full disk. `places`: where there may be no room."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BoomspecError) or not is_full(error):
            raise
        raise FullDiskError(described(*places), hint=_HINT) from error


@contextmanager
def survived(what: str, tell: Callable[[str], None], *places: Path) -> Iterator[None]:
    """Go on without `what` where a full disk does not take it, and tell of it."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        tell(f"{what} could not be written: {described(*places)}")


def described(*places: Path) -> str:
    """Which disk is full: the one of these places that has least room, and how much that is."""
    rooms = {}
    for place in places:
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        rooms[there.stat().st_dev] = (there, os.statvfs(there))
    place, room = min(rooms.values(), key=lambda found: found[1].f_bavail / (found[1].f_blocks or 1))
    free, whole = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    left = f"{shown_bytes(free)} of {shown_bytes(whole)} free"
    if room.f_files > 0 and room.f_favail == 0:
        left += ", and it takes no more files"
    return f"no space left on the disk of {place} ({socket.gethostname()}): {left}"
