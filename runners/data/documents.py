"""Read the documents of a text source, one by one, in an order that never changes.

A file's sha256 is compared with the graph's before it is read: a corpus that changed since is an error, not another
result under the same id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import HELD_OUT_TEXT, Source
from boomspec.core.identity import file_digest
from runners.data.rows import BadRow, Row, Skipped, json_rows, jsonl_rows, parquet_rows, text_of, text_row

_READERS = {"jsonl": jsonl_rows, "json": json_rows, "parquet": parquet_rows}


@dataclass(frozen=True)
class Document:
    """One text. `bytes_read`: how far into the source's files it ends (0: unknown). `bad`: why the row has no text."""

    text: str
    bytes_read: int = 0
    bad: BadRow | None = None


class Documents:
    """The documents of a `text`, `held_out_text` or `hub_dataset` source, without the first `skip`.

    Empty documents count, too, so that a document's index is its place in the source; so do bad ones where
    `lenient`, else they raise. Raises BoomspecError for a file that is gone, changed or not of its format.

    `done`: how many documents after the skipped ones were read before; `state`: what `state()` returned then.
    """

    def __init__(
        self,
        source: Source,
        *,
        text_field: str,
        skip: int = 0,
        lenient: bool = False,
        done: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._lenient = lenient
        self._stream: Any = None
        if source.kind == "hub_dataset":
            self._rows = self._hub_rows(source, text_field, skip, done, state)
        elif source.kind in ("text", HELD_OUT_TEXT):
            self._rows = _file_rows(source, text_field, skip + done)
        else:
            raise TypeError(f"a source of kind {source.kind} has no documents")

    def __iter__(self) -> Iterator[Document]:
        for row, before, size in self._rows:
            text, read = row.text, before + int(size * row.share)
            if isinstance(text, str):
                yield Document(text, read)
            elif self._lenient:
                yield Document("", read, text)
            else:
                skip = "data.on_bad_row: skip leaves out what has no text, and counts it"
                raise BoomspecError(text.message, hint=f"{text.hint}; {skip}" if text.hint else skip)

    def state(self) -> dict[str, Any] | None:
        """Where to resume a hub data set; files need only the number of documents that were read."""
        if self._stream is None:
            return None
        found: dict[str, Any] = self._stream.state_dict()
        try:
            json.dumps(found, allow_nan=False)
        except (TypeError, ValueError):
            return None  # a resumed task reads again what was read
        return found

    def _hub_rows(
        self, source: Source, text_field: str, skip: int, done: int, state: dict[str, Any] | None
    ) -> Iterator[tuple[Row, int, int]]:
        import datasets  # 1 s, and only corpora from the hub need it

        hub, config, split, revision = (source.identity[name] for name in ("hub", "config", "split", "revision"))
        stream = datasets.load_dataset(hub, config, split=split, revision=revision, streaming=True)
        self._stream = stream = stream.skip(skip) if state is not None else stream.skip(skip + done)
        if state is not None:
            stream.load_state_dict(state)
        for number, row in enumerate(stream, start=skip + done + 1):
            yield Row(text_of(row, text_field, f"{hub} ({split}), row {number}")), 0, 0


def source_bytes(source: Source) -> int:
    """Bytes of all files of a source; 0 where they are not known."""
    return sum(file["bytes"] for file in source.identity.get("files", ()))


def _file_rows(source: Source, text_field: str, skip: int) -> Iterator[tuple[Row, int, int]]:
    """Every row, with the bytes of the files before its own and of its own."""
    files, paths, format = source.identity["files"], source.location["files"], source.identity["format"]
    if len(files) != len(paths):
        raise BoomspecError(f"the graph names {len(files)} text files but has places for {len(paths)}")
    if format != "text" and format not in _READERS:
        raise BoomspecError(f"{paths[0]}: format {format!r} is not known (allowed: text, {', '.join(_READERS)})")
    before, skipped = 0, Skipped(skip)
    for file, path in zip(files, map(Path, paths), strict=True):
        try:
            if format != "text":
                _check(path, file_digest(path), file["sha256"])
                rows = _READERS[format](path, text_field, skipped)
                yield from ((row, before, file["bytes"]) for row in rows)
            elif not skipped.take():
                data = path.read_bytes()
                _check(path, hashlib.sha256(data).hexdigest(), file["sha256"])
                yield text_row(data, path), before, file["bytes"]
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
