"""Files that others read while they are written, and folders that belong to a living process.

Who lives is told by locks of regular files that are open for writing: the NFS client of Linux locks folders on its own
machine only, and gives an exclusive lock to writers only.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.file_locks import lock

RESUME = ".resume"  # how the folder of a task's checkpoints ends; it outlives the process that writes it
LOCK = ".lock"  # how the lock of a working folder ends, which lies beside it; that of a resume folder lies in it
GRAVE = ".discarded-"  # in the name of what is being deleted: it is nobody's
ABSENT = (FileNotFoundError, NotADirectoryError)  # any other OSError says nothing about what is there
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_GONE = (errno.ENOENT, errno.ESTALE)  # a lock that its holder has removed


def read_json(path: Path) -> Any:
    """The data of a JSON file. Raises OSError, or ValueError for what is no JSON or too deeply nested to be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def looked_at(path: Path) -> os.stat_result | None:
    """What is there; None for nothing. Raises BoomspecError where that cannot be told."""
    try:
        return path.stat()
    except ABSENT:
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> BoomspecError:
    """The error for what may be whole and cannot be read now: nobody may take it for absent or damaged."""
    said = error.strerror or str(error)
    return BoomspecError(f"{path}: cannot be read: {said}", hint="it was left as it is: make it readable, or try again")


def part_of(path: Path) -> Path:
    """A name beside `path` for what is written first and then takes its place.

    Nobody else has it: processes of two containers on one volume may have the same number, and the same host name.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def grave_of(path: Path) -> Path:
    """A name beside `path` for what is renamed first and then deleted; it is nobody else's either."""
    return path.with_name(f".{path.name.lstrip('.')}{GRAVE}{secrets.token_hex(8)}")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text so that a reader sees the old or the new one, never a part."""
    part = part_of(path)
    try:
        part.write_text(text, encoding="utf-8")
        flush(part)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error  # of the file that was asked for


def flush(path: Path) -> None:
    """Return when a file's bytes, or a folder's entries, are on the disk; some file systems flush no folders."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextmanager
def locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder `<prefix><random>` that belongs to this process while it lives, and is deleted at the end.

    It may be renamed meanwhile, and what is called `<prefix><random>...` belongs to it. Deletes what dead processes
    left behind under the same prefix; a folder that has no lock is left alone, as are checkpoints.
    """
    left = [path for path in parent.iterdir() if path.name.startswith(prefix)]
    for path in left:
        if path.name.endswith(LOCK):
            _delete_if_dead(path, left)
        elif GRAVE in path.name:
            shutil.rmtree(path, ignore_errors=True)
    while (handle := lock_file(lock := parent / f"{prefix}{secrets.token_hex(4)}{LOCK}", make=True)) is None:
        parent.stat()  # it is gone; or another process took this one for a dead one's before it was locked
    folder = _folder_of(lock)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _delete(folder, lock, handle)


def lock_file(path: Path, *, make: bool = False) -> int | None:
    """Lock a file. Returns its descriptor, to be closed; None where another process holds it, or has removed it.

    make: the file, where there is none. Raises OSError where it cannot be opened or locked, NoLocksError where no
    file there can be.
    """
    ours = False
    try:
        handle = _opened(path, os.O_CREAT if make else 0)
        try:
            ours = lock(handle, path) and is_still(path, handle)
        finally:
            if not ours:
                os.close(handle)
    except OSError as error:
        if error.errno not in _GONE:
            raise OSError(error.errno, error.strerror, str(path)) from error  # that of a lock names no file
        return None
    return handle if ours else None


def is_still(path: Path, handle: int) -> bool:
    """Whether an open file still is the one at its path. Raises OSError where there is none."""
    there, opened = path.stat(), os.fstat(handle)
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def lock_folder(resume: Path) -> int | None:
    """Lock a resume folder, made where there is none, by a file in it. Returns as `lock_file`."""
    with suppress(FileExistsError):  # which `exist_ok` does not cover where it goes at the same time
        resume.mkdir(parents=True)
    return lock_file(resume / LOCK, make=True)


def unlock_folder(resume: Path, handle: int) -> None:
    """Let a resume folder go, which disappears when it holds nothing to resume from."""
    file = resume / LOCK
    with suppress(OSError):  # it went with the folder, and may be another one's already
        if is_still(file, handle):
            file.unlink()
    os.close(handle)  # before the folder goes: over NFS a deleted file stays in it while it is open
    with suppress(OSError):
        resume.rmdir()


def _opened(path: Path, flags: int) -> int:
    try:
        return os.open(path, os.O_RDWR | flags, 0o666)
    except PermissionError as error:
        try:
            return os.open(path, os.O_RDONLY)  # another user's: it does where the disk is no NFS
        except FileNotFoundError:
            raise error from None


def _delete_if_dead(lock: Path, left: list[Path]) -> None:
    """Delete what of `left` belongs to a lock that nobody holds."""
    try:
        handle = lock_file(lock)
    except OSError:
        return  # another user's
    if handle is not None:
        folder = _folder_of(lock)
        for path in left:
            if path.name.startswith(folder.name) and path != lock:
                shutil.rmtree(path, ignore_errors=True)
        _delete(folder, lock, handle)


def _delete(folder: Path, lock: Path, handle: int) -> None:
    """Delete a folder, then its lock, which is held; where something of the folder stays, for the next one to try."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            if not folder.exists():
                lock.unlink()
    finally:
        os.close(handle)


def _folder_of(lock: Path) -> Path:
    return lock.with_name(lock.name.removesuffix(LOCK))
