"""Rewrite task errors for people: full disks, and model names in place of paths.

The error of a full disk comes in many shapes (an OSError, often without the file's name; safetensors' own; one that
caused another), so it is recognised by its number or by the system's own text. It must be asked before anything is
deleted: after that there is room again.

A task's work folder is gone by the time that its error is read; a source that the store keeps, or that lies in the
hub's cache, has a folder that nobody knows. So errors call such folders by the models that are in them.
"""

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from boomspec.core.errors import EXIT_RUN_FAILED, BoomspecError
from boomspec.core.sizes import shown_bytes
from boomspec.store.sources import source_name
from runners.runtime.job import Input

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = tuple(os.strerror(number) for number in _NUMBERS)
_FULL_SHARE = 0.005  # of a disk that is left, at most, where it is the full one
_HINT = "make room (boomspec gc lists what no run needs); the same command then goes on from here"
_MODEL, _TOKENIZER = "model", "tokenizer"  # as in `runners.modeling.models` and `runners.data.tokens`, which load more
_CACHED = re.compile(r"[^\s'\"]*/models--([^/\s]+?)--([^/\s]+)/snapshots/[0-9a-f]{40}")  # of the hub


class FullDiskError(BoomspecError):
    """There is no room for what a run writes."""

    exit_code = EXIT_RUN_FAILED


def is_full(error: BaseException) -> bool:
    """Whether this error, or one that caused it, is that of a full disk or of a quota that is used up."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in _NUMBERS or any(text in str(cause) for text in _TEXTS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def detect_full_disk(*places: Path) -> Iterator[None]:
    """Raise FullDiskError in place of the error of a full disk. `places`: where there may be no room."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BoomspecError) or not is_full(error):
            raise
        raise FullDiskError(described(*_written(error, places)), hint=_HINT) from error


@contextmanager
def survived(what: str, note: Callable[[str], None], *places: Path) -> Iterator[None]:
    """Go on without `what` where a full disk does not take it; `note` is called with a line about it."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        note(f"{what} could not be written: {described(*_written(error, places))}")


def _written(error: BaseException, places: tuple[Path, ...]) -> tuple[Path, ...]:
    """The one of these places that an error's file is in, where it names one; else all of them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(name := getattr(cause, "filename", None), str):
            for place in places:
                if Path(name).is_relative_to(place):
                    return (place,)
        cause = cause.__cause__ or cause.__context__
    return places


def described(*places: Path) -> str:
    """Which disk is full: the first of these places that has no room, else the first; and how much it has.

    What could not be written may be deleted already, so that there is room again.
    """
    there = [next(folder for folder in (place, *place.parents) if folder.exists()) for place in places]
    rooms = [(folder, os.statvfs(folder)) for folder in there]
    place, room = next((found for found in rooms if _is_full(found[1])), rooms[0])
    free, whole = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    left = f"{shown_bytes(free)} of {shown_bytes(whole)} free"
    if room.f_files > 0 and room.f_favail == 0:
        left += ", and it takes no more files"
    return f"no space left on the disk of {place} ({socket.gethostname()}): {left}"


def _is_full(room: os.statvfs_result) -> bool:
    return room.f_bavail < _FULL_SHARE * room.f_blocks or (room.f_files > 0 and room.f_favail == 0)


def names_of(task: str, inputs: Mapping[str, Input], work: Path) -> dict[Path, str]:
    """What the folders of a task are called. `work`: where it makes what it makes."""
    sources = {role: source_name(found.source) for role, found in inputs.items() if found.source is not None}
    of = next((f" of {sources[role]}" for role in ("teacher", "model", "tokenizer") if role in sources), "")
    names = {
        work / _MODEL: f"the model that '{task}' makes{of}",
        work / _TOKENIZER: f"the tokenizer that '{task}' takes{of}",
        work: f"the work folder of '{task}'",
    }
    for role, name in sources.items():
        source = inputs[role].source
        if source is not None and source.id in Path(folder := source.location.get("folder", "")).parts:
            names[Path(folder)] = name
    return names


@contextmanager
def named(names: Mapping[Path, str]) -> Iterator[None]:
    """Put names in the place of paths in an error that is raised within the context."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BoomspecError):
            error.message = renamed(error.message, names)
            error.hint = None if error.hint is None else renamed(error.hint, names)
        error.args = tuple(renamed(text, names) if isinstance(text, str) else text for text in error.args)
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = renamed(error.filename, names)
        raise


def renamed(text: str, names: Mapping[Path, str]) -> str:
    """A text with names in the place of paths."""
    for folder in sorted(names, key=lambda path: len(path.parts), reverse=True):
        text = text.replace(str(folder), names[folder])
    return _CACHED.sub(r"\1/\2", text)
