"""Floating-point operations of training and measuring a model, from its shapes.

A multiply-add counts as two, as in torch's FlopCounterMode, whose convention this is throughout: matrix products and
attention count, norms, activations, softmaxes and the optimiser do not. Of one token, with P elements in the layers'
matrices, queries of width q, T tokens a sequence, a projection of D x V:

    forward of a layer      2 P + 4 T q       queries x keys and scores x values in full: the causal half that a kernel
                                              may leave out is counted, by torch and here
    backward of a layer     4 P + 10 T q      gradients of inputs and weights; attention computes its scores again
    head                    2 D V forward, 2 D V for the gradient of the hidden state, 2 D V for that of the matrix
                            (not of a frozen one). The gradients are taken inside of the forward pass, chunk by chunk:
                            nothing is computed twice

A frozen embedding saves nothing in the layers: the first norm's weight is trained, and stands in front of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boomspec.compile.cost.shapes import Model

_REMEMBERED = 1 << 14  # a sweep has few different models


@lru_cache(_REMEMBERED)
def forward(model: Model, length: int) -> int:
    """Of the layers, for one token in a sequence of `length`."""
    return sum(2 * layer.matrices + 4 * length * layer.queries for layer in model.layers)


@lru_cache(_REMEMBERED)
def forward_and_backward(model: Model, length: int) -> int:
    return sum(6 * layer.matrices + 14 * length * layer.queries for layer in model.layers)


def head_and_gradients(model: Model, *, trained: bool) -> int:
    return (6 if trained else 4) * model.projection
