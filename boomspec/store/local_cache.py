"""This machine's folder of a store at a URL: where it is, whose it is, and what in it counts.

    <folder>/<kind>/<task id>/               what was fetched or published here
    <folder>/records/<kind>/<task id>.files  what its files looked like when their checksums were last known to be right

A copy counts while its record is the one at the URL, and its files look as they did.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from boomspec.core.files import ABSENT, lock, read_json, stat_of, unreadable, write_atomically
from boomspec.core.identity import text_digest
from boomspec.store.damage import damage_of_files
from boomspec.store.opening import URL_FILE
from boomspec.store.record import RECORD, Task

CACHE = "BOOMSPEC_CACHE"  # where such folders are; default: ~/.cache/boomspec
_READABLE = 60  # characters of a URL in the name of its folder


def local_folder(url: str) -> Path:
    """Where the artifacts of a store at a URL are worked on and kept on this machine."""
    named = os.environ.get(CACHE)
    readable = "".join(c if c.isalnum() or c in ".-" else "-" for c in url.replace("://", "-"))[:_READABLE]
    folder = Path(named) if named else Path.home() / ".cache" / "boomspec"
    return folder.expanduser().absolute() / "stores" / f"{readable}-{text_digest(json.dumps(url))[:8]}"


def mark(root: Path, url: str) -> None:
    """Make the folder, and let it say whose it is."""
    file = root / URL_FILE
    if not file.exists():
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{url}\n")


def holds(root: Path, task: Task, record: dict[str, Any]) -> bool:
    """Whether an artifact is here, with the record that the store has, and looks as when its checksums were right.

    Raises BoomspecError, as `sound`, where that cannot be told.
    """
    folder = root.joinpath(*task)
    return (
        _is_of(folder, record)
        and damage_of_files(record, folder, checksums=False) is None
        and _read(_looks_file(root, task)) == _looks(folder, record["files"])
    )


def sound(root: Path, task: Task, record: dict[str, Any], *, through: bool = False) -> bool:
    """As `holds`, but what looks otherwise is read: its checksums say. `through`: what looks as it did is read, too."""
    if not through and holds(root, task, record):
        return True
    folder = root.joinpath(*task)
    if not _is_of(folder, record):
        return False
    looks = _looks(folder, record["files"])  # before they are read
    if damage_of_files(record, folder, checksums=True) is not None:
        return False
    _write_looks(root, task, looks)
    return True


def remember(root: Path, task: Task, folder: Path, files: list[dict[str, Any]]) -> None:
    """Note how files look that are what the record says, in the folder that is about to become the artifact."""
    _write_looks(root, task, _looks(folder, files))


def _is_of(folder: Path, record: dict[str, Any]) -> bool:
    return json.dumps(_read(folder / RECORD)) == json.dumps(record)  # as texts: a number that is none equals nothing


def _looks(folder: Path, files: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What changes when a file does: its size, time and inode, which renaming its folder does not change."""
    found = {}
    for file in files:
        there = stat_of(folder / file["path"])
        seen = () if there is None else (there.st_size, there.st_mtime_ns, there.st_ino)
        found[file["path"]] = [file["sha256"], *seen]
    return found


def _write_looks(root: Path, task: Task, looks: dict[str, list[Any]]) -> None:
    place = _looks_file(root, task)
    with suppress(OSError):  # a full disk, say: then the files are read again the next time
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(looks))


def _looks_file(root: Path, task: Task) -> Path:
    return root / "records" / task[0] / f"{task[1]}.files"


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (*ABSENT, ValueError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def alone_here(root: Path, kind: str, task_id: str) -> Iterator[None]:
    """Be the only process of this machine that puts an artifact into its folder."""
    folder = root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}-{task_id}"
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(handle, file, wait=True)
        yield
    finally:
        os.close(handle)
