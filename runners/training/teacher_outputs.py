"""Take from a teacher's logits what is stored of them: the likeliest tokens, or tokens that are drawn.

Drawing: token i of position t of row r is where the cumulated distribution passes the i-th number of (seed, r, t). The
distribution is cumulated in whole numbers, of which 2^40 make 1: sums of these are exact, so which token is drawn
depends neither on the order of a sum nor on how rows are batched. Its importance weight is p / s with the very s that
it was drawn from, so that the estimate has no bias (arXiv 2503.16870, section 4).

Shapes: N positions of any sequence, T positions of a row, V vocabulary, K tokens that are stored of a position.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from boomspec.core.tasks import Samples, TopTokens
from boomspec.core.work_sizes import TILE_LOGITS
from runners.modeling.hidden_states import LMHead
from runners.training.head import logits_by_chunks

_ONE = 1 << 40
_LEAST = -1e4  # in place of the logarithm of 0: fp16 has no such number, and exp of this is 0


def stored_of(
    head: LMHead, hidden_ND: Tensor, stored: TopTokens | Samples, numbers_NK: Tensor | None
) -> dict[str, Tensor]:
    """By name of the tensor, at N positions. `numbers_NK`: in [0, 1), in float64, where tokens are drawn."""
    parts: list[Mapping[str, Tensor]] = []
    tile = max(1, TILE_LOGITS[hidden_ND.device.type] // head.vocabulary)
    for rows, logits_NV in logits_by_chunks(head, hidden_ND):
        for first in range(0, len(logits_NV), tile):
            log_probs_NV = logits_NV[first : first + tile].log_softmax(dim=-1)
            if isinstance(stored, TopTokens):
                parts.append(top_tokens(log_probs_NV, min(stored.k, log_probs_NV.shape[-1])))
            else:
                assert numbers_NK is not None
                numbers = numbers_NK[rows][first : first + tile]
                parts.append(sampled_tokens(log_probs_NV, stored, numbers))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def top_tokens(log_probs_NV: Tensor, k: int) -> dict[str, Tensor]:
    kept_NK, ids_NK = log_probs_NV.topk(k, dim=-1)
    if k < log_probs_NV.shape[-1]:
        rows_N1 = torch.arange(len(ids_NK), device=ids_NK.device).unsqueeze(-1)
        log_probs_NV = log_probs_NV.clone()
        log_probs_NV[rows_N1, ids_NK] = -torch.inf
        kept_NK = torch.cat([kept_NK, log_probs_NV.logsumexp(dim=-1, keepdim=True)], dim=-1)
    return {"ids": ids_NK, "log_probs": kept_NK.clamp(min=_LEAST).half()}


def sampled_tokens(log_probs_NV: Tensor, stored: Samples, numbers_NK: Tensor) -> dict[str, Tensor]:
    log_s_NV = log_probs_NV
    if stored.weighted:
        log_s_NV = (log_probs_NV / stored.temperature).log_softmax(dim=-1)
    counts_NV = (log_s_NV.double().exp() * _ONE).long()
    cumulated_NV = counts_NV.cumsum(dim=-1)
    total_N1 = cumulated_NV[:, -1:]
    drawn_NK = (numbers_NK * total_N1).long().clamp(max=total_N1 - 1)
    ids_NK = torch.searchsorted(cumulated_NV, drawn_NK, right=True)
    probs_NV = log_probs_NV.exp()
    found = {"ids": ids_NK, "entropy": -(probs_NV * log_probs_NV.clamp(min=_LEAST)).sum(dim=-1)}
    if stored.weighted:
        log_s_NK = (counts_NV.gather(-1, ids_NK).double() / total_N1).log()
        found["log_weights"] = (log_probs_NV.gather(-1, ids_NK).double() - log_s_NK).half()
    return found


def numbers_of(seed: int, row: int, positions: int, count: int) -> Tensor:
    """numbers_TK in [0, 1), in float64, for the draws at the positions of a row: a function of seed and row alone."""
    drawn = np.random.Generator(np.random.Philox(key=[seed, row])).random((positions, count))
    return torch.from_numpy(drawn)
