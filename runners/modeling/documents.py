"""Packed rows whose documents do not see each other: what says so in a batch, and what a model is called with for it.

A batch is int64 tokens. One whose documents are apart is int32, and bit 30 of a token says that a document begins with
it; so does the first token of every row. The marks go with the tokens wherever these are cut, moved and put together,
and `trunk` reads them: every task that runs a model on text runs it so, without knowing it.

    tokens      a0 a1 a2 | b0 b1 | c0        b0 and c0 are marked
    positions   0  1  2  | 0  1  | 0         each document begins at 0, of rotations and of learned tables alike
    may see     the earlier tokens of its own document, as far back as the layer looks

Attention that is given a mask (eager, sdpa) gets one of blocks; flash attention, which takes none, the lengths of the
documents. Whether a model honours that is tried before it is used: `hidden_states.check_apart`.

Shapes: B rows, T positions, N documents.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runners.modeling.masks import additive_masks

BEGINS = 1 << 30  # no vocabulary is as long


def marked(tokens: npt.NDArray[np.int64], begins: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """A batch that says where documents begin. `tokens` may hold padding and inputs only (`labels.py`)."""
    shifted = np.where(tokens < 0, tokens - BEGINS, tokens + BEGINS)  # -2 - t becomes -2 - (t with the bit)
    return np.where(begins & (tokens != -1), shifted, tokens).astype(np.int32)


def is_marked(batch: Tensor) -> bool:
    """Whether the documents of a batch are apart."""
    return batch.dtype == torch.int32


def marks_of(batch: Tensor) -> Tensor:
    """The marks of a batch without its tokens, in whose place there are zeros."""
    return batch & BEGINS


def tokens_of(batch: Tensor) -> Tensor:
    """The tokens of a batch without marks, int64; what is below zero stays as it is."""
    if not is_marked(batch):
        return batch
    tokens = batch.long()
    return torch.where(tokens >= 0, tokens & ~BEGINS, tokens)


def arguments_for(model: Any, tokens_BT: Tensor) -> dict[str, Any]:
    """What a model is called with beside the tokens of a batch; nothing where its documents are not apart."""
    if not is_marked(tokens_BT):
        return {}
    begins_BT = marks_of(tokens_BT) != 0
    begins_BT[:, 0] = True
    index_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    first_BT = torch.where(begins_BT, index_T, 0).cummax(dim=1).values
    positions_BT = index_T - first_BT
    if "flash" in str(model.config.get_text_config()._attn_implementation):
        return {"position_ids": positions_BT, **_lengths(begins_BT)}
    seen_BTT = (first_BT[:, :, None] == first_BT[:, None, :]).tril()
    return {"position_ids": positions_BT, "attention_mask": additive_masks(model, seen_BTT, positions_BT)}


def _lengths(begins_BT: Tensor) -> dict[str, Any]:
    """Where documents begin among the B * T tokens of all rows, as kernels for lengths that differ want it: [N + 1]."""
    starts_N = begins_BT.flatten().nonzero().squeeze(-1)
    bounds = torch.cat([starts_N, starts_N.new_tensor([begins_BT.numel()])]).to(torch.int32)
    longest = int(bounds.diff().max())
    return {f"cu_seq_lens_{side}": bounds for side in "qk"} | {f"max_length_{side}": longest for side in "qk"}
