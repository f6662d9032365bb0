"""Quantised models: how config.json says so, and what can be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boomspec.errors import BoomspecError

_KEYS = ("quantization_config", "compression_config")
_HINTS = {
    "bitsandbytes": "load it on a GPU with bitsandbytes and save model.dequantize(), without quantization_config",
    "gptq": "give the model that it was made from: GPTQ keeps four bits or fewer of each weight",
    "awq": "give the model that it was made from: AWQ keeps four bits of each weight",
    "compressed-tensors": "give the model that it was made from, or decompress it with the package compressed-tensors "
    "(run_compressed=False) and save it",
}
_HINT = "give the model that it was made from, or load it dequantised with transformers and save it: save_pretrained"


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How a model's weights are quantised, as its config says; None where they are not."""
    for part in (config, config.get("text_config")):
        for key in _KEYS:
            found = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(found, Mapping) and found:
                return found
    return None


def method_of(quantization: Mapping[str, Any]) -> str:
    """The name of the method."""
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return "bitsandbytes"
    return str(quantization.get("quant_method", "of no name"))


def check_quantization(config: Mapping[str, Any], where: str) -> None:
    """Raise BoomspecError for a quantised model, with what to do about its method."""
    found = quantization_of(config)
    if found is None:
        return
    method = method_of(found)
    raise BoomspecError(
        f"{where}: is quantised ('quantization_config' of its config.json: quant_method {method})",
        hint=_HINTS.get(method, _HINT),
    )
