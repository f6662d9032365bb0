"""Record what the attention of layers is given: queries, keys and values after rotary, mask and scaling.

Models of transformers look their attention function up by name (`ALL_ATTENTION_FUNCTIONS`). While a recording lasts,
the name that a model uses leads to a function that notes what the wanted layers are given, and then calls the usual
one: so every family that looks it up can be recorded, and computes what it always does. Families with attention of
their own cannot, nor those whose scores are more than scaled products (caps, biases, sinks): `check_attention` says so
at the start of a training.

Shapes: B sequences, H heads of queries, G heads of keys and values, T positions, E size of a head.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from boomspec.core.errors import BoomspecError
from runners.modeling.hidden_states import decoder_layers, trunk

Part = Literal["queries", "keys", "values", "frame"]
# Arguments that make scores more than scaled products, or that say without a mask what is seen.
_CHANGING = ("softcap", "s_aux", "position_bias", "cu_seq_lens_q")


@dataclass(frozen=True)
class AttentionPart:
    """A place: what the attention of a layer is given."""

    layer: int
    part: Part


@dataclass(frozen=True)
class Frame:
    """What scores are made with, beside queries and keys."""

    mask: Tensor | None  # [B or 1, 1, T, T], True or 0 where a row (third) sees a column; None: it is causal
    scaling: float

    def allowed(self, sequence: int, rows: slice, length: int, device: torch.device) -> Tensor:
        """Which of `length` columns these rows of a sequence see: bool [R, T]."""
        if self.mask is None:
            positions = torch.arange(length, device=device)
            return positions <= positions[rows].unsqueeze(-1)
        mask_RT = self.mask[sequence if len(self.mask) > 1 else 0, 0, rows, :length]
        return mask_RT if mask_RT.dtype == torch.bool else mask_RT == 0


@contextmanager
def record_attention(model: Any, places: Collection[AttentionPart], into: dict[Any, Any]) -> Iterator[None]:
    """Within the context, each forward of the model puts what is at `places`, with its graph, into a dict.

    Queries are [B, H, T, E], keys and values [B, G, T, E], a frame is a `Frame`.
    """
    if not places:
        yield
        return
    layers = decoder_layers(model)
    wanted: dict[int, list[AttentionPart]] = {}
    for place in places:
        wanted.setdefault(place.layer, []).append(place)
    layer_of = {module: layer for layer in wanted for module in layers[layer].modules()}

    def recording(usual: Callable[..., Any] | None) -> Callable[..., Any]:
        def attention(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
        ) -> Any:
            if (layer := layer_of.get(module)) is not None:
                scaling = options.get("scaling")
                frame = Frame(mask, query.shape[-1] ** -0.5 if scaling is None else float(scaling))
                _refuse_changed_scores(model, layer, mask, options)
                given = {"queries": query, "keys": key, "values": value, "frame": frame}
                into.update({place: given[place.part] for place in wanted[layer]})
            function = usual or sys.modules[type(module).__module__].eager_attention_forward
            return function(module, query, key, value, mask, **options)

        return attention

    name = str(model.config.get_text_config()._attn_implementation)
    functions, had = ALL_ATTENTION_FUNCTIONS, ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
    functions[name] = recording(functions.get(name))
    try:
        yield
    finally:
        del functions[name]
        if had is not None:
            functions[name] = had


@torch.no_grad()
def check_attention(model: Any, layers: Collection[int]) -> None:
    """Raise BoomspecError unless the attention of these layers can be recorded, and the model stays what it is."""
    places = [AttentionPart(layer, part) for layer in layers for part in ("queries", "keys", "values", "frame")]
    found: dict[Any, Any] = {}
    tokens_BT = torch.arange(8, device=model.device).remainder(model.get_input_embeddings().weight.shape[0])[None]
    expected_BTD = trunk(model, tokens_BT)
    with record_attention(model, places, found):
        actual_BTD = trunk(model, tokens_BT)
    kind = model.config.model_type
    if missing := sorted({place.layer for place in places if place not in found}):
        named = ", ".join(map(str, missing[:8]))
        raise BoomspecError(
            f"model type '{kind}': the attention of layer {named} cannot be read: it does not use transformers' "
            "attention interface",
            hint="leave out the losses on attention, or name other layers in their `pairs`",
        )
    for frame in (of for of in found.values() if isinstance(of, Frame)):
        if (mask := frame.mask) is not None and mask.dtype != torch.bool:
            plain = (mask == 0) | (mask <= torch.finfo(mask.dtype).min / 2)
            if not plain.all():
                raise BoomspecError(f"model type '{kind}': its attention mask holds a bias, which no loss can read")
    if not torch.equal(actual_BTD, expected_BTD):
        raise BoomspecError(f"model type '{kind}': it computes something else while its attention is read")


def _refuse_changed_scores(model: Any, layer: int, mask: Tensor | None, options: dict[str, Any]) -> None:
    reason = next((name for name in _CHANGING if options.get(name) is not None), None)
    if mask is not None and mask.shape[1] != 1:
        reason = "a mask for each head"
    if reason is not None:
        raise BoomspecError(
            f"model type '{model.config.model_type}': the scores of layer {layer} are not products of queries and keys "
            f"alone ({reason}), so no loss on attention can be computed",
            hint="leave out the losses on attention",
        )
