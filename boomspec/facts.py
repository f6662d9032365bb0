"""Model facts: what config.json and the safetensors headers say of a decoder, with no torch and no family names.

The repeated group `<prefix>.<i>.<rest>`, i = 0..N-1, IS the layer stack. Of the other tensors, what stands
in front of the stack (token and position embeddings) and what behind it (final norm, head) follows from
where they live and their shapes:

    <base>.<stack>.<i>.*        the layers; <base> is what is in front of the stack's own name
    outside <base>              the head ("lm_head.weight", "embed_out.weight")
    in <base>, one-dimensional  the final norm, unless its name says embedding
    in <base>, the rest         embeddings
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from boomspec.checkpoint import TensorEntry, read_checkpoint
from boomspec.errors import BoomspecError

_LAYER = re.compile(r"^(?P<prefix>.*?)\.?(?<![^.])(?P<index>\d+)\.(?P<rest>.+)$")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class ModelFacts:
    """Tensors of a decoder by place. `layers[i]` are those of layer i."""

    model_type: str
    prefix: str  # of the layer stack: "model.layers"
    layers: tuple[tuple[TensorEntry, ...], ...]
    embedding: tuple[TensorEntry, ...]
    norm: tuple[TensorEntry, ...]
    head: tuple[TensorEntry, ...]  # empty when the head is tied to the embedding
    tied: bool
    config: Mapping[str, Any]

    @property
    def count(self) -> int:
        return len(self.layers)

    @cached_property
    def token_embedding(self) -> TensorEntry:
        """The largest two-dimensional tensor in front of the stack."""
        return max((t for t in self.embedding if len(t.shape) == 2), key=lambda t: t.shape[0])

    def tensors(self, layers: Sequence[int], *, tied: bool) -> list[TensorEntry]:
        """The tensors of a model made of these layers (indices of this model, repeats allowed).

        An untied model made from a tied one writes its head as a copy of an embedding.
        """
        rest = [*self.embedding, *self.norm, *self.head]
        if self.tied and not tied:
            rest.append(self.token_embedding)
        return [*rest, *(tensor for i in layers for tensor in self.layers[i])]

    @property
    def dtype(self) -> str:
        """The safetensors dtype that most bytes are stored in."""
        totals: dict[str, int] = defaultdict(int)
        for tensor in self.tensors(range(self.count), tied=True):
            totals[tensor.dtype] += tensor.bytes
        return max(totals, key=lambda dtype: totals[dtype])


def total_parameters(tensors: Iterable[TensorEntry]) -> int:
    return sum(tensor.elements for tensor in tensors)


def total_bytes(tensors: Iterable[TensorEntry]) -> int:
    return sum(tensor.bytes for tensor in tensors)


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise BoomspecError(f"{folder}: no readable config.json: {error.strerror}") from error
    except ValueError as error:
        raise BoomspecError(f"{folder / 'config.json'}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BoomspecError(f"{folder / 'config.json'}: not an object")
    return config


def read_facts(folder: Path) -> ModelFacts:
    """Facts of a model folder."""
    return model_facts(read_config(folder), read_checkpoint(folder), str(folder))


def model_facts(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: str) -> ModelFacts:
    """Find the layer stack and sort the other tensors around it.

    Raises BoomspecError, saying what was looked for, where the parts cannot be told.
    """
    prefix, layers = _layer_stack(tensors, where)
    declared = next((config[key] for key in LAYER_COUNTS if key in config), None)
    if declared is not None and declared != len(layers):
        raise BoomspecError(f"{where}: config.json says {declared} layers, the checkpoint holds {len(layers)}")
    base = prefix.rsplit(".", 1)[0] + "." if "." in prefix else ""
    embedding, norm, head = [], [], []
    for tensor in tensors.values():
        if _in_stack(tensor.name, prefix):
            continue
        outside = not tensor.name.startswith(base) or tensor.name.startswith("lm_head.")
        if outside:
            head.append(tensor)
        elif len(tensor.shape) <= 1 and "embed" not in tensor.name.lower():
            norm.append(tensor)
        else:
            embedding.append(tensor)
    found = f"under '{base}*' beside '{prefix}.*'"
    if not any(len(tensor.shape) == 2 for tensor in embedding):
        raise BoomspecError(f"{where}: no token embedding found: looked for a matrix {found}")
    if not norm:
        raise BoomspecError(f"{where}: no final norm found: looked for a vector {found}")
    tied = not head or bool(config.get("tie_word_embeddings", False))
    return ModelFacts(
        model_type=str(config.get("model_type", "unknown")),
        prefix=prefix,
        layers=layers,
        embedding=tuple(embedding),
        norm=tuple(norm),
        head=() if tied else tuple(head),
        tied=tied,
        config=config,
    )


def _in_stack(name: str, prefix: str) -> bool:
    match = _LAYER.match(name)
    return match is not None and match["prefix"] == prefix


def _layer_stack(tensors: Mapping[str, TensorEntry], where: str) -> tuple[str, tuple[tuple[TensorEntry, ...], ...]]:
    groups: dict[str, dict[int, list[TensorEntry]]] = defaultdict(lambda: defaultdict(list))
    for tensor in tensors.values():
        if match := _LAYER.match(tensor.name):
            groups[match["prefix"]][int(match["index"])].append(tensor)
    if not groups:
        raise BoomspecError(f"{where}: no layer stack found: looked for tensors named '<prefix>.<i>.<rest>'")
    prefix = max(groups, key=lambda name: sum(t.bytes for layer in groups[name].values() for t in layer))
    stack = groups[prefix]
    missing = sorted(set(range(max(stack) + 1)) - set(stack))
    if missing:
        raise BoomspecError(f"{where}: layer {missing[0]} of '{prefix}' is missing from the checkpoint")
    return prefix, tuple(tuple(stack[i]) for i in range(len(stack)))
