"""The objects below a URL, by their names relative to it: listing, reading, writing, copying from and to files.

Over fsspec, with patience: what does not answer is asked again. Objects are written whole or not at all. Nothing is
remembered of a listing, so that one never hides what another machine has written.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from boomspec.core.errors import BoomspecError
from boomspec.core.files import flush
from boomspec.store.filesystems import PARALLEL, filesystem
from boomspec.store.permissions import Operation
from boomspec.store.retry import Patience, cannot_be_conditional, exists_already, has_no_range

_PART = 16 * 2**20  # bytes of one request; the parts of a large file are copied in parallel
_SMALL = 2**20  # bytes of a file of which many are copied at a time
_LARGE_PARALLEL = 8  # requests; fewer than of small ones, for parts are held in memory
_MOST_PARTS = 9_000  # of one file: S3 allows 10,000
_GLOB = frozenset("*?[")
# Times and versions of an object are called differently by every filesystem.
_MODIFIED = ("LastModified", "last_modified", "mtime", "updated")
_VERSION = ("ETag", "etag", "generation", "md5Hash")
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Entry:
    """What a listing says of an object. `version` is another one as soon as it is written anew.

    modified: seconds since 1970 by the clock of the store.
    """

    size: int
    version: str
    modified: float


class Bucket:
    """The objects below one URL. Safe to use from several threads, and in processes that are forked."""

    def __init__(self, url: str, *, tell: Callable[[str], None] | None = None, seconds: float | None = None) -> None:
        self.url = url.rstrip("/")
        self._patience = Patience(self.url, tell=tell, seconds=seconds)

    def hurried(self, seconds: float = 0) -> Bucket:
        """The same objects with so much patience: what does not answer by then is an error."""
        return Bucket(self.url, seconds=seconds)

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """All objects below a folder, at any depth, by their names."""
        try:
            found = self._ask("list", lambda: self._fs.find(self._place(prefix), detail=True, withdirs=False))
        except FileNotFoundError:
            return {}
        files = (info for info in found.values() if info.get("type") == "file")
        return {self._name(info["name"]): _entry(info) for info in files}

    def names(self, prefix: str = "") -> set[str]:
        """What is directly in a folder: names of objects, and of the folders there."""
        place = self._place(prefix)
        try:
            found = self._ask("list", lambda: self._fs.ls(place, detail=True))
        except FileNotFoundError:
            return set()
        return {info["name"].rstrip("/").rpartition("/")[2] for info in found if info["name"].rstrip("/") != place}

    def files(self, prefix: str) -> dict[str, Entry]:
        """The objects directly in a folder, by their names."""
        try:
            found = self._ask("list", lambda: self._fs.ls(self._place(prefix), detail=True))
        except FileNotFoundError:
            return {}
        place = self._place(prefix)
        files = (info for info in found if info.get("type") == "file" and info["name"] != place)
        return {self._name(info["name"]): _entry(info) for info in files}

    def entry(self, name: str) -> Entry:
        """What is known of one object. Raises FileNotFoundError."""
        return _entry(self._ask("read", lambda: self._fs.info(self._place(name))))

    def read(self, name: str, *, most: int | None = None) -> bytes:
        """An object, or its first `most` bytes. Raises FileNotFoundError."""
        return self._read(name, 0, most)

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Several objects, those that are there."""

        def read(name: str, until: threading.Event) -> bytes | None:
            try:
                return self._read(name, 0, None, until=until)
            except FileNotFoundError:
                return None

        names = tuple(names)
        found = zip(names, self._parallel(read, names, PARALLEL), strict=True)
        return {name: data for name, data in found if data is not None}

    def write(self, name: str, data: bytes, *, create: bool = False) -> bool:
        """Write an object. `create`: only where there is none, where the store can; False where there was one."""
        place = self._place(name)
        if create:
            try:
                self._ask("write", lambda: self._create(place, data))
                return True
            except FileExistsError:
                return False
        self._ask("write", lambda: self._fs.pipe_file(place, data))
        return True

    def upload_all(self, pairs: Iterable[tuple[Path, str]]) -> None:
        """Copy files to objects, in parallel; large ones one after another, the parts of each in parallel."""
        sized = [(file, name, file.stat().st_size) for file, name in pairs]
        for item in (item for item in sized if item[2] > _PART):
            self._upload(item)
        for some, threads in _groups(sized, lambda item: item[2]):
            self._parallel(self._upload, some, threads)

    def copy_all(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Copy objects to other names, within the store and in parallel. Raises FileNotFoundError."""

        def copy(pair: tuple[str, str], until: threading.Event) -> None:
            self._ask("write", lambda: self._fs.cp_file(self._place(pair[0]), self._place(pair[1])), until=until)

        self._parallel(copy, pairs, PARALLEL)

    def download(self, name: str, file: Path, size: int) -> str:
        """Copy an object of `size` bytes to a file. Returns the sha256 of what was read. Raises FileNotFoundError."""
        digest = hashlib.sha256()
        with file.open("wb") as out:
            for part in self._parts(name, size):
                digest.update(part)
                out.write(part)
        flush(file)
        return digest.hexdigest()

    def download_all(self, items: Iterable[tuple[str, Path, int]]) -> list[str]:
        """Copy objects to files in parallel, as `upload_all` does. Returns the sha256 of each, in their order."""
        items = list(items)
        for _, file, _ in items:
            file.parent.mkdir(parents=True, exist_ok=True)
        digests = {i: self.download(*item) for i, item in enumerate(items) if item[2] > _PART}

        def download(index: int, until: threading.Event) -> str:
            name, file, size = items[index]
            data = self._read(name, 0, size, until=until)
            file.write_bytes(data)
            flush(file)
            return hashlib.sha256(data).hexdigest()

        for some, threads in _groups(list(range(len(items))), lambda index: items[index][2]):
            digests |= zip(some, self._parallel(download, some, threads), strict=True)
        return [digests[i] for i in range(len(items))]

    def digest(self, name: str, size: int) -> str:
        """The sha256 of an object of `size` bytes, as it is read now. Raises FileNotFoundError."""
        digest = hashlib.sha256()
        for part in self._parts(name, size):
            digest.update(part)
        return digest.hexdigest()

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are not there are none the less gone."""
        places = [self._place(name) for name in names]
        alone = places if len(places) == 1 else [place for place in places if _GLOB & set(place)]

        def delete(place: str, until: threading.Event) -> None:
            try:
                self._ask("delete", lambda: self._fs.rm_file(place), until=until)
            except FileNotFoundError:
                return

        self._parallel(delete, alone, PARALLEL)
        if together := [place for place in places if place not in set(alone)]:
            try:
                self._ask("delete", lambda: self._fs.rm(together))
            except FileNotFoundError:
                self._parallel(delete, together, PARALLEL)

    def unfinished(self) -> dict[str, str]:
        """Uploads in parts that never ended, whose parts S3 keeps unseen: their ids, by name; of each name one."""
        if not self.url.startswith("s3://"):
            return {}  # the others forget them by themselves
        bucket, _, prefix = self._place("").partition("/")
        asked = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
        try:
            found = self._ask("list", lambda: self._fs.call_s3("list_multipart_uploads", **asked)).get("Uploads", ())
        except BoomspecError:
            return {}  # not every server knows how, and not everybody may
        return {self._name(f"{bucket}/{upload['Key']}"): upload["UploadId"] for upload in found}

    def abort(self, name: str, upload: str) -> None:
        """Delete the parts of an upload that never ended."""
        bucket, _, key = self._place(name).partition("/")
        asked = {"Bucket": bucket, "Key": key, "UploadId": upload}
        with suppress(FileNotFoundError):
            self._ask("delete", lambda: self._fs.call_s3("abort_multipart_upload", **asked))

    @property
    def _fs(self) -> Any:
        return filesystem(self.url)[0]

    def _ask(self, doing: Operation, action: Callable[[], _T], *, until: threading.Event | None = None) -> _T:
        return self._patience(action, doing=doing, until=until)

    def _place(self, name: str) -> str:
        return f"{filesystem(self.url)[1]}/{name}".rstrip("/")

    def _name(self, place: str) -> str:
        return place.removeprefix(self._place("")).lstrip("/")

    def _create(self, place: str, data: bytes) -> None:
        try:
            self._fs.pipe_file(place, data, mode="create")
        except Exception as error:
            if exists_already(error):
                with suppress(FileNotFoundError):  # it is gone again
                    if self._fs.cat_file(place) == data:
                        return  # written by an attempt whose answer was lost
                raise FileExistsError(place) from None
            if not cannot_be_conditional(error):
                raise
            self._fs.pipe_file(place, data)  # then the last one wins

    def _read(self, name: str, start: int, end: int | None, *, until: threading.Event | None = None) -> bytes:
        # Always a range, whatever the size: without one s3fs first asks for it. An empty object has no range.
        if end == start:
            return b""
        data: bytes = self._ask("read", lambda: self._span(self._place(name), start, end), until=until)
        return data

    def _span(self, place: str, start: int, end: int | None) -> bytes:
        try:
            data: bytes = self._fs.cat_file(place, start=start, end=end)
        except Exception as error:
            if not has_no_range(error):
                raise
            return b""
        return data

    def _parts(self, name: str, size: int) -> Iterator[bytes]:
        """An object in order, some parts ahead of who reads them."""
        if size <= _PART:
            yield self._read(name, 0, size)
            return
        until = threading.Event()
        pool = ThreadPoolExecutor(_LARGE_PARALLEL)
        ahead: deque[Future[bytes]] = deque()
        try:
            for start in range(0, size, _PART):
                ahead.append(pool.submit(self._read, name, start, min(start + _PART, size), until=until))
                if len(ahead) == _LARGE_PARALLEL:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            until.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _upload(self, item: tuple[Path, str, int], until: threading.Event | None = None) -> None:
        file, name, size = item
        part = max(_PART, -(-size // _MOST_PARTS // 2**20) * 2**20)
        scheme = self.url.partition("://")[0]
        options: dict[str, Any] = {"max_concurrency": _LARGE_PARALLEL} if not scheme.startswith("g") else {}
        options |= {"chunksize": part} if not scheme.startswith("a") else {"overwrite": True}
        self._ask("write", lambda: self._fs.put_file(str(file), self._place(name), **options), until=until)

    def _parallel(self, action: Callable[[_T, threading.Event], _R], items: Iterable[_T], threads: int) -> list[_R]:
        """`action` of each, in their order. Where one fails the others are not begun, and nothing is repeated."""
        items = list(items)
        until = threading.Event()
        if len(items) < 2:
            return [action(item, until) for item in items]
        pool = ThreadPoolExecutor(min(threads, len(items)))
        try:
            return list(pool.map(lambda item: action(item, until), items))
        finally:
            until.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _groups(items: list[_T], size: Callable[[_T], int]) -> Iterator[tuple[list[_T], int]]:
    """Those that fit into one request, and how many of them at a time: they are held in memory."""
    yield [item for item in items if size(item) <= _SMALL], PARALLEL
    yield [item for item in items if _SMALL < size(item) <= _PART], _LARGE_PARALLEL


def _entry(info: dict[str, Any]) -> Entry:
    moment: Any = next((info[key] for key in _MODIFIED if info.get(key) is not None), 0.0)
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    modified = moment.timestamp() if isinstance(moment, datetime) else float(moment)
    version = next((str(info[key]) for key in _VERSION if info.get(key) is not None), "")
    return Entry(int(info["size"]), f"{version} {info['size']} {modified}", modified)
