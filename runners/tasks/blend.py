"""Join token artifacts of one tokenizer into one of the same format, document by document.

    n_i    training tokens of source i       b_i    what is taken of it, in whole documents until they are so many
    budgets: b_i as given                    weights w_i: b_i = w_i * min over j of n_j / w_j, rounded down

The next document is always one of the source that is furthest behind its share (taken_i / b_i), so that every stretch
has the shares of the whole, but for the length of a document. Of several the first is taken. Held-out text is mixed
by the same shares, as much as there is of it; a source that holds out none has no part in it.

Writes `train.bin`, `held_out.bin`, the ends of their documents, `tokenizer/` and `meta.json`, which says what came from
each input; and masks where an input has one. There all tokens of a document without a mask are labels but its B, in
held-out text also but its EOS, which is not measured (`runners/evaluation/held_out.py`).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Blend
from boomspec.models.tokenizer import has_chat_template
from runners.data.token_writer import Place, TokenWriter, write_meta
from runners.data.tokens import DTYPES, META, SPLITS, TOKENIZER, Split, TokenStream
from runners.evaluation.held_out import labelled_bytes
from runners.runtime.context import Context

_REPORTED = 64  # documents


@dataclass
class _Taken:
    """What was taken of one source for one split, from its start on."""

    tokens: int = 0
    documents: int = 0
    labelled: int = 0


class _Documents:
    """The documents of one split of a source, one after the other, each with which of its tokens are labels."""

    def __init__(self, folder: Path, split: Split) -> None:
        self.stream, self._split = TokenStream(folder, split), split
        self.starts, self.ends = self.stream.bounds
        if self.stream.prefix and not self.stream.unlabelled:
            self.starts = self.starts + 1  # B is the EOS of the document before
        self.tokens = int((self.ends - self.starts).sum())

    def document(self, number: int) -> tuple[npt.NDArray[Any], slice]:
        """A document, and where it is in the stream."""
        place = slice(int(self.starts[number]), int(self.ends[number]))
        return self.stream.tokens[place], place

    def labels(self, tokens: npt.NDArray[Any], place: slice) -> npt.NDArray[np.bool_]:
        """Which tokens of a document are labels."""
        if self.stream.labelled is not None:
            return self.stream.labels(place.start, place.stop)
        hidden = [*self.stream.unlabelled, *([self.stream.eos] if self._split == "held_out" else [])]
        return ~np.isin(tokens, hidden)


def run(context: Context[Blend]) -> None:
    folders = [context.inputs[f"source_{number}"].folder for number in range(len(context.inputs))]
    metas = [json.loads((folder / META).read_text(encoding="utf-8")) for folder in folders]
    eos, prefix, dtype = _common(metas)
    masked = any("labelled" in meta["train"] for meta in metas)
    note, seconds = context.progress.note, context.training.checkpoint_seconds
    writer = TokenWriter(context.resume, DTYPES[dtype], eos, prefix, note, seconds=seconds, masked=masked, ends=True)
    taken: dict[str, list[_Taken]] = {}
    shares: Sequence[int] | None = None
    try:
        writer.open()
        for part, split in enumerate(SPLITS):
            sources = [_Documents(folder, split) for folder in folders]
            tokens = [source.tokens for source in sources]
            shares = _training_shares(context.record, sources) if shares is None else _by_weights(shares, tokens)
            if writer.place.part == part:
                taken[split] = _mix(context, writer, part, sources, shares)
                writer.place = Place(part + 1, state=_state(taken, writer.place))
            else:  # it was written before the task was killed
                taken[split] = [_Taken(**one) for one in (writer.place.state or {})[split]]
    finally:
        writer.close()
    tokenizer = max(folders, key=lambda folder: has_chat_template(folder / TOKENIZER)) / TOKENIZER
    vocabulary = max(meta["vocabulary"] for meta in metas)
    meta: dict[str, Any] = {"dtype": dtype, "eos": eos, "prefix": prefix, "vocabulary": vocabulary, "ends": True}
    for split in SPLITS:
        meta[split] = writer.counts[split].size(masked=masked)
        meta[split]["sources"] = [_said(one, masked=masked) for one in taken[split]]
    writer.finish(context.path)
    shutil.copytree(tokenizer, context.path / TOKENIZER)
    write_meta(context.path, meta)
    if writer.counts["held_out"].documents:  # of the training text nobody asks how long it is in bytes
        meta["held_out"]["bytes"] = labelled_bytes(context.path, context.code)
        write_meta(context.path, meta)


def _common(metas: Sequence[dict[str, Any]]) -> tuple[int, list[int], str]:
    """What the artifacts share: EOS and B; and the type that has room for the ids of all."""
    first = metas[0]["eos"], list(metas[0].get("prefix", ()))
    if any((meta["eos"], list(meta.get("prefix", ()))) != first for meta in metas):
        raise BoomspecError(
            "the sources of a blend are of different tokenizers", hint="they begin or end texts otherwise"
        )
    return *first, max((meta["dtype"] for meta in metas), key=lambda name: DTYPES[name].itemsize)


def _training_shares(record: Blend, sources: Sequence[_Documents]) -> tuple[int, ...]:
    """How many training tokens are taken of each source."""
    if record.budgets is not None:
        for number, (source, wanted) in enumerate(zip(sources, record.budgets, strict=True)):
            if source.tokens < wanted:
                message = f"source {number} has {source.tokens:,} training tokens, its budget is {wanted:,}"
                hint = f"give a smaller budget, or more text ({source.stream.file.parent})"
                raise BoomspecError(message, hint=hint)
        return record.budgets
    assert record.weights is not None
    return _by_weights(record.weights, [source.tokens for source in sources])


def _by_weights(weights: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    """The most tokens of each in these proportions, and at least one; a source without any is left out."""
    there = [Fraction(count, weight) for count, weight in zip(tokens, weights, strict=True) if count]
    whole = min(there, default=Fraction(0))  # the source that is used up first
    return tuple(max(1, int(weight * whole)) if count else 0 for count, weight in zip(tokens, weights, strict=True))


def _mix(
    context: Context[Blend], writer: TokenWriter, part: int, sources: Sequence[_Documents], shares: Sequence[int]
) -> list[_Taken]:
    """Write one split; what was taken of each source."""
    split, state = SPLITS[part], writer.place.state or {}
    taken = [_Taken(**one) for one in state[split]] if split in state else [_Taken() for _ in sources]
    total, written = sum(shares), writer.place.documents
    while True:
        behind = [n for n, (own, share) in enumerate(zip(taken, shares, strict=True)) if own.tokens < share]
        if not behind:
            return taken
        # taken / share, compared without rounding.
        number = behind[0]
        for other in behind[1:]:
            if taken[other].tokens * shares[number] < taken[number].tokens * shares[other]:
                number = other
        own = taken[number]
        tokens, place = sources[number].document(own.documents)
        labels = sources[number].labels(tokens, place) if writer.masked else None
        writer.append(split, tokens, labels=labels)
        own.tokens += len(tokens)
        own.documents += 1
        own.labelled += 0 if labels is None else int(labels.sum())
        written += 1
        if written % _REPORTED == 0:
            context.progress.update(sum(one.tokens for one in taken), total, unit="tokens")
            writer.reached(Place(part, written, {**state, split: [asdict(one) for one in taken]}))


def _state(taken: dict[str, list[_Taken]], place: Place) -> dict[str, Any]:
    return {**(place.state or {}), **{split: [asdict(one) for one in own] for split, own in taken.items()}}


def _said(taken: _Taken, *, masked: bool) -> dict[str, int]:
    found = asdict(taken)
    if not masked:
        del found["labelled"]
    return found
