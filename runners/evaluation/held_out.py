"""Measure the loss of one or many models on held-out text.

The stream EOS d1 EOS d2 ... dn EOS is cut into windows of `sequence_length` + 1 tokens that overlap by
one, so that every token but the first of the stream is predicted exactly once; the context restarts with
every window. Positions whose label is the separator EOS do not count: the loss is that of the text alone.

Where texts begin with tokens B of their own (`runners/data/tokens.py`), every window does: B, and then
`sequence_length` + 1 - len(B) tokens of the stream, without overlap, so that every token of the text is
predicted exactly once. B is no label.

    loss          = sum of -log p(token) / number of tokens                        nats per token
    perplexity    = exp(loss)
    bits per byte = sum of -log2 p(token) / UTF-8 bytes of those tokens' text

Shapes: B windows, T positions, N = B * T, D hidden, V vocabulary, W windows of the whole stream.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from boomspec.core.layers import LayerPlan
from boomspec.core.work_sizes import MEASURED_LOGITS
from runners.data.tokens import TOKENIZER, TokenStream, repeated, stride
from runners.evaluation.members import Members
from runners.evaluation.scores import scores
from runners.modeling.documents import marked
from runners.modeling.foreign_code import tokenizer_of
from runners.modeling.hidden_states import LMHead
from runners.modeling.shared_forward import Inputs
from runners.runtime.context import Progress
from runners.runtime.statistics import weighted_mean, weighted_stderr

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IGNORED = -100
Begins = Callable[[int, int], NDArray[np.bool_]]


@dataclass(frozen=True)
class WindowLosses:
    """The mean loss of every window in nats, [W], and the number of its tokens, [W]."""

    means: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def loss(self) -> float:
        return weighted_mean(self.means, self.tokens)


def window_losses(
    members: Members,
    *,
    tokens: NDArray[Any],
    eos: int,
    prefix: Sequence[int] = (),
    labelled: NDArray[np.bool_] | None = None,
    sequence_length: int,
    begins: Begins | None = None,
    batch_size: int,
    progress: Progress,
    kept: Mapping[LayerPlan, Path] | None = None,
) -> dict[LayerPlan, WindowLosses]:
    """Measure every member on a token stream of at least two tokens. `kept`: as of `scores`.

    `labelled`: which of the tokens count, where the stream has a mask; else all but EOS and B do. `begins`: with which
    tokens of a stretch of the stream documents begin, where they do not see each other.
    """
    total = len(tokens) - 1
    shape = {"sequence_length": sequence_length, "batch_size": batch_size}
    windows, labels = windows_of(tokens, eos=eos, prefix=prefix, labelled=labelled, begins=begins, **shape)

    def score(number: int, head: LMHead, hidden_BTD: Tensor) -> list[float]:
        sums_B: list[float] = (
            token_losses(head, hidden_BTD, labels[number].to(hidden_BTD.device)).double().sum(1).tolist()
        )
        return sums_B

    def done(share: float) -> None:
        progress.update(share * total, total, unit="tokens")

    found = scores(members, [Inputs(tokens_BS[:, :-1]) for tokens_BS in windows], score, kept=kept, done=done)
    counts_W = torch.cat([(labels_BT != _IGNORED).sum(1) for labels_BT in labels]).numpy()
    return {plan: WindowLosses(np.array(sums) / counts_W.clip(min=1), counts_W) for plan, sums in found.items()}


def windows_of(
    tokens: NDArray[Any],
    *,
    eos: int,
    prefix: Sequence[int],
    labelled: NDArray[np.bool_] | None,
    begins: Begins | None,
    sequence_length: int,
    batch_size: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Batches of windows, [B, sequence_length + 1], and of their labels, [B, sequence_length]; below 0: no label.

    `labelled` and `begins`: as of `window_losses`.
    """
    windows = list(_batches(tokens, prefix, sequence_length, batch_size, padding=eos))
    if labelled is None:
        no_labels = torch.tensor(sorted({eos, *prefix}))
        labels = [rows_BS[:, 1:].masked_fill(torch.isin(rows_BS[:, 1:], no_labels), _IGNORED) for rows_BS in windows]
    else:  # the same windows of the stream in which what does not count is no token
        hidden = np.where(labelled, tokens.astype(np.int64), _IGNORED)
        masked = _batches(hidden, prefix, sequence_length, batch_size, padding=_IGNORED, of=tokens)
        labels = [rows_BS[:, 1:] for rows_BS in masked]
    if begins is not None:
        windows = list(_batches(tokens, prefix, sequence_length, batch_size, padding=eos, begins=begins))
    return windows, labels


@torch.no_grad()
def token_losses(head: LMHead, hidden_BTD: Tensor, labels_BT: Tensor) -> Tensor:
    """-log p(label) in nats, fp32 [B, T], 0 where ignored. The logits are computed in parts."""
    rows = max(1, MEASURED_LOGITS // head.vocabulary)
    hidden_ND, labels_N = hidden_BTD.flatten(0, 1), labels_BT.flatten()
    losses = [
        cross_entropy(head(hidden_ND[part]).float(), labels_N[part], ignore_index=_IGNORED, reduction="none")
        for part in (slice(i, i + rows) for i in range(0, len(labels_N), rows))
    ]
    return torch.cat(losses).view_as(labels_BT)


def _batches(
    tokens: NDArray[Any],
    prefix: Sequence[int],
    sequence_length: int,
    batch_size: int,
    *,
    padding: int,
    of: NDArray[Any] | None = None,
    begins: Begins | None = None,
) -> Iterator[Tensor]:
    """Batches of windows, int64 [B, sequence_length + 1]. `of`: the stream itself, where `tokens` are its labels.

    With `begins` they are marked (`runners/modeling/documents.py`).

    A shorter last window is padded at its end where windows begin with a prefix, and else a batch of its own.
    """
    length = sequence_length + 1
    starts = range(0, len(tokens) - (0 if prefix else 1), stride(sequence_length, prefix))
    for first in range(0, len(starts), batch_size):
        rows = []
        for start in starts[first : first + batch_size]:
            row: NDArray[Any] = tokens[start : start + length - len(prefix)].astype(np.int64)
            if begins is not None:
                row = marked(row, begins(start, start + len(row)))
            if prefix:
                again = repeated((tokens if of is None else of)[start : start + length - len(prefix)], prefix)
                begin = prefix if of is None else [_IGNORED] * len(prefix)
                row = np.concatenate([np.asarray(begin, row.dtype), row[again:]])
                row = np.pad(row, (0, length - len(row)), constant_values=padding)
            rows.append(row)
        whole = [row for row in rows if len(row) == length]
        for batch in (whole, rows[len(whole) :]):
            if batch:
                yield torch.from_numpy(np.stack(batch))


def windows(tokens: int, sequence_length: int, prefix: Sequence[int] = ()) -> int:
    """The number of windows of a stream of so many tokens."""
    return math.ceil((tokens - (0 if prefix else 1)) / stride(sequence_length, prefix))


def text_bytes(
    tokens: NDArray[Any],
    *,
    eos: int,
    tokenizer: "PreTrainedTokenizerBase",
    prefix: Sequence[int] = (),
    labels: NDArray[np.bool_] | None = None,
) -> int:
    """UTF-8 bytes of the text of all tokens but the first, without separators; each document is decoded alone.

    `labels`: which of these tokens count, of a stream with a mask; then each run of them is decoded alone, without the
    special tokens that end it.
    """
    text = tokens[1:].astype(np.int64)
    if labels is None:
        documents, silent = np.split(text, np.flatnonzero(text == eos)), [eos, *prefix]
    else:
        edges = np.flatnonzero(np.diff(labels.astype(np.int8))) + 1
        runs = zip(np.split(text, edges), np.split(labels, edges), strict=True)
        documents, silent = (
            [run for run, labelled in runs if len(run) and labelled[0]],
            [eos, *prefix, *tokenizer.all_special_ids],
        )
    return sum(
        len(str(tokenizer.decode(kept.tolist(), clean_up_tokenization_spaces=False)).encode("utf-8"))
        for document in documents
        if len(kept := document[~np.isin(document, silent)])
    )


def labelled_bytes(folder: Path, code: Collection[str]) -> int:
    """UTF-8 bytes of the held-out text of a token artifact that counts (see `text_bytes`)."""
    stream = TokenStream(folder, "held_out")
    return text_bytes(
        stream.tokens,
        eos=stream.eos,
        prefix=stream.prefix,
        tokenizer=tokenizer_of(folder / TOKENIZER, code),
        labels=None if stream.labelled is None else stream.labels(1, len(stream)),
    )


def metrics(losses: WindowLosses, *, text_bytes: int) -> dict[str, float | str]:
    """lm-eval style metrics, "metric,filter" to value. A standard error that one window cannot give is "N/A"."""
    loss, stderr = losses.loss, weighted_stderr(losses.means, losses.tokens)
    try:
        perplexity = math.exp(loss)
    except OverflowError:
        perplexity = math.inf
    bits = float(losses.tokens.sum()) / (math.log(2) * text_bytes)  # per byte, of one nat per token
    # exp and scaling carry the standard error over to first order.
    values = {"loss": (loss, 1.0), "perplexity": (perplexity, perplexity), "bits_per_byte": (loss * bits, bits)}
    found: dict[str, float | str] = {}
    for name, (value, slope) in values.items():
        found |= {f"{name},none": value, f"{name}_stderr,none": "N/A" if stderr is None else stderr * slope}
    return found
