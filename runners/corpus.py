"""Read the documents of a text source, one by one, in an order that never changes.

A file must still be what the graph says it is: its sha256 is compared before it is read, so a corpus
that changed under a graph is an error, not another result under the same id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from boomspec.errors import BoomspecError, did_you_mean
from boomspec.graph import Source
from boomspec.identity import file_digest

_PARQUET_ROWS = 256  # read at a time


@dataclass(frozen=True)
class Document:
    """One text. `bytes_read`: how far into the source's files it ends (0 where that is not known)."""

    text: str
    bytes_read: int = 0


def documents(source: Source, *, text_field: str, skip: int = 0) -> Iterator[Document]:
    """Yield the documents of a `text` or `hub_dataset` source, without the first `skip`.

    Empty documents are yielded too, so that a document's index is its place in the source. Raises
    BoomspecError for a file that is gone, changed or not of its format, and for a missing `text_field`.
    """
    if source.kind == "hub_dataset":
        return _hub_documents(source, text_field, skip)
    if source.kind == "text":
        return islice(_file_documents(source, text_field), skip, None)
    raise TypeError(f"a source of kind {source.kind} has no documents")


def source_bytes(source: Source) -> int:
    """Bytes of all files of a source; 0 where that is not known."""
    return sum(file["bytes"] for file in source.identity.get("files", ()))


def _file_documents(source: Source, text_field: str) -> Iterator[Document]:
    files, paths = source.identity["files"], source.location["files"]
    if len(files) != len(paths):
        raise BoomspecError(f"the graph names {len(files)} text files but has places for {len(paths)}")
    before = 0
    for file, path in zip(files, map(Path, paths), strict=True):
        try:
            match source.identity["format"]:
                case "text":
                    yield _text_document(path, file["sha256"], before)
                case "jsonl":
                    _check(path, file_digest(path), file["sha256"])
                    yield from _jsonl_documents(path, text_field, before)
                case "parquet":
                    _check(path, file_digest(path), file["sha256"])
                    yield from _parquet_documents(path, text_field, before)
                case other:
                    raise BoomspecError(f"{path}: format {other!r} is not known (allowed: text, jsonl, parquet)")
        except OSError as error:
            raise BoomspecError(f"{path}: cannot be read: {error.strerror or error}") from error
        before += file["bytes"]


def _check(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise BoomspecError(
            f"{path}: the file has changed since the spec was compiled "
            f"(sha256 {found[:12]}..., the graph was compiled for {expected[:12]}...)",
            hint="compile the spec again: the new text makes new artifacts",
        )


def _text_document(path: Path, sha256: str, before: int) -> Document:
    data = path.read_bytes()
    _check(path, hashlib.sha256(data).hexdigest(), sha256)
    try:
        return Document(data.decode("utf-8"), before + len(data))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BoomspecError(f"{path}:{line}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def _jsonl_documents(path: Path, text_field: str, before: int) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            before += len(line)
            if not line.strip():
                continue  # as at the end of many files; not a document
            try:
                row = json.loads(line)
            except ValueError as error:  # UnicodeDecodeError is one, too
                raise BoomspecError(f"{path}:{number}: not a JSON line: {error}") from error
            yield Document(_text(row, text_field, f"{path}:{number}"), before)


def _parquet_documents(path: Path, text_field: str, before: int) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    try:
        table = pq.ParquetFile(path, memory_map=True)
    except pa.ArrowInvalid as error:
        raise BoomspecError(f"{path}: not a parquet file: {error}") from error
    with table:
        if text_field not in table.schema_arrow.names:
            raise _no_field(str(path), text_field, table.schema_arrow.names)
        rows = table.metadata.num_rows
        number = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
            for row in batch.to_pylist():
                number += 1
                text = _text(row, text_field, f"{path}, row {number}")
                yield Document(text, before + size * number // rows)


def _hub_documents(source: Source, text_field: str, skip: int) -> Iterator[Document]:
    import datasets  # 1 s, and only corpora from the hub need it

    hub, split = source.identity["hub"], source.identity["split"]
    stream = datasets.load_dataset(
        hub, source.identity["config"], split=split, revision=source.identity["revision"], streaming=True
    )
    for number, row in enumerate(stream.skip(skip), start=skip + 1):
        yield Document(_text(row, text_field, f"{hub} ({split}), row {number}"))


def _text(row: Any, text_field: str, place: str) -> str:
    if not isinstance(row, dict):
        raise BoomspecError(f"{place}: expected an object with a field '{text_field}', not {type(row).__name__}")
    if text_field not in row:
        raise _no_field(place, text_field, [str(name) for name in row])
    text = row[text_field]
    if not isinstance(text, str):
        raise BoomspecError(
            f"{place}: field '{text_field}' is {'null' if text is None else type(text).__name__}, not text"
        )
    # JSON can hold half a character ("\ud83d"), which real web text does now and then; no encoding has it.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _no_field(place: str, text_field: str, found: list[str]) -> BoomspecError:
    return BoomspecError(
        f"{place}: has no field '{text_field}' (it has: {', '.join(found[:20]) or 'none'})",
        hint=did_you_mean(text_field, found) or "set data.text_field",
    )
