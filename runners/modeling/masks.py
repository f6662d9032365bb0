"""Attention masks of rows in which not every token sees all earlier ones.

Shapes: B rows, T positions.
"""

from typing import Any

import torch
from torch import Tensor


def additive_masks(model: Any, seen_BTT: Tensor, positions_BT: Tensor) -> Any:
    """The attention mask of a model for rows in which token i may see token j, added to its scores: 0 or the least.

    One of [B, 1, T, T]; where layers of a model differ in how far they look back, one for each kind, as transformers
    wants it.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    # Another dtype than that of the products would be cast in every layer, and each copy kept for the backward pass.
    device = seen_BTT.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    least = torch.finfo(dtype).min

    def added(allowed_BTT: Tensor) -> Tensor:
        return torch.zeros_like(allowed_BTT, dtype=dtype).masked_fill(~allowed_BTT, least)[:, None]

    masks = {"full_attention": added(seen_BTT)}
    if window is not None and kinds != {"full_attention"}:
        near_BTT = positions_BT[:, :, None] - positions_BT[:, None, :] < window
        masks["sliding_attention"] = added(seen_BTT & near_BTT)
    return masks if len(kinds) > 1 else list(masks.values())[-1]
