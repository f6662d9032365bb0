"""Artifacts that were made of the same things, byte for byte: an index of them, and publishing one under another id.

    <store>/made_of/<kind>/<key>/<task id>   an empty file: what its task was made of has this key
    (`boomspec.store.made_of`)

An entry is written before its artifact is published, so that every artifact has one, whoever is killed in between. It
proves nothing: who finds one looks whether the artifact is there and whole. `gc` deletes those whose artifact is gone.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.files import RESUME, flush
from boomspec.store.damage import damage_of_files
from boomspec.store.folder import FolderStore
from boomspec.store.record import record_text

MADE_OF = "made_of"
_ONE_BY_ONE = 8  # keys at a URL; of more, all of the kind are listed: a thousand with each request


def note_key(store: FolderStore, kind: str, key: str, task_id: str) -> None:
    """Write the entry of an artifact that is about to be published."""
    name = f"{MADE_OF}/{kind}/{key}/{task_id}"
    if store.bucket is not None:
        store.bucket.write(name, f"{task_id}\n".encode())  # not every store likes empty objects
        return
    file = store.root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def ids_by_key(store: FolderStore, kind: str, keys: Iterable[str]) -> dict[str, list[str]]:
    """The ids of the artifacts of a kind that have one of these keys, as the index says; the artifacts may be gone."""
    keys = list(dict.fromkeys(keys))
    found: dict[str, list[str]] = {}
    if store.bucket is None:
        for key in keys:
            found[key] = _names(store.root / MADE_OF / kind / key)
    elif len(keys) <= _ONE_BY_ONE:
        for key in keys:
            found[key] = sorted(store.bucket.names(f"{MADE_OF}/{kind}/{key}"))
    else:
        wanted = set(keys)
        for name in store.bucket.entries(f"{MADE_OF}/{kind}"):
            key, task_id = name.split("/")[-2:]
            if key in wanted:
                found.setdefault(key, []).append(task_id)
    return {key: ids for key, ids in found.items() if ids}


def entries(store: FolderStore, kinds: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """All entries of these kinds: kind, key and task id of each."""
    for kind in kinds:
        if store.bucket is not None:
            for name in store.bucket.entries(f"{MADE_OF}/{kind}"):
                key, task_id = name.split("/")[-2:]
                yield kind, key, task_id
        else:
            for key in _names(store.root / MADE_OF / kind):
                yield from ((kind, key, task_id) for task_id in _names(store.root / MADE_OF / kind / key))


def publish_twin(
    store: FolderStore,
    kind: str,
    task_id: str,
    of: str,
    identity: dict[str, Any],
    more: dict[str, Any],
    *,
    checksums: bool,
) -> bool:
    """Publish the payload of the artifact `of` as that of `task_id`. False where there is no such artifact, or no
    whole one; with `checksums` its contents are compared with its record.

    Its provenance is that of `of`, which is how its bytes came to be, and `more`. In a folder the two share their
    files where that can be; at a URL the objects are copied there, and nothing is transferred.
    """
    try:
        record = store.record(kind, of)
        if record is None or store.damage(kind, of, checksums=checksums) is not None:
            return False
        provenance = {**record["provenance"], **more}
        if store.bucket is not None:
            return _copied(store, (kind, task_id), of, record, identity, provenance)
        return _linked(store, (kind, task_id), of, record, identity, provenance)
    except FileNotFoundError:  # it was discarded meanwhile
        return False


def _linked(
    store: FolderStore,
    task: tuple[str, str],
    of: str,
    record: dict[str, Any],
    identity: dict[str, Any],
    made: dict[str, Any],
) -> bool:
    kind, task_id = task
    with store.workspace(kind, task_id) as workspace:
        for file in record["files"]:
            target = workspace.path / file["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(store.path(kind, of) / file["path"], target)
        for folder in [path for path in workspace.path.rglob("*") if path.is_dir()]:
            flush(folder)
        if damage_of_files(record, workspace.path, checksums=False) is not None:
            return False
        store.publish(workspace, kind, task_id, identity, made, files=record["files"])
    return True


def _link(source: Path, target: Path) -> None:
    """One file of two names, where the file system can; else a copy of it."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        flush(target)


def _copied(
    store: FolderStore,
    task: tuple[str, str],
    of: str,
    record: dict[str, Any],
    identity: dict[str, Any],
    made: dict[str, Any],
) -> bool:
    from boomspec.store.records import payload_name  # here: a folder needs no library for URLs
    from boomspec.store.remote import RemoteStore

    assert isinstance(store, RemoteStore)
    kind, task_id = task
    attempt, bucket = secrets.token_hex(8), store.bucket
    place = f"{kind}/{task_id}/{attempt}"
    files = record["files"]
    bucket.copy_all((payload_name((kind, of), record, f["path"]), f"{place}/{f['path']}") for f in files)
    there = bucket.entries(place)
    for file in files:
        if (entry := there.get(f"{place}/{file['path']}")) is None or entry.size != file["bytes"]:
            raise BoomspecError(f"store {store.address}: lost {file['path']} of {kind} {task_id[:12]}")
    if not store.record_is_ours(kind, task_id, record_text(task_id, identity, files, made, attempt=attempt)):
        bucket.delete(there)
    resume = store.resume(kind, task_id)
    if resume.is_dir():
        shutil.rmtree(resume, ignore_errors=True)
    bucket.delete(bucket.entries(f"{kind}/.{task_id}{RESUME}"))
    return True


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
