"""Compute the terms of the loss: head and hidden states, mask and reduction. Formulas are in `boomspec/core/losses`.

One mask and one reduction for every term: sum over the positions that have a label (labels_BT is not -100), divided by
`count`, the number of such positions in the whole EFFECTIVE batch. So the losses of micro batches add up to the loss of
the batch exactly, however it is cut. Terms that read hidden states are also divided by the number of pairs.

`labels_BT[b, t]` is the token that follows position t: nothing is shifted in here.
Shapes: B sequences, T positions, N positions of any sequence, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boomspec.core.losses import Losses
from boomspec.core.work_sizes import CHUNK_LOGITS, LEAST_CHUNK
from runners.modeling.hidden_states import LMHead, Pair, Point

NO_LABEL = -100


def weights(losses: Losses) -> dict[str, float]:
    return {kind: term.weight for kind, term in losses.terms().items()}


def head_loss(
    hidden_BTD: Tensor,
    labels_BT: Tensor,
    *,
    head: LMHead,
    losses: Losses,
    count: int,
    teacher_hidden_BTD: Tensor | None = None,  # this and the next one: where a term reads the teacher's logits
    teacher_head: LMHead | None = None,
    chunk: int | None = None,  # logits exist for so many positions at a time; None: as many as fit CHUNK_LOGITS
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the terms that read logits, and each term's own value (no weight, no graph).

    The gradients of the hidden states and of the head's parameters are computed in the same pass; the teacher has none.
    """
    terms = losses.reading("logits")
    if not terms:
        return hidden_BTD.new_zeros((), dtype=torch.float32), {}
    labelled_BT = labels_BT != NO_LABEL
    labels_N = labels_BT[labelled_BT]
    teacher_ND = None
    if losses.reading("teacher_logits"):
        assert teacher_hidden_BTD is not None
        teacher_ND = teacher_hidden_BTD[labelled_BT]

    def values_of(rows: slice, hidden_ND: Tensor) -> Tensor:
        read: dict[str, Tensor] = {"labels": labels_N[rows]}
        if teacher_ND is not None and teacher_head is not None:
            with torch.no_grad():
                read["teacher_logits"] = teacher_head(teacher_ND[rows])
        read["logits"] = head(hidden_ND)
        sums = [term.formula(*(read[what] for what in term.reads)).sum() for term in terms.values()]
        return torch.stack(sums) / count

    factors = torch.tensor([term.weight for term in terms.values()], device=hidden_BTD.device)
    size = chunk or max(LEAST_CHUNK[hidden_BTD.device.type], CHUNK_LOGITS // head.vocabulary)
    inputs = (hidden_BTD[labelled_BT], *head.parameters())
    total, values = _HeadLoss.apply(values_of, factors, size, *inputs)  # type: ignore[no-untyped-call]
    return total, dict(zip(terms, values.unbind(), strict=True))


class _HeadLoss(torch.autograd.Function):
    """`sum(factors * values)` over all positions, with the gradients taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, values_of: Callable[[slice, Tensor], Tensor], factors: Tensor, size: int, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden_ND, *parameters = inputs
        wanted = ctx.needs_input_grad[3:]
        values = torch.zeros_like(factors)
        grad_hidden_ND = torch.zeros_like(hidden_ND) if wanted[0] else None
        grads = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(0, len(hidden_ND), size):
            rows = slice(start, start + size)
            with torch.set_grad_enabled(any(wanted)):
                chunk_ND = hidden_ND[rows].detach().requires_grad_(wanted[0])
                chunk_values = values_of(rows, chunk_ND)
                chunk_total = (factors * chunk_values).sum()
            values += chunk_values.detach()
            if any(wanted):
                _add_gradients(grads, chunk_total, parameters, chunk_ND)
                if grad_hidden_ND is not None and chunk_ND.grad is not None:
                    grad_hidden_ND[rows] = chunk_ND.grad
        ctx.grads = [grad_hidden_ND, *grads]
        ctx.mark_non_differentiable(values)
        return (factors * values).sum(), values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _grad_values: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place, for the head's gradient is as large as the head; so they serve one backward only.
        grads, ctx.grads = ctx.grads, None
        return None, None, None, *(grad if grad is None else grad.mul_(grad_total) for grad in grads)


def _add_gradients(sums: Sequence[Tensor], total: Tensor, parameters: Sequence[Tensor], hidden_ND: Tensor) -> None:
    # A function of its own, so that no name holds on to a chunk's gradient, as large as the head, in the next chunk.
    wanted = [hidden_ND] if hidden_ND.requires_grad else []
    found = list(torch.autograd.grad(total, [*wanted, *parameters]))
    if wanted:
        hidden_ND.grad = found.pop(0)
    for grad, part in zip(sums, found, strict=True):
        grad += part


def state_loss(
    student_states: Mapping[Point, Tensor],
    teacher_states: Mapping[Point, Tensor],
    labels_BT: Tensor,
    *,
    pairs: Mapping[str, Sequence[Pair]],
    losses: Losses,
    count: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Like `head_loss`, for the terms that compare hidden states (states_BTD by point); `pairs`: those of each term."""
    zero, labelled_BT = labels_BT.new_zeros((), dtype=torch.float32), labels_BT != NO_LABEL
    total, terms = zero, {}
    for kind, term in losses.reading("states").items():
        value = zero
        for student, teacher in pairs[kind]:
            read = {"states": student_states[student], "teacher_states": teacher_states[teacher]}
            values_BT = term.formula(*(read[what] for what in term.reads))
            value = value + values_BT[labelled_BT].sum() / (count * len(pairs[kind]))
        total = total + term.weight * value
        terms[kind] = value.detach()
    return total, terms
