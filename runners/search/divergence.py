"""Measure the KL divergence between the next-token distributions of candidates and teacher.

The teacher's distributions are computed once and held where they fit in `HELD_LOGITS`; where they do not, its last
hidden states are held and its head is applied again, chunk by chunk: then no more than a chunk of logits exists.

Shapes: B sequences, T positions, N positions of any sequence, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from boomspec.core.losses.kl import kl_divergence
from boomspec.core.work_sizes import CHUNK_LOGITS, HELD_LOGITS
from runners.modeling.head import LMHead

Direction = Literal["teacher_to_candidate", "candidate_to_teacher"]
Positions = Literal["all", "last"]
Reduction = Literal["token_mean", "sequence_max"]


class Divergence:
    """KL to the teacher, from its last hidden states hidden_BTD in batches.

    direction   teacher_to_candidate: KL(teacher || candidate); candidate_to_teacher: KL(candidate || teacher)
    positions   all of them, or the last one of each sequence
    reduction   token_mean: the mean over all positions of all sequences; sequence_max: the largest of each
                sequence, then the mean of those
    """

    def __init__(
        self,
        head: LMHead,
        hidden: Sequence[Tensor],
        *,
        direction: Direction,
        positions: Positions,
        reduction: Reduction,
        held_bytes: int = HELD_LOGITS,
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        self._rows = max(1, chunk_logits // head.vocabulary)  # positions of a chunk
        self._head, self._direction, self._positions, self._reduction = head, direction, positions, reduction
        self._hidden = [self._measured(hidden_BTD) for hidden_BTD in hidden]
        count = sum(hidden_BTD.shape[0] * hidden_BTD.shape[1] for hidden_BTD in self._hidden)
        self._held: list[list[tuple[Tensor, Tensor]]] | None = None
        if 2 * count * head.vocabulary * torch.float32.itemsize <= held_bytes:
            self._held = [list(self._teacher(number)) for number in range(len(hidden))]

    def of_sequences(self, number: int, head: LMHead, hidden_BTD: Tensor) -> Tensor:
        """What batch `number` adds to `mean`, per sequence in fp64. `head` and hidden_BTD are a candidate's."""
        candidate_BTD = self._measured(hidden_BTD)
        teacher = self._teacher(number) if self._held is None else iter(self._held[number])
        values = []
        for log_q_NV, (log_p_NV, p_NV) in zip(self._log_probs(head, candidate_BTD), teacher, strict=True):
            if self._direction == "teacher_to_candidate":
                values.append(kl_divergence(log_p_NV, log_q_NV, p_NV=p_NV))
            else:
                values.append(kl_divergence(log_q_NV, log_p_NV, p_NV=log_q_NV.exp()))
        values_BT = torch.cat(values).double().view(candidate_BTD.shape[:2]).cpu()
        return values_BT.sum(1) if self._reduction == "token_mean" else values_BT.amax(1)

    def mean(self, of_sequences: Sequence[Tensor]) -> float:
        """The value of a candidate, from what all batches add."""
        total = torch.cat(list(of_sequences))
        positions = 1 if self._reduction == "sequence_max" else self._hidden[0].shape[1]
        return float(total.sum() / (len(total) * positions))

    def _measured(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD if self._positions == "all" else hidden_BTD[:, -1:]

    def _teacher(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The teacher's log-probabilities and probabilities for batch `number`, some positions at a time."""
        for log_probs_NV in self._log_probs(self._head, self._hidden[number]):
            yield log_probs_NV, log_probs_NV.exp()

    def _log_probs(self, head: LMHead, hidden_BTD: Tensor) -> Iterator[Tensor]:
        """Log-probabilities of all positions in fp32, some positions at a time."""
        for hidden_ND in hidden_BTD.flatten(0, 1).split(self._rows):  # type: ignore[no-untyped-call]
            yield F.log_softmax(head(hidden_ND).float(), dim=-1)
