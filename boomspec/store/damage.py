"""How the files of an artifact differ from what its record says."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from boomspec.core.files import stat_of, unreadable
from boomspec.core.identity import file_digest


def damage_of_files(record: dict[str, Any], folder: Path, *, checksums: bool) -> str | None:
    """How the files in a folder differ from what their record says, or None. Raises BoomspecError as `Store.damage`."""
    inside = f"{folder.resolve()}{os.sep}"
    for entry in record["files"]:
        file = folder / entry["path"]
        there = stat_of(file)
        if there is None or not stat.S_ISREG(there.st_mode):
            return f"{entry['path']} is missing"
        if not os.path.realpath(file).startswith(inside):
            return f"{entry['path']} is a link that leads out of its folder"
        if there.st_size != entry["bytes"]:
            return f"{entry['path']} has {there.st_size} bytes, its record says {entry['bytes']}"
        if checksums and _digest(file) != entry["sha256"]:
            return f"{entry['path']} does not match its checksum"
    return None


def _digest(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError as error:
        raise unreadable(file, error) from error
