"""Files that others read while they are written, and folders that belong to a living process."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

RESUME = ".resume"  # how the folder of a task's checkpoints ends; it outlives the process that writes it


def read_json(path: Path) -> Any:
    """The data of a JSON file. Raises OSError, or ValueError for what is no JSON or too deeply nested to be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text so that a reader sees the old or the new one, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        flush(part)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error  # of the file that was asked for


def flush(path: Path) -> None:
    """Return when a file's bytes, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a folder `<prefix><random>` that belongs to this process while it lives or until the descriptor is closed.

    Deletes what dead processes left behind under the same prefix, except for checkpoints.
    """
    for folder in parent.glob(f"{prefix}*"):
        if not folder.name.endswith(RESUME):
            _delete_if_dead(folder)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another process took it for a dead one's before it was locked
        fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():
            return folder, handle
        os.close(handle)


def _delete_if_dead(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass  # locked: its process is alive
    finally:
        os.close(handle)
