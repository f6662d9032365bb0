"""Several teachers of one tokenizer: how a loss that reads the teacher's logits reads those of all of them.

    losses    sum over teachers t of w_t x loss(student, teacher t): the average of the losses (You et al. 2017)
    mixture   loss(student, m), where m is the model of the probabilities sum_t w_t p_t at temperature 1: its logits are
              their logarithms

For the forward KL at temperature 1 both have the same gradient, since they differ by what no student changes: the
spread of the teachers around their mixture. The weights add up to 1.

Shapes: N positions of any sequence, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from boomspec.core.losses import Loss
from boomspec.core.losses.closed_form import Softmax


@dataclass(frozen=True)
class Teachers:
    weights: tuple[float, ...] = (1.0,)  # of each, the family's own teacher first
    combine: Literal["losses", "mixture"] = "losses"

    def weighted(self, teachers: Sequence[Softmax]) -> list[tuple[float, Softmax]]:
        """What a loss is computed against, with the weight of each; nothing where no teacher was run."""
        if len(teachers) < 2 or self.combine == "losses":
            return list(zip(self.weights, teachers, strict=False))
        return [(1.0, Softmax(mixture(self.weights, teachers)))]


ONE_TEACHER = Teachers()


def mixture(weights: Sequence[float], teachers: Sequence[Softmax]) -> Tensor:
    """log sum_t w_t p_t: logits_NV of the mixture of the teachers' distributions."""
    (first, *others) = [
        (teacher.logits_NV - teacher.at()[1].unsqueeze(-1)).add_(torch.tensor(weight).log().item())
        for weight, teacher in zip(weights, teachers, strict=True)
    ]
    for other in others:
        first = torch.logaddexp(first, other)
    return first


def gradient_of(
    term: Loss, student: Softmax, teacher: Softmax | None, labels_N: Tensor, t: float = 0.0, *, graded: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum of a term over some positions, and its gradient with respect to the student's logits, by autograd."""
    read: dict[str, Any] = {"labels": labels_N, "logits": student.logits_NV.detach().requires_grad_(graded), "t": t}
    if teacher is not None:
        read["teacher_logits"] = teacher.logits_NV
    with torch.set_grad_enabled(graded):
        value = term.formula(*(read[what] for what in term.reads)).sum()
    gradient_NV = torch.autograd.grad(value, read["logits"])[0] if graded else None
    return value.detach(), gradient_NV
