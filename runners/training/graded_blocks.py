"""Sum a function over blocks of tensors, with gradients taken block by block in the forward pass.

What autograd would keep of all blocks until the backward pass, such as the scores of every head, then exists for one
block at a time. What stays is one gradient as large as each tensor, in fp32.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# A function of parts, and each part as the number of its tensor and its index there. No part has an element twice.
Block = tuple[Callable[..., Tensor], Sequence[tuple[int, Any]]]


def sum_of_blocks(tensors: Sequence[Tensor], blocks: Iterable[Block]) -> Tensor:
    """The sum over the blocks of the function's values (numbers), with the gradients of those tensors that have one."""
    graded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    total: Tensor = _Sum.apply(blocks, graded, *tensors)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Iterable[Block], graded: bool, *tensors: Tensor) -> Tensor:
        wanted = [graded and needed for needed in ctx.needs_input_grad[2:]]
        gradients: list[Tensor | None] = [None] * len(tensors)
        total = torch.zeros((), device=tensors[0].device)
        for function, parts in blocks:
            leaves = [tensors[number].detach()[index].requires_grad_(wanted[number]) for number, index in parts]
            with torch.set_grad_enabled(graded), torch.autocast(total.device.type, enabled=False):
                value = function(*leaves)
            total += value.detach()
            leaf_of = [place for place, (number, _) in enumerate(parts) if wanted[number]]
            if not leaf_of:
                continue
            found = torch.autograd.grad(value, [leaves[place] for place in leaf_of], materialize_grads=True)
            for place, gradient in zip(leaf_of, found, strict=True):
                number, index = parts[place]
                if (of_all := gradients[number]) is None:
                    of_all = gradients[number] = torch.zeros_like(tensors[number], dtype=torch.float32)
                of_all[index] += gradient
        ctx.gradients = [
            torch.zeros_like(tensor) if needed and gradient is None else gradient
            for tensor, gradient, needed in zip(tensors, gradients, wanted, strict=True)
        ]
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: they serve one backward
        scaled = (None if gradient is None else gradient.mul_(grad_total) for gradient in gradients)
        return None, None, *(g if g is None else g.to(dtype) for g, dtype in zip(scaled, ctx.dtypes, strict=True))
