"""Small corpora and tokenize tasks for tests: files on disk and the sources and records that name them."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from boomspec.core.graph import Source
from boomspec.core.identity import file_digest
from boomspec.core.tasks import Tokenize, TrainTokenizer
from runners.runtime.context import Context, Progress
from runners.runtime.job import Input

TEXTS = [
    *(f"def function_{i}(x):\n    return x + {i}  # añadir {i} €\n" * 8 for i in range(9)),
    "",  # a document that is empty counts, but is not written
    "The end is written <|endoftext|>, which is only text here.\n",
]


def text_source(files: Sequence[Path], format: str = "text") -> Source:
    identity = {
        "files": [{"sha256": file_digest(file), "bytes": file.stat().st_size} for file in files],
        "format": format,
    }
    return Source("text", identity, {"files": [str(file) for file in files]})


def write_texts(folder: Path, texts: Sequence[str] = TEXTS) -> Source:
    """One file for each document."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:03}.txt" for index in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text.encode("utf-8"))
    return text_source(files)


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> Source:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return text_source([file], "jsonl")


def record(**fields: Any) -> Tokenize:
    plain: dict[str, Any] = {
        "text_field": "text",
        "train_tokenizer": TrainTokenizer(vocabulary=300, bytes=3000),
        "skip": 0,
        "held_out_every": 4,
        "held_out_offset": 1,
    }
    return Tokenize(**plain | fields)


def context(folder: Path, record: Tokenize, **sources: Source) -> Context[Tokenize]:
    folder.mkdir(parents=True)
    return Context(
        record=record,
        inputs={role: Input(source.id, source=source) for role, source in sources.items()},
        path=folder,
        resume=folder.with_name(f"{folder.name}.resume"),
        progress=Progress(folder.with_name(f"{folder.name}.jsonl"), every_seconds=0.0),
    )


def progress_lines(context: Context[Tokenize]) -> list[dict[str, Any]]:
    file = context.path.with_name(f"{context.path.name}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def tokenizer_source(folder: Path) -> Source:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {file.relative_to(folder).as_posix(): file_digest(file) for file in found}
    return Source("tokenizer", {"sha256": files}, {"folder": str(folder)})


def as_pipe(file: Path) -> bytes:
    """Put a pipe in the place of a file, so that a test decides when its reader goes on. Returns its content."""
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    return content


def feed(pipe: Path, content: bytes, *, seconds: float = 300) -> None:
    """Give a pipe's next reader its content; wait for one to come."""
    end = time.monotonic() + seconds
    while True:
        try:
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > end:  # ENXIO: nobody reads yet
                raise
            time.sleep(0.02)
    with os.fdopen(descriptor, "wb") as file:
        os.set_blocking(descriptor, True)
        file.write(content)


def wait_until(condition: Callable[[], bool], *, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
