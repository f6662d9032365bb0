"""The store: one folder per artifact, named by what it is.

    <store>/<kind>/<task id>/            the payload and artifact.json
    <store>/<kind>/.<task id>.<random>/  a task at work; renamed to the above when it is done
    <store>/<kind>/.<task id>.resume/    checkpoints of a long task, removed when it is done
    <store>/runs/<name>-<graph id>/      graph.json, events, logs and the report of a run
    <store>/cache/                       what libraries keep while tasks run; may be deleted at any time

artifact.json is written last, inside the working folder; one rename publishes both. So its existence
means success, a killed process never leaves a broken artifact, and two writers of the same task are
harmless: the second finds the first one's result and drops its own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boomspec.errors import BoomspecError, redact
from boomspec.identity import file_digest

RECORD = "artifact.json"
RECORD_VERSION = 1
_FILE = {"path", "bytes", "sha256"}  # what a record says of each file
_RESUME = ".resume"


@dataclass(frozen=True)
class Workspace:
    """Where one task works. Payload goes into `path`; what a killed task continues from, into `resume`."""

    path: Path
    resume: Path


class Store:
    """A folder of artifacts. Safe to use from many processes at once."""

    def __init__(self, root: Path | str) -> None:
        if "://" in str(root):
            raise BoomspecError(f"store '{redact(str(root))}': only folders are supported", hint="give a folder")
        self.root = Path(root).absolute()

    def check_writable(self) -> None:
        """Raise BoomspecError unless artifacts can be written here."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise BoomspecError(
                f"store {self.root}: cannot be written: {error.strerror}", hint="choose another folder with --store"
            ) from error

    def path(self, kind: str, task_id: str) -> Path:
        return self.root / kind / task_id

    def ids(self, kind: str) -> set[str]:
        """Everything of a kind that has a folder: what is not in it is not in the store."""
        try:
            with os.scandir(self.root / kind) as entries:
                return {entry.name for entry in entries}
        except FileNotFoundError:
            return set()

    def resume(self, kind: str, task_id: str) -> Path:
        """Where checkpoints of an unfinished task lie; absent where there are none."""
        return self.root / kind / f".{task_id}{_RESUME}"

    def run_folder(self, name: str, graph_id: str) -> Path:
        return self.root / "runs" / f"{name}-{graph_id[:8]}"

    def record(self, kind: str, task_id: str) -> dict[str, Any] | None:
        """The artifact's record, or None where the task has not succeeded."""
        try:
            data = read_json(self.path(kind, task_id) / RECORD)
        except (OSError, ValueError):
            return None
        return data if _is_record(data) else None

    def has(self, kind: str, task_id: str) -> bool:
        return self.record(kind, task_id) is not None

    def damage(self, kind: str, task_id: str, *, checksums: bool = False) -> str | None:
        """Say what is wrong with a published artifact, or None. Sizes always, contents with `checksums`."""
        record, folder = self.record(kind, task_id), self.path(kind, task_id)
        if record is None:
            return f"{RECORD} is missing or unreadable" if folder.exists() else None
        for entry in record["files"]:
            file = folder / entry["path"]
            if not file.is_file():
                return f"{entry['path']} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{entry['path']} has {file.stat().st_size} bytes, its record says {entry['bytes']}"
            if checksums and file_digest(file) != entry["sha256"]:
                return f"{entry['path']} does not match its checksum"
        return None

    def discard(self, kind: str, task_id: str) -> None:
        """Remove a damaged artifact: out of sight by one rename, then deleted."""
        folder = self.path(kind, task_id)
        grave = folder.with_name(f".{task_id}.discarded-{os.getpid()}")
        try:
            folder.rename(grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave, ignore_errors=True)

    @contextmanager
    def workspace(self, kind: str, task_id: str) -> Iterator[Workspace]:
        """A folder to work in, removed at the end unless `publish` renamed it."""
        parent = self.root / kind
        parent.mkdir(parents=True, exist_ok=True)
        folder, handle = locked_folder(parent, f".{task_id}.")
        try:
            yield Workspace(folder, self.resume(kind, task_id))
        finally:
            os.close(handle)
            shutil.rmtree(folder, ignore_errors=True)

    def publish(
        self, workspace: Workspace, kind: str, task_id: str, identity: dict[str, Any], provenance: dict[str, Any]
    ) -> Path:
        """Checksum the payload, write the record, rename into place. Returns the artifact's folder."""
        files = []
        for file in sorted(p for p in workspace.path.rglob("*") if p.is_file()):
            flush(file)
            name = file.relative_to(workspace.path).as_posix()
            files.append({"path": name, "bytes": file.stat().st_size, "sha256": file_digest(file)})
        record = {"record": RECORD_VERSION, "id": task_id, "task": identity, "files": files, "provenance": provenance}
        target = workspace.path / RECORD
        target.write_text(redact(json.dumps(record, indent=1)) + "\n", encoding="utf-8")
        flush(target)
        workspace.path.chmod(0o755)  # mkdtemp makes it private; a store is shared
        final = self.path(kind, task_id)
        try:
            workspace.path.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if self.damage(kind, task_id) is not None:
                self.discard(kind, task_id)
                workspace.path.rename(final)
        flush(final.parent)
        shutil.rmtree(workspace.resume, ignore_errors=True)
        return final


def _is_record(data: Any) -> bool:
    """Whether this is a record of this version, whatever an editor has made of it."""
    if not isinstance(data, dict) or data.get("record") != RECORD_VERSION:
        return False
    files, provenance = data.get("files"), data.get("provenance")
    listed = isinstance(files, list) and all(isinstance(f, dict) and f.keys() >= _FILE for f in files)
    return listed and isinstance(provenance, dict) and "id" in data


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
        if not folder.name.endswith(_RESUME):
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
