"""How alike the hidden states of student and teacher are, at the pairs of points that a distillation aligns.

Shapes: B sequences, T positions.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from boomspec.core.json_text import computed_json
from boomspec.core.losses.hidden_cosine import cosine
from boomspec.core.tasks import Precision
from runners.modeling.hidden_states import Pair, capture, trunk
from runners.runtime.device import autocast

SIMILARITY = "similarity.json"


@torch.no_grad()
def similarities(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    pairs: Sequence[Pair],
    tokens_BT: Tensor,
    precision: Precision,
) -> list[float]:
    """The mean cosine of each pair's states over all positions, with those of the first teacher."""
    if not teachers:
        return []
    teacher, *_ = teachers
    sums = torch.zeros(len(pairs), dtype=torch.float64)
    for row in tokens_BT.split(1):  # type: ignore[no-untyped-call]
        with autocast(precision):
            with capture(student, [s for s, _ in pairs]) as student_states:
                trunk(student, row)
            with capture(teacher, [t for _, t in pairs]) as teacher_states:
                trunk(teacher, row)
        cosines = [cosine(student_states[s], teacher_states[t]).double().sum() for s, t in pairs]
        sums += torch.stack(cosines).cpu()
    return [float(value) for value in sums / tokens_BT.numel()]


def write_similarities(path: Path, pairs: Sequence[Pair], before: Sequence[float], after: Sequence[float]) -> None:
    """The table of all pairs, before and after the training."""
    names = [[f"layer {point}" if isinstance(point, int) else point for point in pair] for pair in pairs]
    values = zip(names, before, after, strict=True)
    table = [{"student": s, "teacher": t, "before": b, "after": a} for (s, t), b, a in values]
    path.write_text(computed_json({"pairs": table}, "hidden states"), encoding="utf-8")
