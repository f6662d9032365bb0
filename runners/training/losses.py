"""The terms of the loss: their formulas. Their fields and the total are in `boomspec/core/losses.py`.

One mask and one reduction for every term: sum over the positions that have a label (labels_BT is not
-100), divided by `count`, the number of such positions in the whole EFFECTIVE batch. So the losses of
micro batches add up to the loss of the batch exactly, however it is cut. The cosine term is also
divided by the number of pairs. Softmaxes and cosines are computed in fp32.

`labels_BT[b, t]` is the token that follows position t: nothing is shifted in here.

Shapes: B sequences, T positions, N positions of any sequence, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.work_sizes import CHUNK_LOGITS, LEAST_CHUNK
from runners.modeling.head import Head
from runners.modeling.hidden_states import Pair, Point

NO_LABEL = -100


def cross_entropy(term: CrossEntropy, logits_NV: Tensor, teacher_logits_NV: Tensor | None, labels_N: Tensor) -> Tensor:
    """-log p(label) at each of N positions."""
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="none")


def kl(term: KL, logits_NV: Tensor, teacher_logits_NV: Tensor | None, labels_N: Tensor) -> Tensor:
    """T^2 * KL(teacher || student) of the softmaxes at temperature T, at each of N positions."""
    assert teacher_logits_NV is not None
    student_NV, teacher_NV = (
        # Dividing by 1 would only copy.
        F.log_softmax(logits.float() if term.temperature == 1 else logits.float() / term.temperature, dim=-1)
        for logits in (logits_NV, teacher_logits_NV)
    )
    return term.temperature**2 * F.kl_div(student_NV, teacher_NV, reduction="none", log_target=True).sum(dim=-1)


def cosine(one_BTD: Tensor, other_BTD: Tensor) -> Tensor:
    """Cosine similarity of two hidden states at each of B x T positions."""
    return F.cosine_similarity(one_BTD.float(), other_BTD.float(), dim=-1)


def hidden_cosine(term: HiddenCosine, student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """1 - cos(student state, teacher state) at each of B x T positions, for one pair."""
    return 1 - cosine(student_BTD, teacher_BTD)


HeadTerm = Callable[[Any, Tensor, Tensor | None, Tensor], Tensor]
HEAD_TERMS: dict[str, HeadTerm] = {"cross_entropy": cross_entropy, "kl": kl}
STATE_TERMS = {"hidden_cosine": hidden_cosine}
TEACHER_LOGITS = frozenset({"kl"})  # head terms that read the teacher's logits


def needs_teacher(losses: Losses) -> bool:
    return any(name in TEACHER_LOGITS or name in STATE_TERMS for name in losses.terms())


def needs_teacher_logits(losses: Losses) -> bool:
    return any(name in TEACHER_LOGITS for name in losses.terms())


def weights(losses: Losses) -> dict[str, float]:
    """The weight of each term that is switched on, by kind."""
    terms: dict[str, Any] = dict(losses.terms())
    return {name: term.weight for name, term in terms.items()}


def head_loss(
    hidden_BTD: Tensor,
    labels_BT: Tensor,
    *,
    head: Head,
    losses: Losses,
    count: int,
    teacher_hidden_BTD: Tensor | None = None,
    teacher_head: Head | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the terms that read logits, and each term's own value (no weight, no graph).

    `teacher_hidden_BTD` and `teacher_head` are used where a term reads the teacher's logits, and only there.

    Logits exist for `chunk` positions at a time (None: as many as fit CHUNK_LOGITS). The gradients of
    the hidden states and of the head's parameters are computed in the same pass; the teacher has none.
    """
    terms = {name: term for name, term in losses.terms().items() if name in HEAD_TERMS}
    if not terms:
        return hidden_BTD.new_zeros((), dtype=torch.float32), {}
    labelled_BT = labels_BT != NO_LABEL
    labels_N = labels_BT[labelled_BT]
    teacher_ND = None
    if teacher_hidden_BTD is not None and needs_teacher_logits(losses):
        teacher_ND = teacher_hidden_BTD[labelled_BT]

    def values_of(rows: slice, hidden_ND: Tensor) -> Tensor:
        teacher_logits_NV = None
        if teacher_ND is not None and teacher_head is not None:
            with torch.no_grad():
                teacher_logits_NV = teacher_head(teacher_ND[rows])
        logits = (head(hidden_ND), teacher_logits_NV, labels_N[rows])
        return torch.stack([HEAD_TERMS[name](term, *logits).sum() for name, term in terms.items()]) / count

    factors = torch.tensor([weights(losses)[name] for name in terms], device=hidden_BTD.device)
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
    """Add the parameters' gradients to their sums; that of `hidden_ND`, where it is wanted, becomes its own.

    A function of its own, so that no name holds on to a chunk's gradient, as large as the head, in the next chunk.
    """
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
    pairs: Sequence[Pair],
    losses: Losses,
    count: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Like `head_loss`, for the terms that compare hidden states (states_BTD by point)."""
    term = losses.hidden_cosine
    total = labels_BT.new_zeros((), dtype=torch.float32)
    if term is None:
        return total, {}
    labelled_BT = labels_BT != NO_LABEL
    for student, teacher in pairs:
        values_BT = hidden_cosine(term, student_states[student], teacher_states[teacher])
        total = total + values_BT[labelled_BT].sum() / (count * len(pairs))
    return term.weight * total, {"hidden_cosine": total.detach()}
