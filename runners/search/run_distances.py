"""Measure what each run of following layers does to the hidden state: which run could be dropped as a whole.

    angular_distance   mean of arccos(cos(x_l, x_{l+n})) / pi over positions (arXiv 2403.17887, eq. 5, which takes the
                       last position of each sequence)
    block_influence    1 - mean of cos(x_l, x_{l+n}) (ShortGPT, arXiv 2403.03853, of n layers as one; Minitron drops
                       such a run, arXiv 2408.11796)

x_l is what layer l reads, x_N what the last layer gives, all raw. Of both, `found[n - 1][l]` is that of the run of n
layers that begins with layer l.

Shapes: B sequences, T positions, P positions of any sequence, L states of a position, D hidden size.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from boomspec.core.tasks import RunDistances
from runners.modeling.hidden_states import EMBEDDING, Point, capture, decoder_layers, trunk
from runners.modeling.shared_forward import Report

_POSITIONS = 256  # whose states are compared at once


@torch.no_grad()
def search_run_distances(
    choice: RunDistances, *, teacher: Any, batches: Sequence[Tensor], report: Report = lambda *_: None
) -> dict[str, Any]:
    """The content of search.json. `batches`: calibration tokens_BT."""
    layers = len(decoder_layers(teacher))
    points: list[Point] = [EMBEDDING, *range(layers)]
    angles, cosines = (torch.zeros(layers + 1, layers + 1, dtype=torch.float64) for _ in range(2))
    positions = 0
    for number, tokens_BT in enumerate(batches):
        with capture(teacher, points) as states_BTD:
            trunk(teacher, tokens_BT)
        taken = slice(None) if choice.positions == "all" else slice(-1, None)
        states_PLD = torch.stack([states_BTD[point][:, taken].flatten(0, 1) for point in points], dim=1)
        for part_PLD in states_PLD.split(_POSITIONS):  # type: ignore[no-untyped-call]
            unit_PLD = normalize(part_PLD.float(), dim=-1)
            cosines_PLL = torch.bmm(unit_PLD, unit_PLD.transpose(1, 2)).clamp(-1, 1).double()
            cosines += cosines_PLL.sum(0).cpu()
            angles += (cosines_PLL.arccos() / math.pi).sum(0).cpu()
        positions += len(states_PLD)
        report(number + 1, len(batches))

    def of_runs(values_LL: Tensor) -> list[list[float]]:
        return [values_LL.diagonal(length).tolist() for length in range(1, layers)]

    return {"angular_distance": of_runs(angles / positions), "block_influence": of_runs(1 - cosines / positions)}
