"""Records of a store at a URL: many at once, and those that were read before from this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from boomspec.core.files import write_atomically
from boomspec.store.bucket import Bucket, Entry
from boomspec.store.record import RECORD, Task, is_record

_ATTEMPT = re.compile(r"[0-9a-f]{16}")


def record_name(task: Task) -> str:
    """The object of a task's record."""
    return f"{task[0]}/{task[1]}/{RECORD}"


def payload_name(task: Task, record: Mapping[str, Any], path: str) -> str:
    """The object of one file of an artifact."""
    return f"{task[0]}/{task[1]}/{record['attempt']}/{path}"


def read_record(data: bytes) -> tuple[str, dict[str, Any] | None]:
    """The text of a record, and what it says; None where it is no record, or names files outside of its folder."""
    text = data.decode("utf-8", errors="replace")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return text, None
    if not is_record(record) or not _ATTEMPT.fullmatch(str(record.get("attempt"))):
        return text, None
    return text, record


def read_records(bucket: Bucket, entries: Mapping[Task, Entry], kept: Path) -> dict[Task, dict[str, Any] | None]:
    """The records that a listing shows; None for those that cannot be read.

    kept: a folder of this machine where they are kept. One that is still the same at the URL is not downloaded again.
    """
    texts = {task: text for task, entry in entries.items() if (text := _kept(kept, task, entry)) is not None}
    missing = [task for task in entries if task not in texts]
    found = bucket.read_all(record_name(task) for task in missing)
    for task in missing:
        if (data := found.get(record_name(task))) is not None:
            texts[task] = data
            _keep(kept, task, entries[task], data)
    return {task: read_record(text)[1] for task, text in texts.items()}


def _kept(folder: Path, task: Task, entry: Entry) -> bytes | None:
    try:
        version, _, data = (folder / task[0] / task[1]).read_bytes().partition(b"\n")
    except OSError:
        return None
    return data if version.decode("utf-8", errors="replace") == entry.version and len(data) == entry.size else None


def _keep(folder: Path, task: Task, entry: Entry, data: bytes) -> None:
    if len(data) != entry.size:
        return  # it was written anew since the listing
    place = folder / task[0] / task[1]
    with suppress(OSError):  # a full disk, say: then it is read again the next time
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, entry.version.encode("utf-8") + b"\n" + data)
