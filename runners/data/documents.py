"""Read the documents of a text source, one by one, in an order that never changes.

    text      a whole file is one document
    jsonl     a JSON object a line; blank lines are no rows
    json      an array of JSON objects, read piece by piece; a file of lines is read as jsonl
    parquet   a row each, as of a data set of the hub

A file's sha256 is compared with the graph's before it is read: a corpus that changed since is an error, not another
result under the same id. text, jsonl and json may be compressed (gzip, zstd), whatever their names say; several frames
or members in one file follow each other, as parallel compressors write them. A byte order mark is not text. A row
without text has a `BadRow` in its place. A file that cannot be read as a whole, such as a truncated one, raises.
"""

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import zstandard

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source
from boomspec.core.identity import file_digest
from runners.data.chat import Rendered
from runners.data.rows import MARK, BadRow, no_field, text_of

_PARQUET_ROWS = 256  # read at a time
_PIECE = 1 << 20  # characters of a JSON array that are read at a time
_LONGEST = 1 << 28  # characters of one element of it
_SPACES = re.compile(r"[ \t\r\n]*")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_EXTRA = b"\x2a\x4d\x18"  # after 0x50 to 0x5f: a frame without data, with which some files begin
_ZSTD_WINDOW = 1 << 31  # of zstd --long=31, the largest that there is
_ZSTD_PIECE = 1 << 14  # compressed bytes at a time: what they expand to is in memory
_TRUNCATED = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)


Content = str | Rendered | BadRow  # what a row holds, or why it holds nothing
Row = tuple[Content, int]  # how many bytes of the file are read after it


@dataclass
class Skipped:
    """How many rows are still to be skipped; they are not parsed."""

    count: int

    def take(self, rows: int = 1) -> bool:
        """Whether the next `rows` rows are all skipped."""
        taken = self.count >= rows
        self.count -= rows * taken
        return taken


class Document(NamedTuple):
    """One text. `bytes_read`: how far into the source's files it ends (0: unknown). `bad`: why the row has no text.

    `chat`: the conversation whose rendered text it is.
    """

    text: str
    bytes_read: int = 0
    bad: BadRow | None = None
    chat: Rendered | None = None


class RowReader(Protocol):
    """Makes something of a row. `columns`: the fields that it reads, of which `optional` may be missing."""

    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def optional(self) -> tuple[str, ...]: ...
    def __call__(self, row: Any, place: str) -> Content: ...


@dataclass(frozen=True)
class TextField:
    """Reads the text of a row: one field."""

    name: str
    optional: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def __call__(self, row: Any, place: str) -> Content:
        return text_of(row, self.name, place)


@dataclass
class Documents:
    """The documents of a `text`, `held_out_text` or `hub_dataset` source, without the first `skip`.

    Empty documents count, too, so that a document's index is its place in the source; so do bad ones where
    `lenient`, else they raise. Raises BoomspecError for a file that is gone, changed or not of its format.
    """

    source: Source
    reader: RowReader
    skip: int = 0
    lenient: bool = False
    done: int = 0  # how many documents after the skipped ones were read before
    state: dict[str, Any] | None = None  # what `reached()` returned then
    _stream: Any = None

    def __iter__(self) -> Iterator[Document]:
        for text, read in self._hub_rows() if self.source.kind == "hub_dataset" else self._file_rows():
            if isinstance(text, str):
                yield Document(text, read)
            elif isinstance(text, Rendered):
                yield Document(text.text, read, chat=text)
            elif self.lenient:
                yield Document("", read, text)
            else:
                skip = "data.on_bad_row: skip leaves out what has no text, and counts it"
                raise BoomspecError(text.message, hint=f"{text.hint}; {skip}" if text.hint else skip)

    def reached(self) -> dict[str, Any] | None:
        """Where to resume a hub data set; files need only the number of documents that were read."""
        if self._stream is None:
            return None
        found: dict[str, Any] = self._stream.state_dict()
        try:
            json.dumps(found, allow_nan=False)
        except (TypeError, ValueError):
            return None  # a resumed task reads again what was read
        return found

    def _hub_rows(self) -> Iterator[Row]:
        import datasets  # 1 s, and only corpora from the hub need it

        hub, config, split, revision = (self.source.identity[name] for name in ("hub", "config", "split", "revision"))
        stream = datasets.load_dataset(hub, config, split=split, revision=revision, streaming=True)
        self._stream = stream = stream.skip(self.skip if self.state is not None else self.skip + self.done)
        if self.state is not None:
            stream.load_state_dict(self.state)
        for number, row in enumerate(stream, start=self.skip + self.done + 1):
            yield self.reader(row, f"{hub} ({split}), row {number}"), 0

    def _file_rows(self) -> Iterator[Row]:
        """The rows of all files; the bytes that are read are those of all files, too."""
        identity, paths = self.source.identity, self.source.location["files"]
        files, format = identity["files"], identity["format"]
        readers = {"jsonl": _jsonl_rows, "json": _json_rows, "parquet": _parquet_rows}
        before, skipped = 0, Skipped(self.skip + self.done)
        for file, path in zip(files, map(Path, paths), strict=True):
            try:
                if format != "text" or not skipped.take():
                    data = path.read_bytes() if format == "text" else None  # what is digested is what is read
                    found = file_digest(path) if data is None else hashlib.sha256(data).hexdigest()
                    if found != file["sha256"]:
                        digests = f"sha256 {found[:12]}..., the graph was compiled for {file['sha256'][:12]}..."
                        message = f"{path}: the file has changed since the spec was compiled ({digests})"
                        raise BoomspecError(message, hint="compile the spec again: the new text makes new artifacts")
                    rows = _text_row(data, path) if data is not None else readers[format](path, self.reader, skipped)
                    yield from ((text, before + read) for text, read in rows)
            except OSError as error:
                raise BoomspecError(f"{path}: cannot be read: {error.strerror or error}") from error
            before += file["bytes"]


@contextmanager
def _decompressed(path: Path, data: bytes | None = None) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A file's bytes without their compression, and the file itself, whose position says how far it is read.

    `data`: what the file holds, where it has been read.
    """
    with path.open("rb") if data is None else io.BytesIO(data) as raw:
        start = raw.read(4)
        raw.seek(0)
        try:
            if start.startswith(_GZIP):
                with gzip.GzipFile(fileobj=raw) as file:
                    yield cast(BinaryIO, file), raw
            elif start == _ZSTD or (start[1:] == _ZSTD_EXTRA and start[0] >> 4 == 5):
                yield io.BufferedReader(_Zstd(raw), 1 << 20), raw
            else:
                yield raw, raw
        except _TRUNCATED as error:
            hint = "is the file whole? copy it again"
            raise BoomspecError(f"{path}: cannot be decompressed: {error}", hint=hint) from error


class _Zstd(io.RawIOBase):
    """The data of all frames of a stream. The library's own reader takes a truncated frame for a whole one."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._rest, self._data, self._at = raw, b"", b"", 0
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._at == len(self._data):
            piece = self._rest or self._raw.read(_ZSTD_PIECE)
            if not piece:
                if self._frame is not None:
                    raise EOFError("it ends before its end-of-frame marker")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
            self._data, self._at = self._frame.decompress(piece), 0
            self._rest = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._data) - self._at)
        buffer[:count] = self._data[self._at : self._at + count]
        self._at += count
        return count


def _text_row(data: bytes, path: Path) -> Iterator[Row]:
    size = len(data)
    with _decompressed(path, data) as (file, _):
        data = file.read()
    _check_encoding(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield BadRow("not UTF-8", f"{path}:{line}: not UTF-8 text: {error.reason} at byte {error.start}"), size
        return
    hint = "is it UTF-16 (iconv -f UTF-16 -t UTF-8), or no text at all?"
    yield BadRow("not text", f"{path}: holds NUL characters, which no text has", hint) if "\0" in text else text, size


def _jsonl_rows(path: Path, reader: RowReader, skipped: Skipped) -> Iterator[Row]:
    with _decompressed(path) as (file, raw):
        done = 0
        for number, line in enumerate(file, start=1):
            if number == 1:
                _check_encoding(line, path)
                line = line.removeprefix(MARK.encode())
            done += len(line)
            # Blank lines, as at the end of many files, are no rows.
            if line.strip() and not skipped.take():
                place = f"{path}:{number}"
                try:
                    text = reader(json.loads(line.decode("utf-8")), place)
                except UnicodeDecodeError as error:
                    message = f"{place}: not UTF-8 text: {error.reason} at byte {error.start} of the line"
                    text = BadRow("not UTF-8", message)
                except (ValueError, RecursionError) as error:
                    text = BadRow("not JSON", f"{place}: not a JSON line: {error}")
                yield text, done if file is raw else raw.tell()


def _json_rows(path: Path, reader: RowReader, skipped: Skipped) -> Iterator[Row]:
    """The elements of an array; memory holds one of them and a piece of the file."""
    with _decompressed(path) as (file, raw):
        head = cast(io.BufferedReader, file).peek(_PIECE)
        _check_encoding(head, path)
        if head.removeprefix(MARK.encode()).lstrip()[:1] != b"{":
            with io.TextIOWrapper(file, encoding="utf-8-sig") as characters:
                for number, row in enumerate(_elements(characters, path), start=1):
                    if not skipped.take():
                        yield reader(row, f"{path}, element {number}"), raw.tell()
            return
    yield from _jsonl_rows(path, reader, skipped)  # lines, whatever its ending says


def _elements(file: io.TextIOWrapper, path: Path) -> Iterator[Any]:
    decoder, buffer, at, begun = json.JSONDecoder(), "", 0, False
    piece, line = _PIECE, 1

    def wrong(what: str, place: int) -> BoomspecError:
        newlines = buffer.count("\n", 0, place)
        message = f"{path}:{line + newlines}: not a JSON array: {what}"
        return BoomspecError(message, hint="an array of objects, or a line each (.jsonl)")

    while True:
        try:
            more = file.read(piece)
        except UnicodeDecodeError as error:
            raise BoomspecError(f"{path}: not UTF-8 text: {error.reason}") from error
        line += buffer.count("\n", 0, at)
        buffer, at = buffer[at:] + more, 0
        while (at := _skip_spaces(buffer, at)) < len(buffer):
            if not begun:
                if buffer[at] != "[":
                    raise wrong("it does not begin with '['", 0)
                at, begun = at + 1, True
                continue
            if buffer[at] == "]":
                if buffer[at + 1 :].strip() or file.read(_PIECE).strip():
                    raise wrong("something follows its end", 0)
                return
            try:
                value, end = decoder.raw_decode(buffer, at)
            except (ValueError, RecursionError) as error:
                if more and len(buffer) - at < _LONGEST and not isinstance(error, RecursionError):
                    break  # the rest of the element is not read yet
                raise wrong(str(error), at) from error
            end = _skip_spaces(buffer, end)
            if end == len(buffer):
                break  # what follows is not read yet
            if buffer[end] not in ",]":
                raise wrong(f"',' or ']' is missing before {buffer[end]!r}", end)
            at = end + (buffer[end] == ",")
            yield value
        if not more:
            raise wrong("its end is missing", len(buffer))
        piece = max(_PIECE, len(buffer) - at)  # so that a long element is not parsed too often


def _skip_spaces(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    return at if found is None else found.end()


def _parquet_rows(path: Path, reader: RowReader, skipped: Skipped) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path, memory_map=True)
    except pa.ArrowInvalid as error:
        raise BoomspecError(f"{path}: not a parquet file: {error}") from error
    with table:
        names = table.schema_arrow.names
        columns: list[str] = []
        for field in reader.columns:
            column = field if field in names else field.partition(".")[0]
            if column in names:
                columns.append(column)
            elif field not in reader.optional:
                setting = "data.text_field" if isinstance(reader, TextField) else "the fields of data"
                bad = no_field(str(path), field, names, setting)
                raise BoomspecError(bad.message, hint=bad.hint)
        size, number = path.stat().st_size, 0
        # Of a column that holds others all are read where their names alone do not say which one is meant.
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=list(dict.fromkeys(columns))):
            first, number = number + 1, number + batch.num_rows
            if not skipped.take(batch.num_rows):
                for place, row in enumerate(batch.to_pylist(), start=first):
                    if not skipped.take():
                        yield reader(row, f"{path}, row {place}"), size * place // table.metadata.num_rows


def _check_encoding(start: bytes, path: Path) -> None:
    """Raise BoomspecError for UTF-16, which is never a matter of one row."""
    if start[:2] in _UTF_16:
        hint = f"save it as UTF-8: iconv -f UTF-16 -t UTF-8 {path.name}"
        raise BoomspecError(f"{path}: is UTF-16, not UTF-8", hint=hint)
