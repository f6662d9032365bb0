"""The record of an artifact: its task, its files with sizes and sha256, and how it came to be."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from boomspec.core.errors import BoomspecError, redacted
from boomspec.core.files import flush
from boomspec.core.identity import file_digest

RECORD = "artifact.json"
RECORD_VERSION = 1
Task = tuple[str, str]  # kind and id
_FILE = {"path", "bytes", "sha256"}  # what a record says of each file


def listed_files(folder: Path) -> list[dict[str, Any]]:
    """What a record says of the files below a folder, which are on the disk then."""
    files = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        flush(file)
        name = file.relative_to(folder).as_posix()
        files.append({"path": name, "bytes": file.stat().st_size, "sha256": file_digest(file)})
    return files


def record_text(
    task_id: str, identity: dict[str, Any], files: list[dict[str, Any]], provenance: dict[str, Any], **more: str
) -> str:
    """A record as it is written, without secrets. Raises BoomspecError where it could not be read again."""
    said = redacted({"task": identity, "provenance": provenance})
    # The files are called as they are: under another name they would be missing.
    record = {"record": RECORD_VERSION, "id": task_id, **more, "task": said["task"], "files": files}
    text = json.dumps({**record, "provenance": said["provenance"]}, indent=1, allow_nan=False) + "\n"
    read = json.loads(text)
    if not is_record(read) or read["files"] != files:
        raise BoomspecError(f"{RECORD} of {task_id[:12]} could not be read again: one of its files has an odd name")
    return text


def is_record(data: Any) -> bool:
    """Whether this is a record of this version, of files in its own folder, whatever an editor has made of it."""
    if not isinstance(data, dict) or data.get("record") != RECORD_VERSION:
        return False
    files, provenance = data.get("files"), data.get("provenance")
    listed = isinstance(files, list) and all(
        isinstance(file, dict) and file.keys() >= _FILE and is_inside(file["path"]) for file in files
    )
    return listed and isinstance(provenance, dict) and "id" in data


def is_inside(name: Any) -> bool:
    """Whether this is the name of a file below a folder, as "model/config.json": it cannot lead out of it."""
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "/".join(parts) == name
