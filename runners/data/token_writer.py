"""Write a token artifact's streams so that a task which is killed goes on from its last checkpoint, to the same bytes.

    <resume>/train.bin, held_out.bin   what is written so far, with more behind it than the checkpoint knows
    <resume>/tokens.json               the checkpoint: how far the text is read, the counts, the length and crc of each

The files are moved into the payload at the end. A checkpoint is behind whole batches of documents; what stands behind
it is cut off. What does not match its checksum is passed over with a note: the task starts again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from boomspec.core.files import flush, write_atomically

CHECKPOINT_SECONDS = 60.0
_STATE = "tokens.json"
_READ = 1 << 24  # bytes
_SPLITS = ("train", "held_out")
Text = bytes  # in UTF-8; a count has a field of that name


@dataclass
class Count:
    """What one stream holds. `rows`: sha256 chained over each document's length (8 bytes, little-endian) and text."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    rows: str = ""
    crc: int = 0  # of the file's bytes

    def add(self, text: Text, tokens: int) -> None:
        self.tokens += tokens
        self.documents += 1
        self.bytes += len(text)
        # A chain of digests, and not one over everything: it can be gone on with.
        self.rows = hashlib.sha256(bytes.fromhex(self.rows) + len(text).to_bytes(8, "little") + text).hexdigest()

    def size(self) -> dict[str, int]:
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}

    def read(self) -> dict[str, Any]:
        return {"documents": self.documents, "sha256": self.rows or hashlib.sha256().hexdigest()}


@dataclass
class Place:
    """How far the text is read: documents of each of its sources, and of a data set what it goes on from."""

    part: int = 0
    documents: int = 0
    state: dict[str, Any] | None = None


@dataclass
class TokenWriter:
    """Both streams in the making. `prefix`: tokens that every document begins with."""

    folder: Path  # where a killed task finds them again
    dtype: np.dtype[Any]
    eos: int
    prefix: Sequence[int]
    note: Callable[[str], None]
    seconds: float = CHECKPOINT_SECONDS
    place: Place = field(default_factory=Place)
    counts: dict[str, Count] = field(default_factory=lambda: {split: Count() for split in _SPLITS})
    bad: Counter[str] = field(default_factory=Counter)
    _files: dict[str, IO[bytes]] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic)

    def open(self) -> None:
        """Begin, or go on from the checkpoint that is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (state := self._whole_state()) is not None:
            self.place = Place(**state["place"])
            self.counts = {split: Count(**count) for split, count in state["counts"].items()}
            self.bad = Counter(state["bad"])
            self.note(f"continues behind document {self.place.documents:,}")
        for split in _SPLITS:
            file = (self.folder / f"{split}.bin").open("r+b" if state is not None else "w+b")
            file.truncate(self.counts[split].tokens * self.dtype.itemsize)
            file.seek(0, os.SEEK_END)
            self._files[split] = file

    def add(self, split: str, text: str, ids: Sequence[int]) -> None:
        """Append a document: EOS d1 EOS d2 EOS, or with a prefix B d1 EOS B d2 EOS (see `runners/data/tokens.py`)."""
        count = self.counts[split]
        start = [self.eos] if not count.documents and starts_with_eos(self.prefix, self.eos) else []
        begun = [] if starts_with_eos(self.prefix, self.eos) else self.prefix
        row = np.asarray([*start, *begun, *ids, self.eos], self.dtype)
        data = row.tobytes()
        self._files[split].write(data)
        count.crc = zlib.crc32(data, count.crc)
        count.add(text.encode("utf-8"), len(row))

    def reached(self, place: Place) -> None:
        """Everything up to this place is written; save a checkpoint where one is due."""
        self.place = place
        if time.monotonic() - self._saved >= self.seconds:
            self.save()

    def save(self) -> None:
        for split, file in self._files.items():
            file.flush()
            flush(self.folder / f"{split}.bin")
        state = {
            "place": vars(self.place),
            "counts": {split: vars(count) for split, count in self.counts.items()},
            "bad": dict(self.bad),
            "dtype": self.dtype.str,
            "prefix": list(self.prefix),
        }
        write_atomically(self.folder / _STATE, json.dumps(state))
        self._saved = time.monotonic()

    def finish(self, payload: Path) -> None:
        """Move the streams into the payload."""
        self.close()
        for split in _SPLITS:
            shutil.move(self.folder / f"{split}.bin", payload / f"{split}.bin")
        (self.folder / _STATE).unlink(missing_ok=True)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _whole_state(self) -> dict[str, Any] | None:
        """The checkpoint, if what it says of the files is so."""
        path = self.folder / _STATE
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if (state["dtype"], state["prefix"]) != (self.dtype.str, list(self.prefix)):
                raise ValueError("it is of another tokenizer")
            for split in _SPLITS:
                count = Count(**state["counts"][split])
                if _crc(self.folder / f"{split}.bin", count.tokens * self.dtype.itemsize) != count.crc:
                    raise ValueError(f"{split}.bin does not match its checksum")
            return state
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.note(f"the checkpoint is broken and passed over: {error}")
            return None


def starts_with_eos(prefix: Sequence[int], eos: int) -> bool:
    """Whether the EOS in front of a document is all that it begins with."""
    return list(prefix) in ([], [eos])


def _crc(path: Path, size: int) -> int:
    """crc32 of the first `size` bytes of a file. Raises ValueError where it has fewer."""
    crc, left = 0, size
    with path.open("rb") as file:
        while left and (data := file.read(min(left, _READ))):
            crc, left = zlib.crc32(data, crc), left - len(data)
    if left:
        raise ValueError(f"{path.name} is shorter than it was")
    return crc
