"""Who works with a store right now: locks of living processes. A dead process holds none, however it died.

    <store>/.in-use             shared by everything that works with the store; `gc` alone holds it exclusively
    <store>/runs/<run>/.running  shared by the processes that run this graph

Neither says anything by being there: only a lock that is held counts.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from boomspec.errors import BoomspecError

IN_USE, RUNNING = ".in-use", ".running"


@contextmanager
def using(store: Path, *, run: Path | None = None, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Work with a store: nothing of it is cleaned away meanwhile. `run`: the folder of the run that this is.

    Where it is being cleaned up just now, calls `waiting` and waits for the end of that. A store that cannot be
    written is only read, without a lock where there never was one.
    """
    with _held(store / IN_USE, waiting), _held(run / RUNNING if run is not None else None, lambda: None):
        yield


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Have a store to oneself. Raises BoomspecError, naming the runs, where others work with it."""
    handle = os.open(store / IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(handle, fcntl.LOCK_EX):
            runs = [folder.name for folder in sorted((store / "runs").glob("*")) if is_running(folder)]
            who = f"run {', '.join(runs)}" if runs else "another boomspec process"
            raise BoomspecError(
                f"store {store} is in use by {who}: nothing was changed", hint="wait for its end, or stop it"
            )
        yield
    finally:
        os.close(handle)


def is_running(run: Path) -> bool:
    """Whether a living process runs the graph of this run's folder."""
    try:
        handle = _open(run / RUNNING)
    except OSError:
        return False
    try:
        return not _lock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


@contextmanager
def _held(path: Path | None, waiting: Callable[[], None]) -> Iterator[None]:
    handle = None if path is None else _made(path)
    try:
        if handle is not None and not _lock(handle, fcntl.LOCK_SH):
            waiting()
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _made(path: Path) -> int | None:
    """The lock file, made where it does not exist; None where it cannot be made."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT):
            raise
    try:
        return _open(path)
    except OSError:
        return None


def _open(path: Path) -> int:
    """Open for reading and, where permitted, writing: over NFS an exclusive lock needs a writer."""
    try:
        return os.open(path, os.O_RDWR)
    except OSError:
        return os.open(path, os.O_RDONLY)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
