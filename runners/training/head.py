"""The terms of the loss that read logits, with their gradients in the same pass, by chunks and tiles of positions.

    chunk   matrix products: the logits of student and teacher, then the gradients of hidden states and head, which read
            the gradient of the logits from where the student's logits were. Two buffers serve all chunks
    tile    the losses at some positions of a chunk: few enough for what they work on to stay in a CPU's cache

A term that knows its gradient in closed form shares softmaxes with the others; of the others autograd takes it, tile by
tile. Nothing is computed again in the backward pass.

What stands for the teacher where a term reads its logits: one model; several, as `Teachers` says; or what was stored
of its outputs (`runners/training/stored_outputs.py`), and no model at all.

Mask and reduction are those of `runners/training/losses.py`. Shapes: B sequences, T positions, N positions of any
sequence, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boomspec.core.losses import Loss, Losses
from boomspec.core.losses.closed_form import Softmax
from boomspec.core.work_sizes import CHUNK_LOGITS, LEAST_CHUNK, TILE_LOGITS
from runners.modeling.hidden_states import LMHead
from runners.training.bf16_products import rounded, slow_in_bf16
from runners.training.losses import labelled
from runners.training.moment import START, Moment
from runners.training.stored_outputs import StoredOutputs
from runners.training.teachers import ONE_TEACHER, Teachers, gradient_of


def head_loss(
    hidden_BTD: Tensor,
    labels_BT: Tensor,
    *,
    head: LMHead,
    losses: Losses,
    count: int,
    moment: Moment = START,
    # The next three: where a term reads the teacher's logits. Of several teachers a state and a head of each.
    teacher_hidden_BTD: Tensor | Sequence[Tensor] | None = None,
    teacher_head: LMHead | Sequence[LMHead] | None = None,
    teachers: Teachers = ONE_TEACHER,
    stored: StoredOutputs | None = None,  # at B x T positions, in place of a teacher
    chunk: int | None = None,  # logits exist for so many positions at a time; None: as many as fit CHUNK_LOGITS
    tile: int | None = None,  # the same of what the losses work on, and TILE_LOGITS
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the terms that read logits, and each term's own value (no weight, no graph).

    The gradients of the hidden states and of the head's parameters are computed in the same pass; the teacher has none.
    """
    terms = losses.reading("logits")
    if not terms:
        return hidden_BTD.new_zeros((), dtype=torch.float32), {}
    pick, labels_N = labelled(labels_BT, hidden_BTD.device)
    of_teachers: tuple[tuple[LMHead, Tensor], ...] = ()
    if losses.reading("teacher_logits"):
        if stored is None:
            heads = [teacher_head] if isinstance(teacher_head, LMHead) else teacher_head or ()
            hidden = [teacher_hidden_BTD] if isinstance(teacher_hidden_BTD, Tensor) else teacher_hidden_BTD or ()
            of_teachers = tuple((of, pick(states_BTD)) for of, states_BTD in zip(heads, hidden, strict=True))
            assert len(of_teachers) == len(teachers.weights)
        else:
            stored = stored.at(pick)
    kind = hidden_BTD.device.type
    work = _Work(
        head,
        of_teachers,
        teachers,
        stored,
        labels_N,
        terms,
        count,
        moment,
        chunk=chunk or max(LEAST_CHUNK[kind], CHUNK_LOGITS // head.vocabulary),
        tile=tile or max(1, TILE_LOGITS[kind] // head.vocabulary),
        graded=torch.is_grad_enabled(),
    )
    total, values = _HeadLoss.apply(work, pick(hidden_BTD), *head.parameters())  # type: ignore[no-untyped-call]
    return total, dict(zip(terms, values.unbind(), strict=True))


@dataclass(frozen=True)
class _Work:
    """What a pass reads beside what has a gradient."""

    head: LMHead
    of_teachers: tuple[tuple[LMHead, Tensor], ...]  # the head and hidden_ND of each
    teachers: Teachers
    stored: StoredOutputs | None
    labels_N: Tensor
    terms: Mapping[str, Loss]
    count: int
    moment: Moment
    chunk: int
    tile: int
    graded: bool  # whether any gradient is wanted

    def losses_of(
        self,
        raw_NV: Tensor,
        of_teachers: Sequence[Tensor],
        stored: StoredOutputs | None,
        labels_N: Tensor,
        graded: bool,
    ) -> list[Tensor]:
        """The sum of each term over the positions of a tile; `graded`: raw_NV then holds the gradient of the total."""
        stages = self.head.transformed(raw_NV.float())
        student = Softmax(stages[-1])
        logits = [
            Softmax(head.transformed(raw.float())[-1])
            for (head, _), raw in zip(self.of_teachers, of_teachers, strict=True)
        ]
        weighted = self.teachers.weighted(logits)
        sums, parts, at_label = [], [], 0.0
        for term in self.terms.values():
            of_term, t = self.moment.weight(term) / self.count, self.moment.t(term)
            if stored is not None and "teacher_logits" in term.reads:
                value, part_NV = stored.loss(term, student, labels_N, t, graded=graded)
                sums.append(value)
                parts += [(of_term, part_NV)] if part_NV is not None else []
                continue
            of_each: list[Tensor] = []
            for weight, teacher in weighted if "teacher_logits" in term.reads else [(1.0, None)]:
                form, scale = term.closed_form(student, teacher, labels_N, t), of_term * weight
                if form is not None:
                    value = form.values_N.sum()
                    parts += [(scale * factor, part_NV) for factor, part_NV in form.parts]
                    at_label += scale * form.at_label
                else:
                    value, part_NV = gradient_of(term, student, teacher, labels_N, t, graded=graded)
                    parts += [(scale, part_NV)] if part_NV is not None else []
                of_each.append(value * weight)
            sums.append(of_each[0] if len(of_each) == 1 else torch.stack(of_each).sum())
        if graded:
            # In fp32 without transforms this is raw_NV itself, which nothing reads from here on.
            gradient_NV = _weighted_sum(parts, out=stages[-1] if len(stages) == 1 else torch.empty_like(stages[-1]))
            if at_label:
                rows = torch.arange(len(labels_N), device=labels_N.device)
                gradient_NV[rows, labels_N] += at_label
            gradient_NV = self.head.raw_gradient(gradient_NV, stages)
            if gradient_NV.data_ptr() != raw_NV.data_ptr():
                raw_NV.copy_(gradient_NV)
        return sums


@torch.no_grad()
def logits_by_chunks(head: LMHead, hidden_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Positions and their logits_NV in fp32, a chunk at a time: the same as the losses read of a teacher."""
    chunk = max(LEAST_CHUNK[hidden_ND.device.type], CHUNK_LOGITS // head.vocabulary)
    products = _Products(head, hidden_ND, chunk)
    for start in range(0, len(hidden_ND), chunk):
        rows = slice(start, min(start + chunk, len(hidden_ND)))
        yield rows, head.transformed(products.logits(rows).float())[-1]


def _weighted_sum(parts: Sequence[tuple[float, Tensor]], *, out: Tensor) -> Tensor:
    (factor, first), *rest = parts
    torch.mul(first, factor, out=out)
    for factor, part in rest:
        out.add_(part, alpha=factor)
    return out


class _HeadLoss(torch.autograd.Function):
    """`sum(weight * value)` over all positions, and the values."""

    @staticmethod
    def forward(ctx: Any, work: _Work, hidden_ND: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        # Parameters require gradients also where none is computed.
        graded = ctx.needs_input_grad[1:] if work.graded else ()
        student = _Products(work.head, hidden_ND, work.chunk, graded=graded)
        teachers = [_Products(head, states_ND, work.chunk) for head, states_ND in work.of_teachers]
        sums: list[list[Tensor]] = []
        for start in range(0, len(hidden_ND), work.chunk):
            rows = slice(start, start + work.chunk)
            logits_NV = student.logits(rows)
            of_teachers = [teacher.logits(rows) for teacher in teachers]
            stored = None if work.stored is None else work.stored[rows]
            for first in range(0, len(logits_NV), work.tile):
                part = slice(first, first + work.tile)
                tiles = [raw_NV[part] for raw_NV in of_teachers]
                of_store = None if stored is None else stored[part]
                labels_N = work.labels_N[rows][part]
                with torch.autocast(hidden_ND.device.type, enabled=False):  # losses are computed in fp32
                    of_tile = work.losses_of(logits_NV[part], tiles, of_store, labels_N, student.is_graded)
                sums.append(of_tile)
            student.add_gradients(rows, logits_NV)
        device = hidden_ND.device
        values = torch.zeros(len(work.terms), device=device)
        if sums:
            values = torch.stack([torch.stack(of_term).sum() for of_term in zip(*sums, strict=True)]) / work.count
        ctx.grads = student.gradients
        ctx.mark_non_differentiable(values)
        factors = torch.tensor([work.moment.weight(term) for term in work.terms.values()], device=device)
        return (factors * values).sum(), values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _grad_values: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place, for the head's gradient is as large as the head; so they serve one backward only.
        grads, ctx.grads = ctx.grads, None
        if grad_total.device.type == "cpu" and grad_total == 1:
            return None, *grads
        return None, *(grad if grad is None else grad.mul_(grad_total) for grad in grads)


class _Products:
    """The matrix products of a head with the hidden states of all positions, chunk by chunk, and their gradients."""

    def __init__(self, head: LMHead, hidden_ND: Tensor, chunk: int, *, graded: Sequence[bool] = ()) -> None:
        self.head, self.linear, self.hidden_ND = head, head.linear, hidden_ND
        self.parameters = head.parameters() if graded else []
        self.is_graded = any(graded)
        # Sums over the chunks, in the dtypes of what they are gradients of. The first chunk writes them.
        new = torch.empty_like if len(hidden_ND) else torch.zeros_like
        self.gradients: list[Tensor | None] = [
            new(tensor) if wanted else None
            for wanted, tensor in zip(graded, (hidden_ND, *self.parameters), strict=False)
        ]
        self.graph: tuple[Tensor, Tensor] | None = None  # hidden_ND and logits_NV of a chunk, where autograd is needed
        if self.linear is None:
            return
        device = hidden_ND.device.type
        weight_VD = self.linear.weight.detach()
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        bias_V = None if self.linear.bias is None else self.linear.bias.detach()
        # Once for all chunks.
        if dtype == torch.bfloat16 and slow_in_bf16(device):
            dtype = torch.float32
            self.cast_ND, self.weight_VD = rounded(hidden_ND.detach()), rounded(weight_VD)
            self.bias_V = None if bias_V is None else rounded(bias_V)
        else:
            self.cast_ND, self.weight_VD = hidden_ND.detach().to(dtype), weight_VD.to(dtype)
            self.bias_V = None if bias_V is None else bias_V.to(dtype)
        self.buffer = weight_VD.new_empty((min(chunk, len(hidden_ND)), len(weight_VD)), dtype=dtype)

    def logits(self, rows: slice) -> Tensor:
        """The raw logits of a chunk, to be overwritten by their gradient."""
        if self.linear is None:
            with torch.set_grad_enabled(self.is_graded):
                chunk_ND = self.hidden_ND[rows].detach().requires_grad_(self.is_graded)
                raw_NV = self.head.output(chunk_ND)
            self.graph = chunk_ND, raw_NV
            copied_NV: Tensor = raw_NV.detach().clone()  # the module's own backward may read what it gave
            return copied_NV
        chunk_ND = self.cast_ND[rows]
        out_NV = self.buffer[: len(chunk_ND)]
        if self.bias_V is None:
            torch.mm(chunk_ND, self.weight_VD.t(), out=out_NV)
        else:
            torch.addmm(self.bias_V, chunk_ND, self.weight_VD.t(), out=out_NV)
        return out_NV

    def add_gradients(self, rows: slice, gradient_NV: Tensor) -> None:
        if not self.is_graded:
            return
        hidden_ND, *others = self.gradients
        first = rows.start == 0
        if self.linear is None:
            assert self.graph is not None
            (chunk_ND, raw_NV), self.graph = self.graph, None
            of_chunk_ND, *parts = torch.autograd.grad(raw_NV, [chunk_ND, *self.parameters], gradient_NV)
            if hidden_ND is not None:
                hidden_ND[rows] = of_chunk_ND
            for total, part in zip(others, parts, strict=True):
                if total is not None:
                    _add(total, part, first=first)
            return
        if hidden_ND is not None:
            _add_product(hidden_ND[rows], gradient_NV, self.weight_VD, first=True)
        for total, parameter in zip(others, self.parameters, strict=True):
            if total is None:
                continue
            if parameter is self.linear.bias:
                _add(total, gradient_NV.sum(dim=0), first=first)
            else:
                _add_product(total, gradient_NV.t(), self.cast_ND[rows], first=first)


def _add(total: Tensor, part: Tensor, *, first: bool) -> None:
    if first:
        total.copy_(part)
    else:
        total.add_(part)


def _add_product(total: Tensor, one: Tensor, other: Tensor, *, first: bool) -> None:
    if total.dtype == one.dtype:
        total.addmm_(one, other, beta=0 if first else 1)  # 0: what is there is not read
    else:
        _add(total, one @ other, first=first)  # of bf16 matrices: the sum over the chunks is taken in fp32
