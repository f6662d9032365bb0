"""Recognise quantised models, and list the tensors that they have when they are dequantised.

    fp8     X in F8_E4M3, with X_scale_inv: one number, or one for each block of weight_block_size
    mxfp4   X_blocks (U8, two numbers a byte, 32 to a block) and X_scales (U8, an exponent a block); X is transposed

A teacher of these is dequantised once, by a task, before anything else reads it; everything that follows is planned
from the tensors that are foreseen here. Other methods need packages or a GPU: they are refused, by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from boomspec.core.errors import BoomspecError
from boomspec.models.checkpoint import TensorEntry, Tensors, read_checkpoint, same_bytes
from boomspec.models.facts import ModelFacts, Same, model_facts, read_config

Method = Literal["fp8", "mxfp4"]
Dtype = Literal["bfloat16", "float16", "float32"]
_KEYS = ("quantization_config", "compression_config")
_HINTS = {
    "bitsandbytes": "load it on a GPU with bitsandbytes and save model.dequantize(), without quantization_config",
    "gptq": "give the model that it was made from: GPTQ keeps four bits or fewer of each weight",
    "awq": "give the model that it was made from: AWQ keeps four bits of each weight",
    "compressed-tensors": "give the model that it was made from, or decompress it with the package compressed-tensors "
    "(run_compressed=False) and save it",
}
_HINT = "give the model that it was made from, or load it dequantised with transformers and save it: save_pretrained"
_DTYPES: Mapping[Dtype, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_SCALE, _BLOCKS, _SCALES = "_scale_inv", "_blocks", "_scales"
_ACTIVATIONS = (".activation_scale", "_activation_scale", ".input_scale")  # of no use to weights that are whole
_WHOLE = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"})


@dataclass(frozen=True)
class Dequantized:
    """A tensor as it is when nothing is quantised, and what it is made of: itself, or weights with their scales."""

    entry: TensorEntry
    stored: TensorEntry
    scales: TensorEntry | None = None
    method: Method | None = None
    block: tuple[int, int] = (1, 1)  # rows and columns that share a scale


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How a model's weights are quantised, as its config says; None where they are not."""
    for part in (config, config.get("text_config")):
        for key in _KEYS:
            found = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(found, Mapping) and found:
                return found
    return None


def check_quantization(config: Mapping[str, Any], where: str) -> None:
    """Raise BoomspecError for a model that cannot be dequantised, with what to do about its method."""
    found = quantization_of(config)
    if found is not None and (method := _method_of(found)) not in ("fp8", "mxfp4"):
        message = f"{where}: is quantised ('quantization_config' of its config.json: quant_method {method})"
        raise BoomspecError(message, hint=_HINTS.get(method, _HINT))


def check_plain(config: Mapping[str, Any], where: str) -> None:
    """Raise BoomspecError for a quantised model: one that is loaded has been dequantised before."""
    if (found := quantization_of(config)) is not None:
        message = f"{where}: is quantised ('quantization_config': quant_method {_method_of(found)})"
        raise BoomspecError(message, hint="name it in a spec: its run dequantises it first")


def target_dtype(config: Mapping[str, Any]) -> Dtype:
    """What a quantised model is dequantised to: the dtype that its config names, or bfloat16."""
    parts = [config, config.get("text_config")]
    named = [part.get(key) for part in parts if isinstance(part, Mapping) for key in ("dtype", "torch_dtype")]
    return next((name for found in named for name in _DTYPES if found == name), "bfloat16")


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the model when it is dequantised."""
    kept = {key: value for key, value in config.items() if key not in _KEYS}
    if isinstance(inner := kept.get("text_config"), Mapping):
        kept["text_config"] = {key: value for key, value in inner.items() if key not in _KEYS}
    return kept


def foreseen(config: Mapping[str, Any], tensors: Tensors, where: str) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """Config and tensors of a model when it is dequantised; of one that is not quantised, its own."""
    if quantization_of(config) is not None:
        found = dequantized(config, tensors, where, dtype=target_dtype(config))
        return without_quantization(config), {made.entry.name: made.entry for made in found}
    for name, tensor in tensors.items():
        if tensor.dtype.startswith(("F8", "F4")):
            message = f"{where}: tensor '{name}' is {tensor.dtype}, and its config.json has no quantization_config"
            raise BoomspecError(message, hint=_HINT)
    return dict(config), dict(tensors)


def whole_facts(folder: Path, where: str, tensors: Tensors | None = None, *, same: Same = same_bytes) -> ModelFacts:
    """Facts of a model folder when it is dequantised; `tensors`: of its weights where they are not there."""
    stored = read_checkpoint(folder) if tensors is None else tensors
    return model_facts(*foreseen(read_config(folder), stored, where), where, same=same)


def dequantized(config: Mapping[str, Any], tensors: Tensors, where: str, *, dtype: Dtype) -> list[Dequantized]:
    """What each tensor of a quantised model becomes. Raises BoomspecError for what cannot be dequantised."""
    quantization = quantization_of(config)
    assert quantization is not None
    check_quantization(config, where)
    is_fp8 = _method_of(quantization) == "fp8"
    weights_end, scales_end = ("", _SCALE) if is_fp8 else (_BLOCKS, _SCALES)
    made = []
    for name, tensor in tensors.items():
        if name.endswith(scales_end) and name.removesuffix(scales_end) + weights_end in tensors:
            continue
        if is_fp8 and name.endswith(_ACTIVATIONS):
            continue
        base = name.removesuffix(weights_end)
        scales = tensors.get(base + scales_end) if name.endswith(weights_end) else None
        if scales is not None:
            read = _fp8 if is_fp8 else _mxfp4
            made.append(read(base, tensor, scales, _DTYPES[dtype], quantization.get("weight_block_size"), where))
        elif tensor.dtype in _WHOLE:
            made.append(Dequantized(tensor, tensor))
        else:
            message = f"{where}: tensor '{name}' is {tensor.dtype}, with no scales that belong to it"
            raise BoomspecError(message, hint=_HINT)
    return made


def _method_of(quantization: Mapping[str, Any]) -> str:
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return "bitsandbytes"
    return str(quantization.get("quant_method", "of no name"))


def _fp8(name: str, tensor: TensorEntry, scales: TensorEntry, dtype: str, sides: object, where: str) -> Dequantized:
    """`sides`: rows and columns that share a scale, unless all do."""
    if tensor.dtype != "F8_E4M3":
        raise BoomspecError(f"{where}: '{name}' is {tensor.dtype}, not F8_E4M3", hint=_HINT)
    *before, rows, columns = (1, 1, *tensor.shape)[-max(2, len(tensor.shape)) :]
    block = None
    if scales.elements == 1:
        block = rows, columns
    elif isinstance(sides, (list, tuple)) and len(sides) == 2 and all(type(n) is int and n > 0 for n in sides):
        down, across = sides
        if scales.shape == (*before, math.ceil(rows / down), math.ceil(columns / across)):
            block = down, across
    if block is None:
        blocks = f"{tensor.shape} in blocks of {sides} (weight_block_size)"
        message = f"{where}: '{scales.name}' has the shape {scales.shape}, which does not belong to {blocks}"
        raise BoomspecError(message, hint=_HINT)
    return Dequantized(TensorEntry(name, dtype, tensor.shape), tensor, scales, "fp8", block)


def _mxfp4(base: str, tensor: TensorEntry, scales: TensorEntry, dtype: str, _: object, where: str) -> Dequantized:
    if len(tensor.shape) != 4 or tensor.shape[:3] != scales.shape or {tensor.dtype, scales.dtype} != {"U8"}:
        message = f"{where}: '{tensor.name}' {tensor.shape} and '{scales.name}' {scales.shape} are no blocks of MXFP4"
        raise BoomspecError(message, hint=_HINT)
    experts, rows, groups, half = tensor.shape
    entry = TensorEntry(base, dtype, (experts, groups * half * 2, rows))
    return Dequantized(entry, tensor, scales, "mxfp4")
