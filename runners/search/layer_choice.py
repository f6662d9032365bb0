"""Choose which of the teacher's layers to keep, by what they do to hidden states on calibration text.

    block_influence   BI_l = 1 - mean cos(input of layer l, output of layer l) over all positions, on the raw states
                      of the whole teacher (ShortGPT, arXiv 2403.03853). Kept are layer 0 and, of the others, the
                      count - 1 with the highest influence.
    cosine_greedy     layers are dropped one by one until `count` are left. Each time the layer goes without which
                      the mean cosine, over all positions, of the last hidden state (which the head reads) to the
                      whole teacher's is highest. Layer 0 is never dropped.

Of equal layers the lower one is kept by block influence, and dropped by cosine greedy.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import TEACHER, LayerPlan, teacher_layers
from boomspec.core.losses.hidden_cosine import cosine
from boomspec.core.tasks import LayerChoice
from runners.modeling.hidden_states import EMBEDDING, Point, capture, decoder_layers, trunk
from runners.modeling.shared_forward import Report, SharedForward


def search_layer_choice(
    choice: LayerChoice, *, teacher: Any, batches: Sequence[Tensor], report: Report = lambda *_: None
) -> dict[str, Any]:
    """The content of search.json. `batches`: calibration tokens_BT. Raises BoomspecError for an impossible count."""
    layers = len(decoder_layers(teacher))
    if not 1 <= choice.count <= layers:
        raise BoomspecError(f"{choice.count} layers cannot be kept: the teacher has {layers}")
    if choice.method == "block_influence":
        scores = block_influence(teacher, batches, report)
        order = sorted(range(1, layers), key=lambda layer: (-scores[layer], layer))
        return {"kept": sorted([0, *order[: choice.count - 1]]), "scores": scores}
    dropped = _cosine_greedy(teacher, choice.count, batches, report)
    kept = sorted(set(range(layers)) - {layer for layer, _ in dropped})
    return {"kept": kept, "dropped": [{"layer": layer, "similarity": value} for layer, value in dropped]}


@torch.no_grad()
def block_influence(model: Any, batches: Sequence[Tensor], report: Report = lambda *_: None) -> list[float]:
    points: list[Point] = [EMBEDDING, *range(len(decoder_layers(model)))]
    sums = torch.zeros(len(points) - 1, dtype=torch.float64)
    for number, tokens_BT in enumerate(batches):
        with capture(model, points) as states_BTD:
            trunk(model, tokens_BT)
        for layer in range(len(sums)):
            sums[layer] += cosine(states_BTD[points[layer]], states_BTD[points[layer + 1]]).double().sum().cpu()
        report(number + 1, len(batches))
    positions = sum(tokens_BT.numel() for tokens_BT in batches)
    return [float(value) for value in 1 - sums / positions]


def _cosine_greedy(teacher: Any, count: int, batches: Sequence[Tensor], report: Report) -> list[tuple[int, float]]:
    """(layer, similarity without it and all before it) in the order of dropping."""
    forward = SharedForward({TEACHER: teacher}, batches)
    left = teacher_layers(range(len(decoder_layers(teacher))))
    whole: list[Tensor] = []
    forward.run([left], lambda _number, _plan, hidden_BTD: whole.append(hidden_BTD))
    total = sum(range(count, len(left)))
    positions = sum(tokens_BT.numel() for tokens_BT in batches)
    dropped: list[tuple[int, float]] = []

    def similarities(plans: Collection[LayerPlan]) -> dict[LayerPlan, float]:
        """The mean cosine of each plan's last hidden states to the whole model's."""
        sums, done = dict.fromkeys(plans, 0.0), total - sum(range(count, len(plans) + 1))

        def visit(number: int, plan: LayerPlan, hidden_BTD: Tensor) -> None:
            sums[plan] += float(cosine(hidden_BTD, whole[number]).double().sum())

        prefixes = {plan[:length] for plan in plans for length in range(1, len(plan))}
        forward.run(plans, visit, keep=prefixes, done=lambda share: report(done + share * len(plans), total))
        return {plan: value / positions for plan, value in sums.items()}

    while len(left) > count:
        without = {layer: left[:i] + left[i + 1 :] for i, layer in enumerate(left) if i > 0}
        values = similarities(without.values())
        layer = max(without, key=lambda layer: (values[without[layer]], -layer.index))
        left = without[layer]
        dropped.append((layer.index, values[left]))
    return dropped
