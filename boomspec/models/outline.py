"""Serialise a model's config and tensor shapes as short text, the input of a `check` task; know those that need none.

F32 64x16 model.layers.#.mlp.down_proj.weight 0-29        a row of tensors that differ in their indices only
BF16 32x16 model.layers.#.mlp.experts.#.up_proj.weight 1-29/0-63
BF16 128x16 model.embed_tokens.weight                     one tensor
"""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from boomspec.models.checkpoint import TensorEntry
from boomspec.models.families import row_of

# Where a model came from and who wrote it: nothing that its class reads.
_LEFT_OUT = ("_name_or_path", "transformers_version")
_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
_MARK = "#"
_LAYER_NAME = re.compile(r"(?<![^.])\d+(?=\.)")
_NEVER = ("quantization_config", "auto_map", "per_layer_config")
# What a config says of sizes, where tensors say it, too: name, side of its shape, keys.
_SIZES = (
    (re.compile(r"\.(embed_tokens|wte|embed_in)\.weight$"), 0, ("vocab_size",)),
    (re.compile(r"\.(embed_tokens|wte|embed_in)\.weight$"), 1, ("hidden_size", "n_embd")),
    (re.compile(r"\.mlp\.(up_proj|dense_h_to_4h)\.weight$"), 0, ("intermediate_size",)),
)
_ACTIVATIONS = (None, "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")
_Indices = tuple[int, ...]


def config_text(config: Mapping[str, Any]) -> str:
    """A config as one text; numbers that JSON does not have stay what Python writes for them."""
    return json.dumps({key: config[key] for key in config if key not in _LEFT_OUT}, sort_keys=True)


def config_of(text: str) -> dict[str, Any]:
    return dict(json.loads(text))


def outline(tensors: Iterable[TensorEntry]) -> tuple[str, ...]:
    groups: dict[str, list[_Indices]] = defaultdict(list)
    for tensor in tensors:
        pattern = _INDEX.sub(_MARK, tensor.name)
        shape = "x".join(map(str, tensor.shape)) or "-"
        groups[f"{tensor.dtype} {shape} {pattern}"].append(tuple(map(int, _INDEX.findall(tensor.name))))
    return tuple(f"{head} {_short(indices)}".rstrip() for head, indices in sorted(groups.items()))


def tensors_of(rows: Iterable[str]) -> dict[str, TensorEntry]:
    """The inverse of `outline`, by name."""
    found: dict[str, TensorEntry] = {}
    for row in rows:
        dtype, shape, pattern, *indices = row.split(" ")
        sizes = () if shape == "-" else tuple(map(int, shape.split("x")))
        parts = pattern.split(_MARK)
        products = [text.split("/") for text in indices[0].split(",")] if indices else [[]]
        for numbers in itertools.chain(*(itertools.product(*map(_numbers, product)) for product in products)):
            name = parts[0] + "".join(f"{number}{part}" for number, part in zip(numbers, parts[1:], strict=True))
            found[name] = TensorEntry(name, dtype, sizes)
    return found


def _short(indices: Sequence[_Indices]) -> str:
    """Several indices as products: "0-2/0-63,3/0-31" are (0..2, 0..63) and (3, 0..31)."""
    if not indices[0]:
        return ""
    if len(indices[0]) == 1:
        return "+".join(_ranges(sorted(i for (i,) in indices)))
    rest: dict[int, list[_Indices]] = defaultdict(list)
    for first, *others in indices:
        rest[first].append(tuple(others))
    alike: dict[str, list[int]] = defaultdict(list)
    for first in sorted(rest):
        alike[_short(rest[first])].append(first)
    return ",".join(f"{'+'.join(_ranges(firsts))}/{part}" for text, firsts in alike.items() for part in text.split(","))


def _ranges(numbers: Sequence[int]) -> list[str]:
    starts = [i for i, number in enumerate(numbers) if i == 0 or numbers[i - 1] != number - 1]
    runs = [(numbers[a], numbers[b - 1]) for a, b in itertools.pairwise([*starts, len(numbers)])]
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]


def _numbers(text: str) -> list[int]:
    runs = [run.partition("-") for run in text.split("+")]
    return [number for first, _, last in runs for number in range(int(first), int(last or first) + 1)]


def is_plain(config: Mapping[str, Any], tensors: Iterable[TensorEntry]) -> bool:
    """Whether a model is exactly what its family always is: a sweep over all families (tests/sweeps) found those right.

    Of any other model transformers is asked before a run (`boomspec.plan.model_checks`), which takes seconds.
    """
    row = row_of(config.get("model_type"))
    family = row.plain
    if family is None or any(config.get(key) for key in (*family.switches, *_NEVER)):
        return False
    if not all(config.get(key) in _ACTIVATIONS for key in ("hidden_act", "activation_function")):
        return False
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    shared = set()
    for tensor in tensors:
        for name, side, keys in _SIZES:
            of_matrix = len(tensor.shape) == 2 and name.search(tensor.name)
            if of_matrix and any(config.get(key) not in (None, tensor.shape[side]) for key in keys):
                return False
        if (found := _LAYER_NAME.search(tensor.name)) is None:
            shared.add(tensor.name)
        else:
            layers.setdefault(tensor.name[: found.end()], {})[tensor.name[found.end() + 1 :]] = tensor.shape
    shared_by_family = family.shared | (set() if config.get("tie_word_embeddings", row.tied) else {row.head})
    first = next(iter(layers.values()), {})
    alike = all(layer == first for layer in layers.values())
    return bool(layers) and alike and first.keys() == family.layer and shared == shared_by_family
