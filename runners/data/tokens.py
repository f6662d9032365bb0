"""Read and write a tokenized dataset: the training and held-out streams with their metadata.

A stream is `EOS d1 EOS d2 EOS ... dn EOS`. Training reads it in windows: window w of T tokens covers
stream[w*T : w*T + T + 1], that is T inputs and, one further, T labels. So every token but the first is
a label exactly once an epoch, except for a remainder shorter than a window.

Where the tokenizer begins every text with tokens B of its own (a beginning-of-sequence token; meta's `prefix`), so do
the documents and the windows, because a model that knows no text without them makes nothing of one. The stream is
`B d1 EOS B d2 EOS ... B dn EOS`; window w is B and then T + 1 - len(B) tokens from stream[w * (T + 1 - len(B))] on, of
which a B that they begin with is not repeated. Tokens of B are inputs and never labels. A B that is EOS itself is the
one in front of every document: the stream is as without, and only the windows begin with it.

The order of the windows is a pure function of (seed, step): a resumed run, or one on another number of
GPUs, reads the same tokens in the same order.

A teacher's own text (`runners/tasks/generate.py`) is rows that follow one another; where meta says so, the first tokens
of each are inputs and never labels (`runners/modeling/labels.py`).

A task that is killed while it writes goes on from its last checkpoint, to the same bytes:

    <resume>/train.bin, held_out.bin   what is written so far; what follows the checkpoint is cut off
    <resume>/tokens.json               the checkpoint: how far the text is read, the counts, length and crc of each file

A checkpoint that does not match its checksum is ignored with a note: the task starts again.

Shapes: B sequences, T tokens a sequence.
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import CHECKPOINT_SECONDS
from boomspec.core.files import flush, write_atomically
from runners.modeling.labels import PADDING, without_label

META = "meta.json"
TOKENIZER = "tokenizer"
_STATE = "tokens.json"
_CHUNK = 1 << 24  # tokens that are read at a time
Split = Literal["train", "held_out"]
_SPLITS: tuple[Split, ...] = get_args(Split)
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class TokenStream:
    """One split of a token artifact, mapped into memory. `tokens` has the whole stream, read-only."""

    def __init__(self, folder: Path, split: Split = "train") -> None:
        self.file = folder / f"{split}.bin"
        meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
        self.eos: int = meta["eos"]
        self.prefix: tuple[int, ...] = tuple(meta.get("prefix", ()))  # B: what every text begins with
        self.vocabulary: int = meta["vocabulary"]
        self.documents: int = meta[split]["documents"]
        self.bytes: int = meta[split]["bytes"]  # UTF-8 bytes of the documents' text
        self._rows: dict[str, int] | None = meta.get("rows_written") if split == "train" else None
        dtype, count = DTYPES[meta["dtype"]], meta[split]["tokens"]
        size = self.file.stat().st_size
        if size != count * dtype.itemsize:
            raise BoomspecError(f"{self.file}: has {size} bytes, but {META} says {count} tokens of {dtype.itemsize}")
        # An empty file cannot be mapped.
        self.tokens: npt.NDArray[Any] = np.memmap(self.file, dtype, mode="r") if count else np.empty(0, dtype)

    def __len__(self) -> int:
        return len(self.tokens)

    def windows(self, sequence_length: int) -> int:
        """How many whole windows of `sequence_length` inputs (and their labels) the stream has."""
        return max(0, (len(self) - max(1, len(self.prefix))) // stride(sequence_length, self.prefix))

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """Tokens that are inputs only: those of B, where it is not EOS, by which a text ends."""
        return tuple(sorted(set(self.prefix) - {self.eos}))

    def batch(self, step: int, *, sequences: int, sequence_length: int, seed: int) -> npt.NDArray[np.int64]:
        """The tokens of one optimiser step, [B, T+1]: inputs are [:, :-1], labels are [:, 1:].

        Each epoch visits every window once, in an order drawn from [seed, epoch]; a batch may span two
        epochs. Raises BoomspecError where the stream has less than one window.
        """
        return self.drawn(step * sequences, sequences, sequence_length=sequence_length, seed=seed)

    def drawn(self, first: int, count: int, *, sequence_length: int, seed: int) -> npt.NDArray[np.int64]:
        """`count` rows of a training from its `first` one on, [count, T+1]: a batch is the next `sequences` of them."""
        windows = self.windows(sequence_length)
        if windows == 0:
            message = f"{self.file}: {len(self)} tokens are too few for one sequence of {sequence_length}"
            raise BoomspecError(message, hint="give more text or a smaller data.sequence_length")
        before, length = len(self.prefix), sequence_length + 1 - len(self.prefix)
        if self._rows is not None and self._rows["tokens"] != stride(sequence_length, self.prefix):
            raise BoomspecError(f"{self.file}: its text was written in sequences of another length")
        batch_BT = np.empty((count, sequence_length + 1), np.int64)
        batch_BT[:, :before] = self.prefix
        for row, window in enumerate(_drawn(first, count, windows, seed)):
            start = window * stride(sequence_length, self.prefix)
            start += repeated(self.tokens[start : start + before], self.prefix)
            batch_BT[row, before:] = self.tokens[start : start + length]
            if self._rows is not None:
                place = np.arange(start, start + length) - window * self._rows["tokens"]
                hides = (place < self._rows["unlabelled"]) | (place >= self._rows["tokens"])  # the next row's, too
                batch_BT[row, before:] = np.where(hides, without_label(batch_BT[row, before:]), batch_BT[row, before:])
        return batch_BT

    def first_draw(self, row: int, *, sequence_length: int, seed: int) -> int:
        """The row of the first epoch that has the same window as this one."""
        windows = self.windows(sequence_length)
        if row < windows:
            return row
        window = next(_drawn(row, 1, windows, seed))
        return int(_places(seed, windows)[window])

    def padded_batch(self, step: int, *, sequences: int, sequence_length: int, seed: int) -> npt.NDArray[np.int64]:
        """Like `batch`, but one document a row: its first T + 1 tokens (B and its end-of-text count), then PADDING."""
        starts, ends = self._bounds
        if len(starts) == 0:
            raise BoomspecError(f"{self.file}: there is no document in it")
        batch_BT = np.full((sequences, sequence_length + 1), PADDING, np.int64)
        for row, document in enumerate(_drawn(step * sequences, sequences, len(starts), seed)):
            tokens = self.tokens[starts[document] : min(ends[document], starts[document] + sequence_length + 1)]
            batch_BT[row, : len(tokens)] = tokens
        return batch_BT

    @cached_property
    def _bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Start and end of every document, its B and its closing end-of-text included."""
        marks = [np.flatnonzero(self.tokens[i : i + _CHUNK] == self.eos) + i for i in range(0, len(self), _CHUNK)]
        places = np.concatenate(marks) if marks else np.empty(0, np.int64)
        if self.unlabelled:
            return np.concatenate([np.zeros(min(1, len(places)), np.int64), places[:-1] + 1]), places + 1
        return places[:-1] + (0 if self.prefix else 1), places[1:] + 1


def stride(sequence_length: int, prefix: Sequence[int]) -> int:
    """Tokens of the stream from one window to the next. Those without a prefix overlap by one."""
    return sequence_length + 1 - max(1, len(prefix))


def repeated(tokens: npt.NDArray[Any], prefix: Sequence[int]) -> int:
    """How many tokens at the start are the prefix, or its end, and so are there already when it is put in front."""
    ends = (prefix[i:] for i in range(len(prefix)))
    return next((len(end) for end in ends if tokens[: len(end)].tolist() == list(end)), 0)


def _drawn(first: int, count: int, windows: int, seed: int) -> Iterator[int]:
    """The windows of `count` rows from the `first` one on, of so many windows in all."""
    for draw in range(first, first + count):
        epoch, place = divmod(draw, windows)
        yield int(_order(seed, epoch, windows)[place])


@lru_cache(maxsize=2)  # a batch touches at most two neighbouring epochs, unless it is larger than one
def _order(seed: int, epoch: int, windows: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(windows)


@lru_cache(maxsize=1)
def _places(seed: int, windows: int) -> npt.NDArray[np.int64]:
    """At which place of the first epoch each window stands."""
    return np.argsort(_order(seed, 0, windows))


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

    def size(self) -> dict[str, int]:
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}

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
    """Writes both streams and their checkpoint. `prefix`: tokens that every document begins with."""

    folder: Path  # that a resumed task finds again
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
        """Begin, or resume from the checkpoint, unless it is of another tokenizer or the files do not match it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {split: self.folder / f"{split}.bin" for split in _SPLITS}
        resumes = (self.folder / _STATE).is_file()
        try:
            if resumes:
                state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
                if (state["dtype"], state["prefix"]) != (self.dtype.str, list(self.prefix)):
                    raise ValueError("it is of another tokenizer")
                place = Place(**state["place"])
                counts: dict[str, Count] = {split: Count(**state["counts"][split]) for split in _SPLITS}
                for split, file in files.items():
                    size = counts[split].tokens * self.dtype.itemsize
                    if file.stat().st_size < size:
                        raise ValueError(f"{file.name} is shorter than it was")
                    if size and zlib.crc32(np.memmap(file, np.uint8, "r", shape=(size,)).data) != counts[split].crc:
                        raise ValueError(f"{file.name} does not match its checksum")
                self.place, self.counts, self.bad = place, counts, Counter(state["bad"])
                self.note(f"resumes after document {place.documents:,}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.note(f"the checkpoint is damaged and ignored: {error}")
            resumes = False
        for split, file in files.items():
            self._files[split] = file.open("r+b" if resumes else "w+b")
            self._files[split].truncate(self.counts[split].tokens * self.dtype.itemsize)
            self._files[split].seek(0, os.SEEK_END)

    def add(self, split: str, text: str, ids: Sequence[int]) -> None:
        """Append a document: EOS d1 EOS d2 EOS, or with a prefix B d1 EOS B d2 EOS."""
        count = self.counts[split]
        start = self.prefix
        if list(self.prefix) in ([], [self.eos]):  # the EOS of the document before is all that a document begins with
            start = [] if count.documents else [self.eos]
        tokens = np.asarray([*start, *ids, self.eos], self.dtype)
        self._files[split].write(tokens.tobytes())
        count.crc = zlib.crc32(tokens.tobytes(), count.crc)
        count.tokens += len(tokens)
        count.documents += 1
        data = text.encode("utf-8")
        count.bytes += len(data)
        count.rows = hashlib.sha256(bytes.fromhex(count.rows) + len(data).to_bytes(8, "little") + data).hexdigest()

    def reached(self, place: Place) -> None:
        """Note that everything up to this place is written; save a checkpoint where one is due."""
        self.place = place
        if time.monotonic() - self._saved < self.seconds:
            return
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
        self.close()
        for split in _SPLITS:
            shutil.move(self.folder / f"{split}.bin", payload / f"{split}.bin")
        (self.folder / _STATE).unlink(missing_ok=True)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
