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

Two files may lie beside a stream (`runners/data/token_writer.py` writes them):

    <split>.labels   which tokens are labels, one bit a token, lowest first; meta's split says how many (`labelled`)
    <split>.ends     where each document ends, 8 bytes a document, little-endian (meta: `ends`). Without it a document
                     ends with the next EOS: text has none inside, but a conversation may have one after every turn

Shapes: B sequences, T tokens a sequence.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from boomspec.core.errors import BoomspecError
from runners.modeling.documents import marked
from runners.modeling.labels import PADDING, with_labels, without_label

META = "meta.json"
TOKENIZER = "tokenizer"
_CHUNK = 1 << 24  # tokens that are read at a time
Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
ENDS = np.dtype("<u8")


class TokenStream:
    """One split of a token artifact, mapped into memory. `tokens` has the whole stream, read-only."""

    def __init__(self, folder: Path, split: Split = "train", *, apart: bool = False) -> None:
        self._apart = apart  # its batches say where documents begin (`runners/modeling/documents.py`)
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
        self.tokens: npt.NDArray[Any] = _mapped(self.file, dtype, count)
        self.labelled: int | None = meta[split].get("labelled")  # tokens that are labels; None: there is no mask
        self._bits = None
        if self.labelled is not None:
            self._bits = _mapped(self.file.with_suffix(".labels"), np.dtype(np.uint8), -(-count // 8))
        self._ends = _mapped(self.file.with_suffix(".ends"), ENDS, self.documents) if meta.get("ends") else None

    def __len__(self) -> int:
        return len(self.tokens)

    def labels(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which tokens of a stretch of the stream are labels, [stop - start], by its mask; all are without one."""
        if self._bits is None:
            return np.ones(stop - start, np.bool_)
        bits = np.unpackbits(self._bits[start // 8 : -(-stop // 8)], bitorder="little")
        return bits[start % 8 : start % 8 + stop - start].astype(np.bool_)

    def stretch(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """A stretch of the stream as a batch holds it: tokens that the mask hides are inputs only."""
        tokens = self.tokens[start:stop].astype(np.int64)
        return tokens if self._bits is None else np.where(self.labels(start, stop), tokens, without_label(tokens))

    def windows(self, sequence_length: int) -> int:
        """How many whole windows of `sequence_length` inputs (and their labels) the stream has."""
        return max(0, (len(self) - max(1, len(self.prefix))) // stride(sequence_length, self.prefix))

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """Tokens that are inputs only: those of B, where it is not EOS, by which a text ends."""
        return tuple(sorted(set(self.prefix) - {self.eos}))

    def batch(self, step: int, *, sequences: int, sequence_length: int, seed: int) -> npt.NDArray[Any]:
        """The tokens of one optimiser step, [B, T+1]: inputs are [:, :-1], labels are [:, 1:].

        Each epoch visits every window once, in an order drawn from [seed, epoch]; a batch may span two
        epochs. Raises BoomspecError where the stream has less than one window.
        """
        return self.drawn(step * sequences, sequences, sequence_length=sequence_length, seed=seed)

    def drawn(self, first: int, count: int, *, sequence_length: int, seed: int) -> npt.NDArray[Any]:
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
        begins_BT = np.zeros(batch_BT.shape, np.bool_)
        for row, window in enumerate(_drawn(first, count, windows, seed)):
            start = window * stride(sequence_length, self.prefix)
            start += repeated(self.tokens[start : start + before], self.prefix)
            batch_BT[row, before:] = self.stretch(start, start + length)
            if self._rows is not None:
                place = np.arange(start, start + length) - window * self._rows["tokens"]
                hides = (place < self._rows["unlabelled"]) | (place >= self._rows["tokens"])  # the next row's, too
                batch_BT[row, before:] = np.where(hides, without_label(batch_BT[row, before:]), batch_BT[row, before:])
            if self._apart:
                begins_BT[row, before:] = self.begins(start, start + length)
        return marked(batch_BT, begins_BT) if self._apart else batch_BT

    def begins(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """With which tokens of a stretch of the stream a document begins.

        With its B; without one, or where that is EOS, with the end of the text before it, which is its first input.
        """
        if self._ends is not None:
            found = np.zeros(stop - start, np.bool_)
            places = self._ends.astype(np.int64) - (0 if self.unlabelled else 1)
            first, last = np.searchsorted(places, [start, stop])
            found[places[first:last] - start] = True
            return found
        if not self.unlabelled:
            return np.asarray(self.tokens[start:stop] == self.eos)
        found = np.ones(stop - start, np.bool_)  # the stream begins with a document
        first = max(start, 1)
        found[first - start :] = self.tokens[first - 1 : stop - 1] == self.eos
        return found

    def inputs(self, step: int, *, sequences: int, sequence_length: int, seed: int) -> npt.NDArray[np.int64]:
        """The inputs of one optimiser step, [B, T], for those who read the text and predict none of it."""
        batch_BT = self.batch(step, sequences=sequences, sequence_length=sequence_length, seed=seed)[:, :-1]
        return with_labels(batch_BT)

    def first_draw(self, row: int, *, sequence_length: int, seed: int) -> int:
        """The row of the first epoch that has the same window as this one."""
        windows = self.windows(sequence_length)
        if row < windows:
            return row
        window = next(_drawn(row, 1, windows, seed))
        return int(_places(seed, windows)[window])

    def padded_batch(self, step: int, *, sequences: int, sequence_length: int, seed: int) -> npt.NDArray[np.int64]:
        """Like `batch`, but one document a row: its first T + 1 tokens (B and its end-of-text count), then PADDING."""
        starts, ends = self.bounds
        if len(starts) == 0:
            raise BoomspecError(f"{self.file}: there is no document in it")
        batch_BT = np.full((sequences, sequence_length + 1), PADDING, np.int64)
        for row, document in enumerate(_drawn(step * sequences, sequences, len(starts), seed)):
            tokens = self.stretch(starts[document], min(ends[document], starts[document] + sequence_length + 1))
            batch_BT[row, : len(tokens)] = tokens
        return batch_BT

    @cached_property
    def bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Start and end of every document, its B and its closing end-of-text included."""
        if self._ends is not None:
            ends = self._ends.astype(np.int64)
        else:
            marks = [np.flatnonzero(self.tokens[i : i + _CHUNK] == self.eos) + i for i in range(0, len(self), _CHUNK)]
            ends = np.concatenate(marks) + 1 if marks else np.empty(0, np.int64)
            if not self.unlabelled:
                ends = ends[1:]  # the stream begins with an end-of-text
        starts = np.concatenate([np.array([0 if self.unlabelled else 1]), ends[:-1]])[: len(ends)]
        return starts - (1 if self.prefix and not self.unlabelled else 0), ends


def _mapped(file: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """A file of so many values, read-only. An empty one cannot be mapped."""
    if not count:
        return np.empty(0, dtype)
    if file.stat().st_size != count * dtype.itemsize:
        raise BoomspecError(f"{file}: has {file.stat().st_size} bytes, and not {count} values of {dtype.itemsize}")
    return np.memmap(file, dtype, mode="r")


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
