"""Matrix products of bf16 numbers on a CPU that has no instructions for them: in fp32, of the same rounded numbers.

torch makes them there without vector units: 2 to 20 GFLOP/s on a core where fp32 makes 75 (measured, AVX2). The product
of two bf16 numbers is exact in fp32, so what a linear layer gives is the same but for the order in which it is summed;
the gradients of weights are not rounded to bf16 on their way to the fp32 sums. Other machines are left alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn


@cache
def slow_in_bf16(device: str) -> bool:
    """Whether a device has no instructions for bf16 products."""
    return device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def fast_linear_layers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context the linear layers among these compute their bf16 products as the module says, where slow."""
    inside = (part for module in modules for part in module.modules())
    # Of a plain kind only: another may do more than a product. Only the forward is replaced: hooks stay.
    found = [part for part in inside if type(part) is nn.Linear and slow_in_bf16(part.weight.device.type)]
    try:
        for linear in found:
            vars(linear)["forward"] = partial(_forward, linear)
        yield
    finally:
        for linear in found:
            vars(linear).pop("forward", None)


def _forward(linear: nn.Linear, hidden: Tensor) -> Tensor:
    is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not is_cast and linear.weight.dtype != torch.bfloat16:
        return nn.Linear.forward(linear, hidden)
    output: Tensor = _Product.apply(hidden, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return output


def rounded(tensor: Tensor) -> Tensor:
    """In fp32, after bf16."""
    return tensor.to(torch.bfloat16).float()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = hidden.to(torch.bfloat16)
        ctx.save_for_backward(narrow, weight)
        ctx.dtype, ctx.has_bias = hidden.dtype, bias is not None
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else rounded(bias)
            return nn.functional.linear(narrow.float(), rounded(weight), bias).to(torch.bfloat16)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        narrow, weight = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad
        wide = gradient.float()
        flat = wide.flatten(0, -2)
        return (
            (wide @ rounded(weight)).to(torch.bfloat16).to(ctx.dtype) if of_hidden else None,
            (flat.T @ narrow.float().flatten(0, -2)).to(weight.dtype) if of_weight else None,
            flat.sum(dim=0) if of_bias and ctx.has_bias else None,
        )
