"""Mask and reduction of the loss, and its terms that compare places of student and teacher: states, attention.

One mask and one reduction for every term: sum over the positions that have a label (labels_BT is not -100), divided by
`count`, the number of such positions in the whole EFFECTIVE batch. So the losses of micro batches add up to the loss of
the batch exactly, however it is cut. Terms on pairs of places are also divided by the number of pairs. Those that read
logits are in `head.py`. Formulas are in `boomspec/core/losses`.

`labels_BT[b, t]` is the token that follows position t: nothing is shifted in here.
Shapes: B sequences, T positions, N positions of any sequence, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from boomspec.core.losses import Losses, PairLoss
from boomspec.core.losses.attention_loss import AttentionLoss
from boomspec.core.losses.pairs import PROJECTION
from boomspec.core.losses.relation_loss import RelationLoss
from boomspec.core.losses.weight import Weight
from runners.modeling.hidden_states import Pair, Point
from runners.training.loss_parameters import LossParameters
from runners.training.moment import START, Moment
from runners.training.position_relations import attention_sum, relation_sum
from runners.training.sites import Site, is_teachers

NO_LABEL = -100


def weights(losses: Losses) -> dict[str, Weight]:
    return {kind: term.weight for kind, term in losses.terms().items()}


def labelled(labels_BT: Tensor, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(hidden_BTD -> hidden_ND of the positions that have a label, labels_N of them on `device`).

    Labels on the CPU are best: on a GPU the host must wait for the number of those that are there.
    """
    mask_N = (labels_BT != NO_LABEL).flatten()
    if mask_N.all():
        return lambda hidden_BTD: hidden_BTD.flatten(0, 1), labels_BT.flatten().to(device, non_blocking=True)
    index_N = mask_N.nonzero().squeeze(-1)
    labels_N, index_N = (tensor.to(device, non_blocking=True) for tensor in (labels_BT.flatten()[index_N], index_N))
    return lambda hidden_BTD: hidden_BTD.flatten(0, 1)[index_N], labels_N


def pair_loss(
    student: Mapping[Any, Any],  # by `Where`
    teacher: Mapping[Any, Any],
    labels_BT: Tensor,
    *,
    sites: Mapping[str, Sequence[Site]],
    losses: Losses,
    count: int,
    moment: Moment = START,
    parameters: LossParameters | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Like `head_loss`, for the terms that compare places of student and teacher.

    `student`, `teacher`: what was captured of them, by place. `sites`: where each argument of a term is read, for each
    of its pairs; a term without pairs is left out. `parameters`: those that the losses train.
    """
    has_label_BT = labels_BT != NO_LABEL
    # Whether all have one must be known without waiting for a GPU.
    everywhere = labels_BT.device.type == "cpu" and bool(has_label_BT.all())
    total, terms = torch.zeros(()), {}
    for kind, term in losses.terms().items():
        if not isinstance(term, PairLoss) or not sites[kind]:
            continue
        value = torch.zeros(())
        for number, site in enumerate(sites[kind]):
            trained = {} if parameters is None else parameters.of(kind, number)
            read: dict[str, Any] = {
                what: (teacher if is_teachers(what) else student)[place] for what, place in site.items()
            }
            if (matrix_DD := trained.pop(PROJECTION, None)) is not None:
                read |= {what: linear(read[what], matrix_DD) for what in ("states", "inputs") if what in read}
            scale = count * len(sites[kind])
            if isinstance(term, AttentionLoss):
                summed = attention_sum(term, read, has_label_BT)
            elif isinstance(term, RelationLoss):
                summed = relation_sum(term, read["states"], read["teacher_states"], has_label_BT, trained)
            else:
                values_BT = term.formula(*(read[what] for what in term.reads), **trained)
                if not everywhere:
                    values_BT = values_BT.masked_fill(~has_label_BT.to(values_BT.device, non_blocking=True), 0.0)
                summed = values_BT.sum()
            value = value + summed / scale
        total = total + moment.weight(term) * value
        terms[kind] = value.detach()
    return total, terms


def state_loss(
    student_states: Mapping[Point, Tensor],
    teacher_states: Mapping[Point, Tensor],
    labels_BT: Tensor,
    *,
    pairs: Mapping[str, Sequence[Pair]],
    **options: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`pair_loss` of terms that compare states alone, at given pairs of points; `options` are those of it."""
    sites: dict[str, list[Site]] = {
        kind: [{"states": student, "teacher_states": teacher} for student, teacher in of_term]
        for kind, of_term in pairs.items()
    }
    return pair_loss(student_states, teacher_states, labels_BT, sites=sites, **options)
