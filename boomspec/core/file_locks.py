"""Locks of open files: the one place that calls `flock`.

A lock is held by a living process on whichever machine, and goes with it, however it ends: no process number and no
host name is compared, which containers on one volume share. A file system without locks is an error with advice:
two processes there would each believe to be alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from boomspec.core.errors import BoomspecError

# flock itself is always asked for something that exists, so EINVAL, too, says that the file system has no locks.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_HINT = (
    "choose a folder on another file system, or a store at a URL (s3://bucket/path): a local disk can lock files, "
    "Lustre where it is mounted with -o flock, NFS where its lock manager runs; BOOMSPEC_CACHE and HF_HOME move the "
    "folders of this machine"
)


class NoLocksError(BoomspecError):
    """The file system of a path cannot lock files."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"{path}: its file system cannot lock files: {error.strerror}", hint=_HINT)


def lock(handle: int, path: Path, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file, whose `path` is for the error. False where another process holds it, unless we `wait` for it.

    Raises NoLocksError where the file system has no locks, and OSError for what else is wrong with the file.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            raise NoLocksError(path, error) from error
        raise
    return True


def check_locks(folder: Path) -> None:
    """Raise NoLocksError where files of a folder, or of the one that it will be made in, could not be locked.

    Nothing is written for that: a folder can be locked, too, and one that may not be opened is not judged.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        handle = os.open(there, os.O_RDONLY)
    except OSError:
        return
    try:
        lock(handle, folder, shared=True)
    except NoLocksError:
        raise
    except OSError:
        return  # who works there will say
    finally:
        os.close(handle)
