"""Precisions: what is held in which dtype, and what a forward computes in."""

from __future__ import annotations

import pytest
import torch

from runners.device import MASTER_DTYPE, autocast, device, frozen_dtype, make_deterministic


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_of_fp32_weights_runs_in_the_precision_that_frozen_models_are_held_in(
    precision: str, dtype: torch.dtype
) -> None:
    assert frozen_dtype(precision) == dtype
    layer = torch.nn.Linear(2, 2, dtype=MASTER_DTYPE, device=device())
    with autocast(precision):
        output = layer(torch.ones(1, 2, device=device()))
    assert output.dtype == dtype
    output.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_kernels_that_give_other_bits_on_every_run_are_warned_about_not_refused() -> None:
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
