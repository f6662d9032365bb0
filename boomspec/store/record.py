"""What lies in a store: records of artifacts, workspaces of tasks, and what `gc` may delete.

A record, artifact.json, has an artifact's task, its files with sizes and sha256, and where it came from. An artifact
exists once its record does.
"""

import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from boomspec.core.errors import BoomspecError, redact
from boomspec.core.files import flush, stat_of, unreadable
from boomspec.core.identity import file_digest

RUNS = "runs"
SOURCE = "source"  # the folder of uploaded sources, beside those of the kinds of tasks
MADE_OF = "made_of"  # the folder of the index for early cut-off
RECORD = "artifact.json"
RECORD_VERSION = 1
ArtifactId = tuple[str, str]  # kind and task id
Json = dict[str, Any]
Record = Json
Files = list[Json]  # path, bytes and sha256 of each
Report = Callable[[str], None]  # called with a message for people
Damages = dict[ArtifactId, str | None]
Unread = dict[ArtifactId, BoomspecError] | None  # filled with the errors of artifacts that cannot be read now
_FILE = {"path", "bytes", "sha256"}
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Workspace:
    """Where one task works: its payload goes into `path`, its checkpoints into `resume`."""

    path: Path
    resume: Path


@dataclass(frozen=True)
class Deletable:
    """What `gc` may delete, and why: a file, a folder, or a group of objects. "leftover": of dead processes."""

    what: Literal["run", "artifact", "broken artifact", "checkpoints", "leftover", "cache"]
    path: Path | str  # a URL, for objects
    kind: str = ""  # of task
    task: str = ""  # of "artifact" and "checkpoints"
    reason: str = ""  # why it can go; "" where that depends on the runs
    damage: str | None = None  # of an artifact
    objects: tuple[str, ...] = ()  # in the order of deletion: first the one without which nobody looks for the others
    upload: str = ""  # id of an upload that never ended
    bytes: int = 0


def stored_kinds() -> tuple[str, ...]:
    """The folders of artifacts: a kind of task each, and sources."""
    from boomspec.core.tasks import KINDS  # imported here: shell completion does without pydantic

    return (*KINDS, SOURCE)


def is_task_id(text: str) -> bool:
    """Whether a text is a digest, which is how tasks and artifacts are named."""
    return _ID.fullmatch(text) is not None


def listed_files(folder: Path) -> Files:
    """Flush the files below a folder, and list them as a record does."""
    files = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        flush(file)
        name = file.relative_to(folder).as_posix()
        files.append({"path": name, "bytes": file.stat().st_size, "sha256": file_digest(file)})
    return files


def record_text(task_id: str, identity: Json, files: Files, provenance: Json, **more: str) -> str:
    """A record as it is written, without secrets. Raises BoomspecError where it could not be read back."""
    clean = redact({"task": identity, "provenance": provenance})
    # File names stay as they are: a file under a redacted name would be missing.
    record = {"record": RECORD_VERSION, "id": task_id, **more, "task": clean["task"], "files": files}
    text = json.dumps({**record, "provenance": clean["provenance"]}, indent=1, allow_nan=False) + "\n"
    back = json.loads(text)
    if not is_record(back) or back["files"] != files:
        raise BoomspecError(f"{RECORD} of {task_id[:12]} could not be read back: one of its files has an odd name")
    return text


def is_record(data: Any) -> bool:
    """Whether this is a record of this version, all of whose files lie in its own folder."""
    if not isinstance(data, dict) or data.get("record") != RECORD_VERSION:
        return False
    files = data.get("files")
    valid = isinstance(files, list) and all(
        isinstance(file, dict) and file.keys() >= _FILE and is_inside(file["path"]) for file in files
    )
    return valid and isinstance(data.get("provenance"), dict) and "id" in data


def is_newer_version(text: bytes) -> bool:
    """Whether a record is of another version, which this boomspec cannot judge."""
    data = parsed_json(text)
    return isinstance(data, dict) and "record" in data and data["record"] != RECORD_VERSION


def is_inside(name: Any) -> bool:
    """Whether this is the relative name of a file, such as "model/config.json", that cannot lead out of its folder."""
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "/".join(parts) == name


def damage_of_files(record: Record, folder: Path, *, checksums: bool) -> str | None:
    """How the files in a folder differ from their record, or None. Raises BoomspecError for unreadable files."""
    for entry in record["files"]:
        file = folder / entry["path"]
        status = stat_of(file)
        if status is None or not stat.S_ISREG(status.st_mode):
            return f"{entry['path']} is missing"
        if not _lies_in(folder, entry["path"]):
            return f"{entry['path']} is a link that leads out of its folder"
        if damage := size_damage(entry, status.st_size):
            return damage
        try:
            if checksums and file_digest(file) != entry["sha256"]:
                return checksum_damage(entry)
        except OSError as error:
            raise unreadable(file, error) from error
    return None


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a file lies in a folder once all links are followed. Most have none, which is quickly seen."""
    file = folder
    for part in name.split("/"):
        file /= part
        if file.is_symlink():
            return (folder / name).resolve().is_relative_to(folder.resolve())
    return True


def size_damage(file: Mapping[str, Any], size: int | None) -> str | None:
    """How the size of a file differs from its record, or None. size: None where there is no such file."""
    if size is None:
        return f"{file['path']} is missing"
    return None if size == file["bytes"] else f"{file['path']} has {size} bytes, its record says {file['bytes']}"


def checksum_damage(file: Mapping[str, Any]) -> str:
    return f"{file['path']} does not match its checksum"


def parsed_json(data: bytes) -> Any:
    """The value of a JSON text, None where it is invalid."""
    try:
        return json.loads(data.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
