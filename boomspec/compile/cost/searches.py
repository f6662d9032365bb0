"""How many layers a search runs, from its record alone. What it chooses on the way decides the exact number.

The numbers are upper bounds: every candidate counts in full. `runners/search/shared.py` computes what candidates
share once; tests/benchmarks/search.py measures what that saves (0.34 to 0.41 of the layers were left).
"""

from __future__ import annotations

from math import comb

from boomspec.core.layers import patchable
from boomspec.core.tasks import LayerChoice, PatchOrder


def of_layer_choice(choice: LayerChoice, layers: int) -> int:
    """Layers that are run on all calibration tokens."""
    if choice.method == "block_influence":
        return layers
    rounds = range(choice.count + 1, layers + 1)  # in each, every layer but the first is left out once
    return layers + sum((left - 1) * (left - 1) for left in rounds)


def of_patch_order(choice: PatchOrder, layers: int) -> tuple[int, int]:
    """Layers that are run on all calibration tokens, and models whose head is applied."""
    kept, blocks = len(choice.kept), len(patchable(choice.kept, layers))
    candidates = {patched: _candidates(choice, blocks, patched) for patched in range(blocks)}
    for patched in range(1, blocks):  # the two sequential orders, to compare with
        candidates[patched] += 2
    longer = (layers - kept) / max(1, blocks)  # by the mean block
    run = sum(count * (kept + patched * longer) for patched, count in candidates.items())
    return layers + round(run), 1 + sum(candidates.values())


def _candidates(choice: PatchOrder, blocks: int, patched: int) -> int:
    if choice.method == "exact" or patched == 0:
        return comb(blocks, patched)
    width = 1 if choice.method == "klpatch" else choice.width or 1
    return min(comb(blocks, patched), min(width, comb(blocks, patched - 1)) * (blocks - patched + 1))
