"""Object storage client (fsspec with retries): list, read, write and copy objects below a URL.

Objects are written whole or not at all. Listings are not cached, so that they show what
other machines have written.
"""

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any, Self, TypeVar

from boomspec.core.errors import BoomspecError
from boomspec.core.files import flush
from boomspec.core.identity import file_digest
from boomspec.store.record import Report
from boomspec.store.retry import Retries, cannot_be_conditional, exists_already, has_no_range

_PARALLEL = 32  # requests at a time
_PART = 16 * 2**20  # bytes of one request; the parts of a large file are copied in parallel
_SMALL = 2**20  # bytes of a file of which many are copied at a time
_LARGE_PARALLEL = 8  # requests; fewer than for small files, because parts are held in memory
_MOST_PARTS = 9_000  # of one file: S3 allows 10,000
_GLOB = frozenset("*?[")
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_", "FSSPEC_")  # environment variables
# Each filesystem has its own names for an object's time and version.
_MODIFIED = ("LastModified", "last_modified", "mtime", "updated")
_VERSION = ("ETag", "etag", "generation", "md5Hash")
_T = TypeVar("_T")
_R = TypeVar("_R")
_Sized = TypeVar("_Sized", bound=tuple[Any, Any, int])
_filesystems: dict[tuple[Any, ...], tuple[Any, str]] = {}
_opening = Lock()
_forks = 0  # between the first process and this one; process numbers are reused


@dataclass(frozen=True)
class ObjectInfo:
    """An object in a listing. version: changes with every write. modified: seconds since 1970, by the store's clock."""

    size: int
    version: str
    modified: float


class Bucket:
    """The objects below one URL. Safe to use from several threads, and in forked processes."""

    def __init__(self, url: str, *, report: Report | None = None, retry_seconds: float | None = None) -> None:
        self._store, self._prefix = url.rstrip("/"), ""
        self._retries = Retries(self._store, report=report, seconds=retry_seconds)

    @property
    def url(self) -> str:
        return f"{self._store}/{self._prefix}".rstrip("/")

    def below(self, prefix: str) -> Self:
        """The objects below a prefix, whose names are then relative to it."""
        bucket = copy.copy(self)
        bucket._prefix = f"{self._prefix}{prefix}/"
        return bucket

    def without_retries(self) -> Self:
        """The same objects; a request that fails is an error at once."""
        bucket = copy.copy(self)
        bucket._retries = Retries(self._store, seconds=0)
        return bucket

    def entries(self, prefix: str = "") -> dict[str, ObjectInfo]:
        """All objects below a folder, at any depth, by their names."""
        try:
            found = self._retries(lambda: self._fs.find(self._place(prefix), detail=True, withdirs=False), doing="list")
        except FileNotFoundError:
            return {}
        return {self._name(info["name"]): _entry(info) for info in found.values() if info.get("type") == "file"}

    def names(self, prefix: str = "") -> set[str]:
        """The names of the objects and folders directly in a folder."""
        return {info["name"].rstrip("/").rpartition("/")[2] for info in self._directly_in(prefix)}

    def files(self, prefix: str) -> dict[str, ObjectInfo]:
        """The objects directly in a folder, by their names."""
        found = (info for info in self._directly_in(prefix) if info.get("type") == "file")
        return {self._name(info["name"]): _entry(info) for info in found}

    def entry(self, name: str) -> ObjectInfo:
        """The listing of one object. Raises FileNotFoundError."""
        return _entry(self._retries(lambda: self._fs.info(self._place(name)), doing="read"))

    def read(self, name: str, *, start: int = 0, most: int | None = None, stopped: Event | None = None) -> bytes:
        """An object from `start` on, or its first `most` bytes from there. Raises FileNotFoundError."""
        # Always a range: without one s3fs first requests the size. An empty object has no range.
        if most == 0:
            return b""

        def read() -> bytes:
            try:
                end = None if most is None else start + most
                data: bytes = self._fs.cat_file(self._place(name), start=start, end=end)
            except Exception as error:
                if not has_no_range(error):
                    raise
                return b""
            return data

        return self._retries(read, doing="read", stopped=stopped)

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Several objects, without those that do not exist."""

        def read(name: str, stopped: Event) -> bytes | None:
            try:
                return self.read(name, stopped=stopped)
            except FileNotFoundError:
                return None

        names = tuple(names)
        found = zip(names, self._parallel(read, names, _PARALLEL), strict=True)
        return {name: data for name, data in found if data is not None}

    def write(self, name: str, data: bytes, *, create: bool = False) -> bool:
        """Write an object. With `create` only where there is none, if the store can tell; returns False if there is."""
        place = self._place(name)
        try:
            request = partial(self._create, place, data) if create else partial(self._fs.pipe_file, place, data)
            self._retries(request, doing="write")
        except FileExistsError:
            return False
        return True

    def upload_all(self, pairs: Iterable[tuple[Path, str]]) -> None:
        """Copy files to objects, in parallel; large ones one after another, the parts of each in parallel."""
        sized = [(file, name, file.stat().st_size) for file, name in pairs]
        for item in (item for item in sized if item[2] > _PART):
            self._upload(item)
        self._by_size(self._upload, [item for item in sized if item[2] <= _PART])

    def copy_all(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Copy objects to other names, within the store and in parallel. Raises FileNotFoundError."""

        def copy_one(pair: tuple[str, str], stopped: Event) -> None:
            source, target = map(self._place, pair)
            self._retries(lambda: self._fs.cp_file(source, target), doing="write", stopped=stopped)

        self._parallel(copy_one, pairs, _PARALLEL)

    def download_all(self, items: Iterable[tuple[str, Path, int]]) -> list[str]:
        """Copy objects of known sizes to files; the sha256 of each, in order. Raises FileNotFoundError."""
        items = list(items)
        for _, file, _ in items:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")

        def download(part: tuple[tuple[str, Path], int, int], stopped: Event) -> None:
            (name, file), start, size = part
            data = self.read(name, start=start, most=size, stopped=stopped)
            with file.open("r+b") as out:
                out.seek(start)
                out.write(data)

        self._by_size(download, [((name, file), *part) for name, file, size in items for part in _parts(size)])
        for _, file, _ in items:
            flush(file)
        return [file_digest(file) for _, file, _ in items]

    def digest(self, name: str, size: int) -> str:
        """The sha256 of an object of `size` bytes, read in parts, some of them ahead. Raises FileNotFoundError."""
        digest, parts = hashlib.sha256(), list(_parts(size))

        def read(part: tuple[int, int], stopped: Event) -> bytes:
            return self.read(name, start=part[0], most=part[1], stopped=stopped)

        for first in range(0, len(parts), _LARGE_PARALLEL):
            for data in self._parallel(read, parts[first : first + _LARGE_PARALLEL], _LARGE_PARALLEL):
                digest.update(data)
        return digest.hexdigest()

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; it does not matter whether they exist."""
        places = [self._place(name) for name in names]
        # A deletion of many objects would expand the characters of a pattern in a name.
        single = places if len(places) == 1 else [place for place in places if _GLOB & set(place)]

        def delete(place: str, stopped: Event) -> None:
            with suppress(FileNotFoundError):
                self._retries(lambda: self._fs.rm_file(place), doing="delete", stopped=stopped)

        self._parallel(delete, single, _PARALLEL)
        if together := [place for place in places if place not in set(single)]:
            try:
                self._retries(lambda: self._fs.rm(together), doing="delete")
            except FileNotFoundError:
                self._parallel(delete, together, _PARALLEL)

    def unfinished(self) -> dict[str, str]:
        """Multipart uploads that never ended, whose parts S3 keeps unseen: their ids by name, one of each name."""
        if not self.url.startswith("s3://"):
            return {}  # the others expire by themselves
        bucket, _, prefix = self._place("").partition("/")
        query = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
        try:
            found = self._retries(lambda: self._fs.call_s3("list_multipart_uploads", **query), doing="list")
        except BoomspecError:
            return {}  # not every server can list them, and not everybody may
        return {self._name(f"{bucket}/{upload['Key']}"): upload["UploadId"] for upload in found.get("Uploads", ())}

    def abort(self, name: str, upload: str) -> None:
        """Delete the parts of an upload that never ended."""
        bucket, _, key = self._place(name).partition("/")
        query = {"Bucket": bucket, "Key": key, "UploadId": upload}
        with suppress(FileNotFoundError):
            self._retries(lambda: self._fs.call_s3("abort_multipart_upload", **query), doing="delete")

    @property
    def _fs(self) -> Any:
        return _filesystem(self._store)[0]

    def _place(self, name: str) -> str:
        return f"{_filesystem(self._store)[1]}/{self._prefix}{name}".rstrip("/")

    def _name(self, place: str) -> str:
        return place.removeprefix(self._place("")).lstrip("/")

    def _directly_in(self, prefix: str) -> list[dict[str, Any]]:
        place = self._place(prefix)
        try:
            found: list[dict[str, Any]] = self._retries(lambda: self._fs.ls(place, detail=True), doing="list")
        except FileNotFoundError:
            return []
        return [info for info in found if info["name"].rstrip("/") != place]

    def _create(self, place: str, data: bytes) -> None:
        try:
            self._fs.pipe_file(place, data, mode="create")
        except Exception as error:
            if exists_already(error):
                with suppress(FileNotFoundError):  # deleted since
                    if self._fs.cat_file(place) == data:
                        return  # written by an attempt whose answer was lost
                raise FileExistsError(place) from None
            if not cannot_be_conditional(error):
                raise
            self._fs.pipe_file(place, data)  # the last writer wins

    def _upload(self, item: tuple[Path, str, int], stopped: Event | None = None) -> None:
        file, name, size = item
        part = max(_PART, -(-size // _MOST_PARTS // 2**20) * 2**20)
        scheme = self.url.partition("://")[0]
        how: dict[str, Any] = {"max_concurrency": _LARGE_PARALLEL} if not scheme.startswith("g") else {}
        how |= {"chunksize": part} if not scheme.startswith("a") else {"overwrite": True}
        self._retries(lambda: self._fs.put_file(str(file), self._place(name), **how), doing="write", stopped=stopped)

    def _by_size(self, action: Callable[[_Sized, Event], _R], items: list[_Sized]) -> None:
        """`action` of each item, whose bytes are its last member; few large ones at a time, as they are in memory."""
        self._parallel(action, [item for item in items if item[-1] <= _SMALL], _PARALLEL)
        self._parallel(action, [item for item in items if item[-1] > _SMALL], _LARGE_PARALLEL)

    def _parallel(self, action: Callable[[_T, Event], _R], items: Iterable[_T], threads: int) -> list[_R]:
        """`action` of each item, in order. Where one fails no others are begun, and nothing is retried."""
        items = list(items)
        stopped = Event()
        if len(items) < 2:
            return [action(item, stopped) for item in items]
        pool = ThreadPoolExecutor(min(threads, len(items)))
        try:
            return list(pool.map(lambda item: action(item, stopped), items))
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _parts(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(_PART, size - start)) for start in range(0, size, _PART))


def _entry(info: dict[str, Any]) -> ObjectInfo:
    moment: Any = next((info[key] for key in _MODIFIED if info.get(key) is not None), 0.0)
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    modified = moment.timestamp() if isinstance(moment, datetime) else float(moment)
    version = next((str(info[key]) for key in _VERSION if info.get(key) is not None), "")
    return ObjectInfo(int(info["size"]), f"{version} {info['size']} {modified}", modified)


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem of a URL and its name for the place; opened anew after a fork or where settings change."""
    key = (_forks, url, *sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS)))
    with _opening:
        if key not in _filesystems:
            from fsspec.core import url_to_fs  # imported here: it takes a third of a second

            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            if url.startswith("s3://"):
                # With botocore's own retries a person would wait for a minute to hear that nothing answers.
                retries = {"mode": "standard", "total_max_attempts": 2}
                connections = {"max_pool_connections": 2 * _PARALLEL, "connect_timeout": 10, "read_timeout": 60}
                options["config_kwargs"] = {"retries": retries, **connections}
            filesystem, place = url_to_fs(url, **options)
            if url.startswith("s3://"):
                filesystem.retries = 2
            _filesystems[key] = filesystem, place.rstrip("/")
        return _filesystems[key]


def _after_fork() -> None:
    global _opening, _forks
    _opening = Lock()  # a thread of the parent may hold the old one
    _forks += 1


os.register_at_fork(after_in_child=_after_fork)
