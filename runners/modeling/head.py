"""Compute logits from the last hidden state: the head of a causal language model, apart from its trunk.

Calling a model computes the logits of every position at once. A training step must not (METHOD: a
vocabulary of 151,936 makes 2.5 GB a copy), so the head is taken apart from its trunk here, and
`check_head` proves at the start of a training that the two together are the model.

Shapes: N positions, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from boomspec.core.errors import BoomspecError
from boomspec.models.families import LOGITS
from runners.modeling.hidden_states import trunk

_TRANSFORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "capped": lambda logits, cap: cap * torch.tanh(logits / cap),
    "divided": lambda logits, divisor: logits / divisor,
    "multiplied": lambda logits, factor: logits * factor,
}


class LMHead:
    """`head(hidden_ND) -> logits_NV` of a model, sharing the model's parameters."""

    def __init__(self, model: Any) -> None:
        output = model.get_output_embeddings()
        if output is None:
            raise BoomspecError(f"model type '{model.config.model_type}': it has no language-model head")
        config = model.config.get_text_config()
        self._output: Any = output
        self._transforms = [
            (_TRANSFORMS[what], value)
            for key, what in LOGITS.items()
            if (value := getattr(config, key, None)) is not None
        ]

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        logits_NV: Tensor = self._output(hidden_ND)
        for transform, value in self._transforms:
            logits_NV = transform(logits_NV, value)
        return logits_NV

    @property
    def vocabulary(self) -> int:
        return int(self._output.weight.shape[0])

    def parameters(self) -> list[nn.Parameter]:
        """The head's parameters that are trained. A tied head's matrix is the embedding's."""
        return [parameter for parameter in self._output.parameters() if parameter.requires_grad]


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raise BoomspecError unless head and trunk, computed apart, give the model's own logits."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens_BT = torch.arange(8, device=model.device).remainder(vocabulary).unsqueeze(0)
    expected_BTV = model(input_ids=tokens_BT, use_cache=False).logits.float()
    actual_BTV = LMHead(model)(trunk(model, tokens_BT)).float()
    # The same operations in the same order: only kernels chosen by shape may differ, by a few last bits.
    tolerance = 16 * torch.finfo(model.dtype).eps * largest(expected_BTV)
    if actual_BTV.shape != expected_BTV.shape or not torch.allclose(
        actual_BTV, expected_BTV, rtol=0.0, atol=tolerance, equal_nan=True
    ):
        raise BoomspecError(
            f"model type '{model.config.model_type}': its logits are not its head applied to its last hidden state",
            hint="the family changes its logits in a way not listed in LOGITS of boomspec/models/families.py",
        )


def largest(values: Tensor) -> float:
    """The largest absolute value; what is not finite does not count: who measures with such a model says so."""
    return float(values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max())
