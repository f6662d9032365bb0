"""Records of a store at a URL, and whether the objects that they name are whole.

A record there also names its attempt, a random id below which its payload lies. Records are cached on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from boomspec.core.files import replacing
from boomspec.store.bucket import Bucket, Entry
from boomspec.store.local_cache import LocalCache
from boomspec.store.record import (
    RECORD,
    ArtifactId,
    Record,
    checksum_damage,
    is_record,
    parsed_json,
    size_damage,
)

Judged = tuple[str | None, Record | None]  # damage and record
_ATTEMPT = re.compile(r"[0-9a-f]{16}")


def record_object(task: ArtifactId) -> str:
    """The object of an artifact's record."""
    return f"{task[0]}/{task[1]}/{RECORD}"


def payload_object(task: ArtifactId, record: Record, path: str) -> str:
    """The object of one file of an artifact."""
    return f"{task[0]}/{task[1]}/{record['attempt']}/{path}"


def parsed_record(data: bytes) -> Record | None:
    """The record in an object; None where it is invalid, or names files outside of its folder."""
    record = parsed_json(data)
    return record if is_record(record) and _ATTEMPT.fullmatch(str(record.get("attempt"))) else None


class RemoteRecords:
    """The records in a bucket, those that were read in a cache."""

    def __init__(self, bucket: Bucket, cache: LocalCache) -> None:
        self._bucket, self._cache = bucket, cache

    def read(self, task: ArtifactId) -> bytes | None:
        """The text of a record as it is now, None where there is none."""
        try:
            return self._bucket.read(record_object(task))
        except FileNotFoundError:
            return None

    def listing(self, kinds: Iterable[str]) -> dict[str, Entry]:
        """All objects of some kinds, a thousand with each request."""
        kinds = list(kinds)
        if len(kinds) > 1:  # a folder that is not there would cost three requests
            kinds = sorted(self._bucket.names().intersection(kinds))
        with ThreadPoolExecutor(max(1, len(kinds))) as pool:
            listings = list(pool.map(self._bucket.entries, kinds))
        return {name: entry for listing in listings for name, entry in listing.items()}

    def listed(self, tasks: Iterable[ArtifactId], listing: Mapping[str, Entry]) -> dict[ArtifactId, Record | None]:
        """Those of the tasks' records that a listing has; None for invalid ones. Cached ones are not downloaded.

        A cached record is a file: the version of its object on the first line, then its text.
        """
        entries = {task: entry for task in tasks if (entry := listing.get(record_object(task))) is not None}
        files = {task: self._cache.root.joinpath("records", *task) for task in entries}
        texts: dict[ArtifactId, bytes] = {}
        for task, entry in entries.items():
            with suppress(OSError):
                version, _, data = files[task].read_bytes().partition(b"\n")
                if version == entry.version.encode() and len(data) == entry.size:
                    texts[task] = data
        missing = {record_object(task): task for task in entries if task not in texts}
        for name, data in self._bucket.read_all(missing).items():
            task = missing[name]
            texts[task] = data
            if len(data) == entries[task].size:  # else it was written again since the listing
                with suppress(OSError):  # such as a full disk: then it is downloaded again the next time
                    files[task].parent.mkdir(parents=True, exist_ok=True)
                    with replacing(files[task]) as part:
                        part.write_bytes(entries[task].version.encode() + b"\n" + data)
        return {task: parsed_record(text) for task, text in texts.items()}

    def judged(
        self, tasks: Iterable[ArtifactId], listing: Mapping[str, Entry], *, checksums: bool = False
    ) -> dict[ArtifactId, Judged]:
        """Damage and record of those of the tasks whose record a listing has."""
        found: dict[ArtifactId, Judged] = {}
        for task, record in self.listed(tasks, listing).items():
            judged: Judged = self._damage(task, record, listing, checksums=checksums), record
            if judged[0] is not None:  # or it was published again since the listing
                judged = self.now(task, checksums=checksums)
                if judged == (None, None):
                    continue
            found[task] = judged
        return found

    def now(self, task: ArtifactId, *, checksums: bool) -> Judged:
        """Damage and record as they are now; looks again where the record changes meanwhile."""
        data = self.read(task)
        while data is not None:
            record = parsed_record(data)
            damage = self._damage(task, record, self._bucket.entries("/".join(task)), checksums=checksums)
            before, data = data, self.read(task) if damage is not None else data
            if before == data:
                return damage, record
        return None, None

    def _damage(
        self, task: ArtifactId, record: Record | None, listing: Mapping[str, Entry], *, checksums: bool
    ) -> str | None:
        """How the objects in a listing differ from their record. With `checksums`, discards a damaged cached copy."""
        if record is None:
            return f"{RECORD} is missing or unreadable"
        for file in record["files"]:
            name = payload_object(task, record, file["path"])
            entry = listing.get(name)
            if damage := size_damage(file, None if entry is None else entry.size):
                return damage
            if checksums and self._bucket.digest(name, file["bytes"]) != file["sha256"]:
                return checksum_damage(file)
        if checksums and self._cache.path(*task).exists():
            with self._cache.locked(task):
                if not self._cache.is_valid(task, record, read=True, always=True):
                    self._cache.discard(*task)  # it is fetched again
        return None
