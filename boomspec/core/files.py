"""Atomic writes, file locks, and temporary folders that go with the process that made them.

Whoever holds a lock is alive: the kernel releases it however the process ends. Process numbers and host names say
nothing, since containers on one volume share them. Locks are on regular files open for writing: over NFS, Linux locks
folders on one machine only and gives exclusive locks to writers only.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError

RESUME = ".resume"  # suffix of the folder of a task's checkpoints; it outlives the process that writes it
LOCK = ".lock"  # suffix of a working folder's lock, which lies beside it; a resume folder's lock lies in it
DISCARDED = ".discarded-"  # in the name of what is being deleted, which belongs to nobody
ABSENT = (FileNotFoundError, NotADirectoryError)  # any other OSError says nothing about whether a file exists
_POLL_SECONDS = 0.5
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_GONE = (errno.ENOENT, errno.ESTALE)
# EINVAL too: flock is only called with valid arguments, so it means that the file system has no locks.
_NO_LOCKS = (*_NO_FLUSH, errno.ENOLCK)
_OTHER_FOLDER = (
    "choose a folder on another file system, or a store at a URL (s3://bucket/path): a local disk can lock files, "
    "Lustre where it is mounted with -o flock, NFS where its lock manager runs; BOOMSPEC_CACHE and HF_HOME move the "
    "folders of this machine"
)


def read_json(path: Path) -> Any:
    """The data of a JSON file. Raises OSError, or ValueError for invalid or too deeply nested JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def stat_of(path: Path) -> os.stat_result | None:
    """The status of a file or folder; None where there is none. Raises BoomspecError where that is unknown."""
    try:
        return path.stat()
    except ABSENT:
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> BoomspecError:
    """The error for a file that may be whole but cannot be read now: it must not count as absent or damaged."""
    message = f"{path}: cannot be read: {error.strerror or error}"
    return BoomspecError(message, hint="it was left as it is: make it readable, or try again")


def flush(path: Path) -> None:
    """Return when a file's bytes, or a folder's entries, are on the disk; some file systems flush no folders."""
    with _opened(path, os.O_RDONLY) as handle:
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_FLUSH or not path.is_dir():
                raise


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content so that a reader sees the old or the new one, never a part."""
    try:
        with replacing(path) as part:
            part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            flush(part)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # name the file that the caller knows


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside `path` that takes its place; deleted where the body raises."""
    # A random name, because containers on one volume may share process and host names.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield part
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


def replace_folder(part: Path, target: Path) -> None:
    """Rename a finished folder to `target`; the folder there is renamed to `<part>-old`, and deleted."""
    old = part.with_name(f"{part.name}-old")
    if target.exists():
        target.rename(old)
    part.rename(target)
    flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def discard(path: Path, *, ignore_errors: bool = True) -> None:
    """Rename a file, link or folder out of sight, then delete it, so that nobody reads it half deleted."""
    if not (path.name.startswith(".") and DISCARDED in path.name):
        hidden = path.with_name(f".{path.name.lstrip('.')}{DISCARDED}{secrets.token_hex(8)}")
        path.rename(hidden)
        flush(path.parent)
        path = hidden
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=ignore_errors)


def lock(handle: int, path: Path, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file; `path` names it in errors. False where another process holds it, unless we `wait`.

    Raises BoomspecError where the file system has no locks: two processes there would each believe to be alone; and
    OSError for any other problem of the file.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            message = f"{path}: its file system cannot lock files: {error.strerror}"
            raise BoomspecError(message, hint=_OTHER_FOLDER) from error
        raise
    return True


@contextmanager
def exclusive_lock(file: Path) -> Iterator[None]:
    """Hold a lock file, created where there is none; wait for it where another process holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _opened(file, os.O_RDWR | os.O_CREAT) as handle:
        lock(handle, file, wait=True)
        yield


def check_locks(folder: Path) -> None:
    """Raise BoomspecError where files in a folder could not be locked. Nothing is written.

    A folder that does not exist yet is judged by its nearest parent; one that cannot be opened is not judged.
    """
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    with suppress(OSError), _opened(nearest, os.O_RDONLY) as handle:  # whoever works there reports an OSError
        lock(handle, folder, shared=True)


@contextmanager
def locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder `<prefix><random>` that belongs to this process while it lives, and is deleted at the end.

    It may be renamed meanwhile; everything named `<prefix><random>...` belongs to it. Deletes what dead processes
    left under the same prefix, except folders without a lock, and checkpoints.
    """
    left = [path for path in parent.iterdir() if path.name.startswith(prefix)]
    for path in left:
        if path.name.endswith(LOCK):
            handle = None
            with suppress(OSError):  # another user's
                handle = lock_file(path)
            if handle is not None:
                for own in left:
                    if own.name.startswith(path.name.removesuffix(LOCK)) and own != path:
                        shutil.rmtree(own, ignore_errors=True)
                _delete_locked(path, handle)
        elif DISCARDED in path.name:
            shutil.rmtree(path, ignore_errors=True)
    while (handle := lock_file(file := parent / f"{prefix}{secrets.token_hex(4)}{LOCK}", create=True)) is None:
        parent.stat()  # raises where it is gone; else another process took our new lock for a dead process's
    try:
        folder = file.with_name(file.name.removesuffix(LOCK))
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _delete_locked(file, handle)


def _delete_locked(file: Path, handle: int) -> None:
    """Delete the folder of a lock that we hold, then the lock; that stays while something of its folder does."""
    folder = file.with_name(file.name.removesuffix(LOCK))
    try:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            if not folder.exists():
                file.unlink()
    finally:
        os.close(handle)


def lock_file(path: Path, *, create: bool = False) -> int | None:
    """Lock a file. Returns its descriptor, to be closed; None where another process holds or has removed it."""
    ours = False
    try:
        handle = _open(path, os.O_CREAT if create else 0)
        try:
            ours = lock(handle, path) and os.path.samestat(path.stat(), os.fstat(handle))
        finally:
            if not ours:
                os.close(handle)
    except OSError as error:
        if error.errno not in _GONE:
            raise OSError(error.errno, error.strerror, str(path)) from error  # flock's error names no file
        return None
    return handle if ours else None


@contextmanager
def claimed_folder(resume: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Lock a resume folder by a file in it; it is made, and deleted if empty. `waiting` is called before a wait."""
    file = resume / LOCK
    waited = False
    while True:
        with suppress(FileExistsError):  # `exist_ok` still raises where the folder disappears at the same time
            resume.mkdir(parents=True)
        if (handle := lock_file(file, create=True)) is not None:
            break
        if waited:
            time.sleep(_POLL_SECONDS)
        else:
            waiting()
        waited = True
    try:
        yield
    finally:
        with suppress(OSError):  # deleted with the folder, or another process's by now
            if os.path.samestat(file.stat(), os.fstat(handle)):
                file.unlink()
        os.close(handle)  # before the folder is removed: over NFS a deleted file stays in it while it is open
        with suppress(OSError):
            resume.rmdir()


def is_in_use(path: Path) -> bool:
    """Whether a living process holds a lock, or a working or resume folder by its lock; True where unknown."""
    file = path
    if not path.name.endswith(LOCK):
        file = path / LOCK if path.name.endswith(RESUME) else path.with_name(f"{path.name}{LOCK}")
    with suppress(OSError):
        if not file.exists():
            return file == path  # it has ended meanwhile
        if (handle := lock_file(file)) is not None:
            os.close(handle)
            return False
    return True


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, os.O_RDWR | flags, 0o666)
    except PermissionError as error:
        try:
            return os.open(path, os.O_RDONLY)  # another user's lock: enough except over NFS
        except FileNotFoundError:
            raise error from None
