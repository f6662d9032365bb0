"""Mask and reduction of the loss, and its terms that read hidden states. Formulas are in `boomspec/core/losses`.

One mask and one reduction for every term: sum over the positions that have a label (labels_BT is not -100), divided by
`count`, the number of such positions in the whole EFFECTIVE batch. So the losses of micro batches add up to the loss of
the batch exactly, however it is cut. Terms that read hidden states are also divided by the number of pairs. Those that
read logits are in `head.py`.

`labels_BT[b, t]` is the token that follows position t: nothing is shifted in here.
Shapes: B sequences, T positions, N positions of any sequence, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from boomspec.core.losses import Losses
from boomspec.core.losses.weight import Weight
from runners.modeling.hidden_states import Pair, Point
from runners.training.moment import START, Moment

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


def state_loss(
    student_states: Mapping[Point, Tensor],
    teacher_states: Mapping[Point, Tensor],
    labels_BT: Tensor,
    *,
    pairs: Mapping[str, Sequence[Pair]],
    losses: Losses,
    count: int,
    moment: Moment = START,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Like `head_loss`, for the terms that compare hidden states (states_BTD by point); `pairs`: those of each term."""
    has_label_BT = labels_BT != NO_LABEL
    # Whether all have one must be known without waiting for a GPU.
    everywhere = labels_BT.device.type == "cpu" and bool(has_label_BT.all())
    zero = torch.zeros(())
    total, terms = zero, {}
    for kind, term in losses.reading("states").items():
        value = zero
        for student, teacher in pairs[kind]:
            read = {"states": student_states[student], "teacher_states": teacher_states[teacher]}
            values_BT = term.formula(*(read[what] for what in term.reads))
            if not everywhere:
                values_BT = values_BT.masked_fill(~has_label_BT.to(values_BT.device, non_blocking=True), 0.0)
            value = value + values_BT.sum() / (count * len(pairs[kind]))
        total = total + moment.weight(term) * value
        terms[kind] = value.detach()
    return total, terms
