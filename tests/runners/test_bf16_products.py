"""bf16 products on CPUs without instructions for them: the numbers of torch's own, but for the order of sums."""

from __future__ import annotations

import pytest
import torch

from runners.training import bf16_products, head
from runners.training.bf16_products import fast_linear_layers, slow_in_bf16
from tests.runners import tiny


def results(model: torch.nn.Module, *, autocast: bool) -> dict[str, torch.Tensor]:
    """Logits, and the gradients of a loss of them."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(torch.arange(24).view(2, 12)).logits
    if logits.requires_grad:
        logits.float().square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **found}


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bf16_products, head):
        monkeypatch.setattr(module, "slow_in_bf16", lambda device: device == "cpu")


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])  # without biases, with some, with biases everywhere
def test_autocast_gives_the_same_but_for_the_last_bits(slow: None, family: str) -> None:
    model = tiny.model(family, layers=2)
    expected, exact = results(model, autocast=True), results(model, autocast=False)
    with fast_linear_layers([model]):
        actual = results(model, autocast=True)
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert actual[name].dtype == wanted.dtype
        # As near to the gradients of fp32 as torch's own.
        error, allowed = ((of[name].float() - exact[name]).norm() for of in (actual, expected))
        assert error <= 1.5 * allowed + 1e-6 * exact[name].norm(), name


def test_a_frozen_bf16_model_gives_the_same(slow: None) -> None:
    model = tiny.model(layers=2).to(torch.bfloat16).requires_grad_(False)
    expected = results(model, autocast=False)["logits"]
    with fast_linear_layers([model]):
        actual = results(model, autocast=False)["logits"]
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.02)


def test_fp32_is_left_alone_and_so_is_a_layer_of_another_kind_and_every_layer_afterwards(slow: None) -> None:
    model = tiny.model(layers=2)
    expected = results(model, autocast=False)
    with fast_linear_layers([model]):
        assert "forward" in vars(model.model.layers[0].mlp.up_proj)
        actual = results(model, autocast=False)
    assert all(torch.equal(actual[name], wanted) for name, wanted in expected.items())
    assert not any("forward" in vars(module) for module in model.modules())

    class Special(torch.nn.Linear):
        pass

    special = Special(2, 2)
    with fast_linear_layers([special]):
        assert "forward" not in vars(special)


def test_a_gpu_and_a_cpu_with_instructions_are_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not slow_in_bf16("cuda")
    monkeypatch.setattr(bf16_products, "slow_in_bf16", lambda _device: False)
    model = tiny.model(layers=2)
    with fast_linear_layers([model]):
        assert not any("forward" in vars(module) for module in model.modules())
