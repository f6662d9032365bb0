"""What the tests of losses on pairs have in common: students, labels, and a loss alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boomspec.core.losses import LOSSES, Losses, PairLoss
from boomspec.core.losses.attention_loss import AttentionLoss
from boomspec.core.losses.relation_loss import RelationLoss
from runners.training.losses import NO_LABEL
from tests.runners import tiny

KEPT, LAYERS = (0, 2, 3), 4
PAIRED = [kind for kind, loss in LOSSES.items() if issubclass(loss, PairLoss)]
OF_ATTENTION = [kind for kind in PAIRED if issubclass(LOSSES[kind], AttentionLoss)]
RELATIONS = [kind for kind in PAIRED if issubclass(LOSSES[kind], RelationLoss)]
OF_POSITIONS = [kind for kind in PAIRED if kind not in (*OF_ATTENTION, *RELATIONS)]
TRAINED = [kind for kind in PAIRED if LOSSES[kind]().trained(4)]  # without a projection
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
FAMILIES: dict[str, dict[str, Any]] = {"llama": GROUPED, "gpt2": {}, "qwen3": GROUPED}
# Where the default would hide a part of the formula in a small test, or leave nothing to choose.
FIELDS: dict[str, dict[str, Any]] = {"hidden_smooth_l1": {"beta": 0.4}, "minilm": {"pairs": "all"}, "crd": {"size": 6}}


def alone(kind: str, **fields: Any) -> Losses:
    return Losses(**{kind: LOSSES[kind](weight=1.5, **{**FIELDS.get(kind, {}), **fields})})


def labels_of(rows: int, columns: int) -> Tensor:
    """A third of the positions have no label; the first sequence has none, the second one."""
    numbers = torch.Generator().manual_seed(1)
    labels = torch.randint(tiny.VOCABULARY, (rows, columns), generator=numbers)
    labels = labels.masked_fill(torch.rand((rows, columns), generator=numbers) < 0.33, NO_LABEL)
    labels[0] = NO_LABEL
    labels[1, 1:] = NO_LABEL
    labels[1, 0] = 1
    return labels


def positions_of(labels_BT: Tensor) -> list[tuple[int, int]]:
    return [(int(b), int(t)) for b, t in (labels_BT != NO_LABEL).nonzero()]


def assert_close(actual: Tensor, expected: Tensor, relative: float = 2e-5) -> None:
    assert (actual.double() - expected.double()).abs().max() <= relative * expected.abs().max() + 1e-12


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
