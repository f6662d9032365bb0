"""Bytes of files that may be compressed (gzip, zstd), whatever their names say; one that is cut is an error.

Several frames or members behind each other are one file, as parallel compressors write them.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from boomspec.core.errors import BoomspecError

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_EXTRA = b"\x2a\x4d\x18"  # behind 0x50 to 0x5f: a frame without data, with which some files begin
_WINDOW = 1 << 31  # of zstd --long=31, the largest that there is
_PIECE = 1 << 14  # compressed bytes at a time: what they expand to is in memory
_NOT_WHOLE = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)


class opened:  # noqa: N801 - used as a function
    """A file's bytes as they are without compression, and the file itself, to tell how far it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[IO[bytes], IO[bytes]]:
        self._raw = raw = self._path.open("rb")
        start = raw.read(4)
        raw.seek(0)
        if start.startswith(_GZIP):
            return cast(IO[bytes], gzip.open(raw, "rb")), raw
        if _is_zstd(start):
            return cast(IO[bytes], io.BufferedReader(_Zstd(raw), 1 << 20)), raw
        return raw, raw

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        self._raw.close()
        if isinstance(error, _NOT_WHOLE):
            raise _damaged(self._path, error) from error


def plain_bytes(data: bytes, path: Path) -> bytes:
    """The bytes of the file `path`, which are `data`, without its compression."""
    try:
        if data.startswith(_GZIP):
            return gzip.decompress(data)
        if _is_zstd(data[:4]):
            return io.BufferedReader(_Zstd(io.BytesIO(data)), 1 << 20).read()
    except _NOT_WHOLE as error:
        raise _damaged(path, error) from error
    return data


def _is_zstd(start: bytes) -> bool:
    return start == _ZSTD or (start[1:] == _ZSTD_EXTRA and start[0] >> 4 == 5)


class _Zstd(io.RawIOBase):
    """The data of all frames of a stream. The library's own reader takes a frame that is cut for one that is whole."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._rest, self._data, self._at = raw, b"", b"", 0
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._at == len(self._data):
            piece = self._rest or self._raw.read(_PIECE)
            if not piece:
                if self._frame is not None:
                    raise EOFError("it ends before its end-of-frame marker")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
            self._data, self._at = self._frame.decompress(piece), 0
            self._rest = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._data) - self._at)
        buffer[:count] = self._data[self._at : self._at + count]
        self._at += count
        return count


def _damaged(path: Path, error: BaseException) -> BoomspecError:
    return BoomspecError(f"{path}: cannot be decompressed: {error}", hint="is the file whole? copy it again")
