"""Quantised models to test with: real tiny ones of several families, quantised here as their makers do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.runners import foreign, tiny

BLOCK = 8
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
FP8_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3_moe": {**_MOE, "num_experts": 4, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "deepseek_v3": {
        **_MOE,
        **_LATENT,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}
_WHOLE = ("lm_head", "embed_tokens", "norm", "mlp.gate.weight")


def fp8(folder: Path, family: str = "qwen3", *, per_tensor: bool = False, block: int = BLOCK, **fields: Any) -> Path:
    """A teacher whose linear layers are in FP8, as the DeepSeek and Qwen repositories of that name have them."""
    _save(folder, family, {**FP8_FAMILIES.get(family, {}), **fields})
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "static" if per_tensor else "dynamic"}
    quantization["weight_block_size"] = None if per_tensor else [block, block]  # type: ignore[assignment]

    def quantize(name: str, weight: Tensor) -> dict[str, Tensor]:
        if weight.ndim != 2 or any(part in name for part in _WHOLE):
            return {name: weight.to(torch.bfloat16)}
        sides = tuple(weight.shape) if per_tensor else (block, block)
        scales = block_scales(weight, sides)
        stored = (weight / spread(scales, sides, weight.shape)).to(torch.float8_e4m3fn)
        if not per_tensor:
            return {name: stored, f"{name}_scale_inv": scales}
        extra = {f"{name.removesuffix('.weight')}.activation_scale": torch.tensor(0.5)}
        return {name: stored, f"{name}_scale_inv": scales.reshape(()), **extra}

    _rewrite(folder, quantize, quantization)
    return folder


def mxfp4(folder: Path, **fields: Any) -> Path:
    """A gpt-oss whose experts are in MXFP4."""
    _save(folder, "gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 2, "intermediate_size": 32, **fields})
    numbers = torch.Generator().manual_seed(0)

    def quantize(name: str, weight: Tensor) -> dict[str, Tensor]:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return {name: weight.to(torch.bfloat16)}
        experts, columns, rows = weight.shape  # any bytes are weights
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=numbers).to(torch.uint8)
        scales = torch.randint(120, 126, (experts, rows, columns // 32), generator=numbers).to(torch.uint8)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    _rewrite(folder, quantize, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return folder


def block_scales(weight: Tensor, sides: tuple[int, int]) -> Tensor:
    """The largest number of each block, for 448, the largest of FP8."""
    down, across = (math.ceil(length / side) for length, side in zip(weight.shape, sides, strict=True))
    filled = torch.zeros(down * sides[0], across * sides[1])
    filled[: weight.shape[0], : weight.shape[1]] = weight
    blocks = filled.reshape(down, sides[0], across, sides[1]).abs().amax((1, 3))
    return (blocks / 448).clamp(min=1e-12)


def spread(scales: Tensor, sides: tuple[int, int], shape: torch.Size) -> Tensor:
    """The scale of each number."""
    whole = scales.repeat_interleave(sides[0], 0).repeat_interleave(sides[1], 1)
    return whole[: shape[0], : shape[1]]


def _save(folder: Path, family: str, fields: dict[str, Any]) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 16, "vocab_size": 300}
    if family == "deepseek_v3":
        sizes["head_dim"] = 8
    tiny.model(family, layers=4, **{**sizes, **fields}).save_pretrained(folder)
    foreign.write_tokenizer(folder, brings_code=False)


def _rewrite(folder: Path, quantize: Callable[[str, Tensor], dict[str, Tensor]], quantization: dict[str, Any]) -> None:
    stored: dict[str, Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        stored |= {key: tensor.contiguous() for key, tensor in quantize(name, weight).items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "bfloat16", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
