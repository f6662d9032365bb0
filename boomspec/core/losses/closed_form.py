"""Gradients of losses that are known in closed form: sums of softmaxes of the logits, and a number at the label.

A loss whose `closed_form` gives one is spared a backward pass, and terms share the softmaxes. Shapes: N positions of
any sequence, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClosedForm:
    """The values of a loss at N positions and their gradient with respect to the student's logits."""

    values_N: "Tensor"
    parts: tuple[tuple[float, "Tensor"], ...]  # the gradient is the sum of factor * tensor_NV ...
    at_label: float = 0.0  # ... and of this at each position's label


@dataclass(frozen=True)
class Softmax:
    """The softmaxes of logits_NV, in fp32, at the temperatures that are asked for: each is computed once."""

    logits_NV: "Tensor"
    _at: "dict[float, tuple[Tensor, Tensor]]" = field(default_factory=dict)

    def at(self, temperature: float = 1.0) -> "tuple[Tensor, Tensor]":
        """softmax_NV of logits / T, and log sum exp of logits / T at each position."""
        if temperature not in self._at:
            logits_NV = self.logits_NV if temperature == 1 else self.logits_NV / temperature
            softmax_NV = logits_NV.softmax(dim=-1)
            # The largest probability is 1 / sum exp(x - max x): reading twice is cheaper than exponentials.
            self._at[temperature] = softmax_NV, logits_NV.amax(dim=-1) - softmax_NV.amax(dim=-1).log()
        return self._at[temperature]

    def logs(self, temperature: float = 1.0) -> "Tensor":
        """The logarithms of the softmax_NV at a temperature, as a tensor of its own."""
        _, log_sum_N = self.at(temperature)
        logits_NV = self.logits_NV if temperature == 1 else self.logits_NV / temperature
        return logits_NV - log_sum_N.unsqueeze(-1)
