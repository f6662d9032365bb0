"""This machine's folder of a store at a URL: where it is, whose it is, and what in it counts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boomspec.identity import text_digest
from boomspec.store.files import write_atomically
from boomspec.store.folder import damage_of_files
from boomspec.store.opening import URL_FILE
from boomspec.store.record import RECORD

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


def holds(folder: Path, text: str, record: dict[str, Any]) -> bool:
    """Whether an artifact is here, whole, with the record that the store has: its text and what it says."""
    try:
        same = (folder / RECORD).read_text(encoding="utf-8") == text
    except OSError:
        return False
    return same and damage_of_files(record, folder, checksums=False) is None


@contextmanager
def alone_here(root: Path, kind: str, task_id: str) -> Iterator[None]:
    """Be the only process of this machine that puts an artifact into its folder."""
    folder = root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / f"{kind}-{task_id}", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
