"""Draw the calibration windows of a search from the training text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Calibration
from runners.data.tokens import TokenStream
from runners.modeling.hidden_states import check_apart

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def calibration_batches(
    calibration: Calibration, tokens: Path, *, batch_size: int, model: PreTrainedModel
) -> list[Tensor]:
    """The calibration windows in batches tokens_BT, on the model's device; `batch_size` windows each.

    Raises BoomspecError where the training text has fewer windows (none is used twice) or more kinds of tokens
    than the model embeds.
    """
    stream = TokenStream(tokens, apart=bool(calibration.isolate))
    length, wanted = calibration.sequence_length, calibration.sequences
    if calibration.isolate:
        check_apart(model)
    if (windows := stream.windows(length)) < wanted:
        raise BoomspecError(
            f"{wanted} calibration sequences of {length} tokens were asked for: the training text has {windows}",
            hint="ask for fewer calibration sequences or give more text",
        )
    if stream.vocabulary > (rows := model.get_input_embeddings().weight.shape[0]):
        raise BoomspecError(f"the tokens have a vocabulary of {stream.vocabulary}, but the teacher embeds {rows}")
    tokens_BT = stream.inputs(0, sequences=wanted, sequence_length=length, seed=calibration.seed)
    return list(torch.from_numpy(tokens_BT).to(model.device).split(batch_size))  # type: ignore[no-untyped-call]
