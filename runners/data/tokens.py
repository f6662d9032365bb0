"""Read a token artifact: two flat token streams and what is known about them.

A stream is `EOS d1 EOS d2 EOS ... dn EOS`. Training reads it in windows: window w of T tokens covers
stream[w*T : w*T + T + 1], that is T inputs and, one further, T labels. So every token but the first is
a label exactly once an epoch, except for a rest shorter than a window.

Where the tokenizer begins every text with tokens B of its own (a beginning-of-sequence token; meta's `prefix`), so do
the documents and the windows, because a model that knows no text without them makes nothing of one. The stream is
`B d1 EOS B d2 EOS ... B dn EOS`; window w is B and then T + 1 - len(B) tokens from stream[w * (T + 1 - len(B))] on, of
which a B that they begin with is not repeated. Tokens of B are inputs and never labels. A B that is EOS itself is the
one in front of every document: the stream is as without, and only the windows begin with it.

The order of the windows is a pure function of (seed, step): a resumed run, or one on another number of
GPUs, reads the same tokens in the same order.

Shapes: B sequences, T tokens a sequence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from boomspec.core.errors import BoomspecError

META = "meta.json"
TOKENIZER = "tokenizer"
PADDING = -1  # no token: its position has no label
_SCAN = 1 << 24  # tokens looked at together
Split = Literal["train", "held_out"]
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
        if self.prefix:
            return max(0, (len(self) - len(self.prefix)) // stride(sequence_length, self.prefix))
        return max(0, (len(self) - 1) // sequence_length)

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """Tokens that are inputs only: those of B, where it is not EOS, by which a text ends."""
        return tuple(sorted(set(self.prefix) - {self.eos}))

    def batch(self, step: int, *, sequences: int, sequence_length: int, seed: int) -> npt.NDArray[np.int64]:
        """The tokens of one optimiser step, [B, T+1]: inputs are [:, :-1], labels are [:, 1:].

        Each epoch visits every window once, in an order drawn from [seed, epoch]; a batch may span two
        epochs. Raises BoomspecError where the stream has less than one window.
        """
        windows = self.windows(sequence_length)
        if windows == 0:
            raise BoomspecError(
                f"{self.file}: {len(self)} tokens are too few for one sequence of {sequence_length}",
                hint="give more text or a smaller data.sequence_length",
            )
        batch_BT = np.empty((sequences, sequence_length + 1), np.int64)
        for row, draw in enumerate(range(step * sequences, (step + 1) * sequences)):
            epoch, place = divmod(draw, windows)
            window = int(_order(seed, epoch, windows)[place])
            if self.prefix:
                length = stride(sequence_length, self.prefix)
                start = window * length
                start += repeated(self.tokens[start : start + len(self.prefix)], self.prefix)
                batch_BT[row] = [*self.prefix, *self.tokens[start : start + length]]
            else:
                start = window * sequence_length
                batch_BT[row] = self.tokens[start : start + sequence_length + 1]
        return batch_BT

    def padded_batch(self, step: int, *, sequences: int, sequence_length: int, seed: int) -> npt.NDArray[np.int64]:
        """Like `batch`, but one document a row: its first T + 1 tokens (B and its end-of-text count), then PADDING."""
        starts, ends = self._bounds
        if len(starts) == 0:
            raise BoomspecError(f"{self.file}: there is no document in it")
        batch_BT = np.full((sequences, sequence_length + 1), PADDING, np.int64)
        for row, draw in enumerate(range(step * sequences, (step + 1) * sequences)):
            epoch, place = divmod(draw, len(starts))
            document = int(_order(seed, epoch, len(starts))[place])
            tokens = self.tokens[starts[document] : min(ends[document], starts[document] + sequence_length + 1)]
            batch_BT[row, : len(tokens)] = tokens
        return batch_BT

    @cached_property
    def _bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Start and end of every document, its B and its closing end-of-text included."""
        chunks = range(0, len(self), _SCAN)
        marks = [np.flatnonzero(self.tokens[i : i + _SCAN] == self.eos) + i for i in chunks]
        places = np.concatenate(marks) if marks else np.empty(0, np.int64)
        if self.unlabelled:
            return np.concatenate([np.zeros(min(1, len(places)), np.int64), places[:-1] + 1]), places + 1
        return places[:-1] + (0 if self.prefix else 1), places[1:] + 1


def stride(sequence_length: int, prefix: Sequence[int]) -> int:
    """Tokens of a stream that a window behind a prefix has, its last label included."""
    return sequence_length + 1 - len(prefix)


def repeated(tokens: npt.NDArray[Any], prefix: Sequence[int]) -> int:
    """How many tokens at the start are the prefix, or its end, and so are there already when it is put in front."""
    ends = (prefix[i:] for i in range(len(prefix)))
    return next((len(end) for end in ends if tokens[: len(end)].tolist() == list(end)), 0)


@lru_cache(maxsize=2)  # a batch touches at most two neighbouring epochs, unless it is larger than one
def _order(seed: int, epoch: int, windows: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(windows)
