"""How a batch of tokens says which of them are labels: the tokens that a model learns to predict.

t >= 0     a token, and a label
-1         padding: no token
-2 - t     token t, which is an input only: a prompt, of which nobody learns to write it
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PADDING = -1
_HIDDEN = -2  # and less


def without_label(tokens: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Tokens as a batch holds those that are inputs only."""
    return _HIDDEN - tokens.astype(np.int64)


def with_labels(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Tokens as a model reads them, also those that are inputs only. `tokens` holds no padding."""
    return np.where(tokens <= _HIDDEN, _HIDDEN - tokens, tokens)


def inputs_of(batch: Tensor) -> Tensor:
    """What a model reads of a batch, whether it is a label or not; 0 in the place of padding."""
    return torch.where(batch <= _HIDDEN, _HIDDEN - batch, batch).clamp(min=0)
