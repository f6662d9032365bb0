"""File locks that show which processes use a store or execute a run.

    <store>/.in-use              shared by every process that uses the store; exclusive while `gc` cleans up
    <store>/runs/<run>/.running  shared by the processes that execute this run

The files stay; only a held lock counts. A store at a URL has leases besides (`leases.py`).
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.core.files import lock

IN_USE, RUNNING = ".in-use", ".running"
Waiting = Callable[[], None]  # called once when we have to wait for another process
_NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT)


def nothing(*_: object) -> None:
    """The callback that does nothing."""


def is_running(run: Path) -> bool:
    """Whether a living process executes the run of this folder."""
    try:
        handle = _open(run / RUNNING)
    except OSError:
        return False
    try:
        return not lock(handle, run / RUNNING)
    finally:
        os.close(handle)


@contextmanager
def shared_lock(path: Path, waiting: Waiting) -> Iterator[None]:
    """Hold a shared lock; call `waiting` if we must wait. A read-only store without a lock file is read without one."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
    try:
        handle = _open(path)
    except OSError:
        yield
        return
    try:
        if not lock(handle, path, shared=True):
            waiting()
            lock(handle, path, shared=True, wait=True)
        yield
    finally:
        os.close(handle)


def in_use_error(address: Path | str, runs: Iterable[str]) -> BoomspecError:
    names = ", ".join(sorted(runs))
    who = f"run {names}" if names else "another boomspec process"
    message = f"store {address} is in use by {who}: nothing was changed"
    return BoomspecError(message, hint="wait for its end, or stop it")


def _open(path: Path) -> int:
    """Open for reading and, where permitted, writing, which an exclusive lock needs over NFS."""
    try:
        return os.open(path, os.O_RDWR)
    except OSError:
        return os.open(path, os.O_RDONLY)
