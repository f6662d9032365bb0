"""The long-range term of the reverse KL of what a student writes: each token is credited with what comes behind it.

The gradient of the reverse KL of whole sequences, L = E_{y ~ q} sum_t log q(y_t | y_<t) / p(y_t | y_<t), has two parts
(MiniLLM, arXiv 2306.08543, equations 4 to 7). One is what the loss `reverse_kl` computes exactly at every position. The
other says that y_t also leads to the states in which the later tokens are written:

    - E sum_t w_t R_{t+1} grad log q(y_t),     R_{t+1} = 1 / (N - t - 1) sum_{t' > t} log p(y_t') / q(y_t')

R is a mean, not a sum, so that long texts do not dominate (equation 7). w_t = q(y_t) / (a p(y_t) + (1 - a) q(y_t)) are
importance weights, where the teacher writes along with a share a. Rewards are not clipped, and one step is taken on
what was written, so no ratio of policies is needed.

Shapes: B sequences, T positions, N tokens that are written, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from boomspec.core.work_sizes import CHUNK_LOGITS
from runners.modeling.hidden_states import LMHead, trunk


def credits(
    student_BN: Tensor, teacher_BN: Tensor, teacher_share: float = 0.0, drawn_BN: Tensor | None = None
) -> Tensor:
    """w_t R_{t+1} of each token that was written, from its log-probabilities under student and teacher; in fp64.

    `drawn_BN`: which tokens were drawn; others, such as the one that every text begins with, have no reward.
    """
    q_BN, p_BN = student_BN.double(), teacher_BN.double()
    rewards_BN = p_BN - q_BN
    counted_BN = torch.ones_like(rewards_BN)
    if drawn_BN is not None:
        counted_BN = drawn_BN.double()
        rewards_BN = rewards_BN.masked_fill(~drawn_BN, 0)
    returns_BN = _later(rewards_BN) / _later(counted_BN).clamp(min=1)
    if teacher_share:
        shares = torch.tensor([teacher_share, 1 - teacher_share], dtype=torch.float64).log()
        returns_BN = returns_BN * (q_BN - torch.logaddexp(p_BN + shares[0], q_BN + shares[1])).exp()
    return returns_BN


def _later(values_BN: Tensor) -> Tensor:
    """The sum of what stands behind each place."""
    return values_BN.flip(1).cumsum(1).flip(1) - values_BN


@torch.no_grad()
def log_probabilities(model: Any, tokens_BT: Tensor, prompted: int) -> Tensor:
    """log_BN of each token behind the first `prompted` ones, on the CPU."""
    hidden_BTD, head = trunk(model, tokens_BT[:, :-1])[:, prompted - 1 :], LMHead(model)
    labels_N = tokens_BT[:, prompted:].flatten()
    parts = [_log_q(head, hidden_ND, part_N) for hidden_ND, part_N in _chunks(head, hidden_BTD.flatten(0, 1), labels_N)]
    return torch.cat(parts).reshape(len(tokens_BT), -1).cpu()


def long_range(head: LMHead, hidden_BTD: Tensor, labels_BT: Tensor, credits_BT: Tensor, count: int) -> Tensor:
    """- sum of credit x log q over the positions with a label (>= 0), divided by `count`.

    Logits are computed again in the backward pass, chunk by chunk, so that they are never there for all positions.
    """
    index_N = (labels_BT >= 0).flatten().nonzero().squeeze(-1)
    place = hidden_BTD.device
    labels_N, credits_N = (values.flatten()[index_N].to(place) for values in (labels_BT, credits_BT))
    total = hidden_BTD.new_zeros((), dtype=torch.float32)
    hidden_ND, start = hidden_BTD.flatten(0, 1)[index_N.to(place)], 0
    for chunk_ND, chunk_N in _chunks(head, hidden_ND, labels_N):
        log_q_N = checkpoint(_log_q, head, chunk_ND, chunk_N, use_reentrant=False, preserve_rng_state=False)
        total = total - (credits_N[start : start + len(chunk_N)].float() * log_q_N).sum()
        start += len(chunk_N)
    return total / count


def _log_q(head: LMHead, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
    log_q_NV = head(hidden_ND).float().log_softmax(-1)
    return log_q_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)


def _chunks(head: LMHead, hidden_ND: Tensor, labels_N: Tensor) -> list[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK_LOGITS // head.vocabulary)
    return list(zip(hidden_ND.split(size), labels_N.split(size), strict=True))  # type: ignore[no-untyped-call]
