"""Write a token artifact: both streams, and where asked for their masks and the ends of their documents.

A task that is killed while it writes goes on from its last checkpoint, to the same bytes:

    <resume>/train.bin, held_out.bin   what is written so far; what follows the checkpoint is cut off
    <resume>/<split>.mask, .ends       likewise: whether a token is a label (a byte each, packed at the end); documents
    <resume>/tokens.json               the checkpoint: how far the text is read, the counts, length and crc of each file

A checkpoint that does not match its checksum is ignored with a note: the task starts again.
"""

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
import numpy.typing as npt

from boomspec.core.execution import CHECKPOINT_SECONDS
from boomspec.core.files import flush, write_atomically
from runners.data.tokens import ENDS, META, SPLITS

_STATE = "tokens.json"
_PACKED = 1 << 24  # tokens whose mask is packed at a time; whole bytes of it


@dataclass
class Count:
    """What one stream holds. `rows`: sha256 chained over each document's length (8 bytes, little-endian) and text.

    A chain of digests, and not one over everything, so that a resumed task can continue it.
    """

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    rows: str = ""
    crc: int = 0  # of the file's bytes
    labelled: int = 0  # by the mask; without one all but B, where the ends of documents are written
    largest: int = -1  # token, where the ends of documents are written
    crcs: dict[str, int] = field(default_factory=dict)  # of the files beside the stream

    def size(self, *, masked: bool = False) -> dict[str, Any]:
        found = {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}
        counted = "labelled" if masked else "labels" if self.largest >= 0 else ""  # the one says that there is a mask
        return found | ({counted: self.labelled} if counted else {})

    def read(self) -> dict[str, Any]:
        return {"documents": self.documents, "sha256": self.rows or hashlib.sha256().hexdigest()}


@dataclass
class Place:
    """How far the text is read: the number of the source, its documents so far, and the state of a hub data set."""

    part: int = 0
    documents: int = 0
    state: dict[str, Any] | None = None


@dataclass
class TokenWriter:
    """Writes both streams and their checkpoint. `prefix`: tokens that every document begins with.

    masked: a mask of labels lies beside each stream. ends: so do the ends of its documents.
    """

    folder: Path  # that a resumed task finds again
    dtype: np.dtype[Any]
    eos: int
    prefix: Sequence[int]
    note: Callable[[str], None]
    seconds: float = CHECKPOINT_SECONDS
    masked: bool = False
    ends: bool = False
    place: Place = field(default_factory=Place)
    counts: dict[str, Count] = field(default_factory=lambda: {split: Count() for split in SPLITS})
    bad: Counter[str] = field(default_factory=Counter)
    _files: dict[str, IO[bytes]] = field(default_factory=dict)  # by their names
    _saved: float = field(default_factory=time.monotonic)

    def open(self) -> None:
        """Begin, or resume from the checkpoint, unless it is of another tokenizer or the files do not match it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        resumes = (self.folder / _STATE).is_file()
        try:
            if resumes:
                state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
                if (state["dtype"], state["prefix"]) != (self.dtype.str, list(self.prefix)):
                    raise ValueError("it is of another tokenizer")
                place = Place(**state["place"])
                counts: dict[str, Count] = {split: Count(**state["counts"][split]) for split in SPLITS}
                for split in SPLITS:
                    for name, size in self._sizes(split, counts[split]).items():
                        _check(self.folder / name, size, _crc(name, counts[split]))
                self.place, self.counts, self.bad = place, counts, Counter(state["bad"])
                self.note(f"resumes after document {place.documents:,}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.note(f"the checkpoint is damaged and ignored: {error}")
            resumes = False
        for split in SPLITS:
            for name, size in self._sizes(split, self.counts[split]).items():
                self._files[name] = (self.folder / name).open("r+b" if resumes else "w+b")
                self._files[name].truncate(size)
                self._files[name].seek(0, os.SEEK_END)

    def _sizes(self, split: str, count: Count) -> dict[str, int]:
        """The files of a split by their names, with their bytes."""
        sizes = {f"{split}.bin": count.tokens * self.dtype.itemsize}
        sizes |= {f"{split}.mask": count.tokens} if self.masked else {}
        return sizes | ({f"{split}.ends": count.documents * ENDS.itemsize} if self.ends else {})

    def add(self, split: str, text: str, ids: Sequence[int]) -> None:
        """Append a document: EOS d1 EOS d2 EOS, or with a prefix B d1 EOS B d2 EOS."""
        start = [] if self.follows_eos else self.prefix
        data = text.encode("utf-8")
        self.append(split, np.asarray([*start, *ids, self.eos], self.dtype), row=data, size=len(data))

    @property
    def follows_eos(self) -> bool:
        """Whether the EOS of the document before is all that a document of text begins with."""
        return list(self.prefix) in ([], [self.eos])

    def append(
        self,
        split: str,
        tokens: npt.NDArray[Any],
        *,
        labels: npt.NDArray[np.bool_] | None = None,
        row: bytes | None = None,
        size: int = 0,
    ) -> None:
        """Append a document as it stands, its EOS last. `labels`: which of its tokens are, where there is a mask.

        `row`: what it was read from, for the digest of the rows; `size`: bytes of the text that it holds.
        """
        count = self.counts[split]
        if labels is None and self.ends:  # only counted
            hidden = [token for token in self.prefix if token != self.eos]
            count.labelled += int((~np.isin(tokens, hidden)).sum())
        if self.follows_eos and not count.documents:  # every document follows an EOS
            tokens = np.concatenate([np.asarray([self.eos], self.dtype), tokens.astype(self.dtype)])
            labels = None if labels is None else np.concatenate([[False], labels])
        self._write(f"{split}.bin", tokens.astype(self.dtype), count)
        count.tokens += len(tokens)
        count.documents += 1
        count.bytes += size
        if labels is not None:
            self._write(f"{split}.mask", labels.astype(np.uint8), count)
            count.labelled += int(labels.sum())
        if self.ends:
            count.largest = max(count.largest, int(tokens.max()))
            self._write(f"{split}.ends", np.asarray([count.tokens], ENDS), count)
        if row is not None:
            before = bytes.fromhex(count.rows) + len(row).to_bytes(8, "little")
            count.rows = hashlib.sha256(before + row).hexdigest()

    def _write(self, name: str, values: npt.NDArray[Any], count: Count) -> None:
        data = values.tobytes()
        self._files[name].write(data)
        crc = zlib.crc32(data, _crc(name, count))
        if name.endswith(".bin"):
            count.crc = crc
        else:
            count.crcs[name] = crc

    def reached(self, place: Place) -> None:
        """Note that everything up to this place is written; save a checkpoint where one is due."""
        self.place = place
        if time.monotonic() - self._saved < self.seconds:
            return
        for name, file in self._files.items():
            file.flush()
            flush(self.folder / name)
        state = {
            "place": vars(self.place),
            "counts": {split: vars(count) for split, count in self.counts.items()},
            "bad": dict(self.bad),
            "dtype": self.dtype.str,
            "prefix": list(self.prefix),
        }
        write_atomically(self.folder / _STATE, json.dumps(state, allow_nan=False))
        self._saved = time.monotonic()

    def finish(self, payload: Path) -> None:
        self.close()
        for name in self._files:
            if name.endswith(".mask"):
                _pack(self.folder / name, payload / f"{Path(name).stem}.labels")
            else:
                shutil.move(self.folder / name, payload / name)
        (self.folder / _STATE).unlink(missing_ok=True)
        for name in self._files:
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    (folder / META).write_text(json.dumps(meta, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _crc(name: str, count: Count) -> int:
    return count.crc if name.endswith(".bin") else count.crcs.get(name, 0)


def _check(file: Path, size: int, crc: int) -> None:
    """Raise ValueError unless the first `size` bytes of a file are those that were written."""
    if file.stat().st_size < size:
        raise ValueError(f"{file.name} is shorter than it was")
    if size and zlib.crc32(np.memmap(file, np.uint8, "r", shape=(size,)).data) != crc:
        raise ValueError(f"{file.name} does not match its checksum")


def _pack(mask: Path, target: Path) -> None:
    """Pack a mask of one byte a token into bits, lowest first."""
    with mask.open("rb") as source, target.open("wb") as packed:
        while part := source.read(_PACKED):
            packed.write(np.packbits(np.frombuffer(part, np.uint8), bitorder="little").tobytes())
