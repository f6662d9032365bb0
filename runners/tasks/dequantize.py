"""Write a quantised model out as plain safetensors, with a config that quantises nothing, for all other tasks to read.

Writes `model/`, tensor by tensor, with transformers' own arithmetic: a model is never in memory as a whole. A weight
that ends inside a block is padded: transformers expects whole blocks.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Dequantize
from boomspec.core.work_sizes import DEQUANTIZED_SHARD
from boomspec.models.checkpoint import TensorEntry, read_checkpoint
from boomspec.models.facts import read_config
from boomspec.models.folder import CONFIG, INDEX
from boomspec.models.quantized import Dequantized, Dtype, dequantized, without_quantization
from runners.assembly.checkpoint_writer import in_shards
from runners.modeling.foreign_code import copy_travelling
from runners.modeling.models import MODEL, model_folder
from runners.runtime.context import Context, Progress


def run(context: Context[Dequantize]) -> None:
    source, target = model_folder(context.inputs["model"]), context.path / MODEL
    write_whole(source, target, dtype=context.record.dtype, progress=context.progress)
    copy_travelling(source, target, context.code)
    config = without_quantization(read_config(source))
    (target / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_whole(
    source: Path, target: Path, *, dtype: Dtype, progress: Progress, shard_bytes: int = DEQUANTIZED_SHARD
) -> None:
    """Write the weights of `source` into the folder `target`, dequantised to `dtype` where they are quantised."""
    found = dequantized(read_config(source), read_checkpoint(source), str(source), dtype=dtype)
    target.mkdir()
    shards = in_shards(found, [made.entry.bytes for made in found], shard_bytes)
    for number, (name, shard) in enumerate(shards.items(), start=1):
        tensors = {made.entry.name: whole(made, getattr(torch, dtype)) for made in shard}
        save_file(tensors, target / name, metadata={"format": "pt"})
        progress.update(number, len(shards), unit="shards")
    if len(shards) > 1:
        names = {made.entry.name: name for name, shard in shards.items() for made in shard}
        index = {"metadata": {"total_size": sum(made.entry.bytes for made in found)}, "weight_map": names}
        (target / INDEX).write_text(json.dumps(index, indent=1, allow_nan=False))
    check_written(target, [made.entry for made in found])


def whole(made: Dequantized, dtype: torch.dtype) -> Tensor:
    """A tensor, dequantised where it is not whole. Raises BoomspecError where that gives no finite numbers."""
    stored = _read(made.stored)
    if made.method is None or made.scales is None:
        return stored
    scales = _read(made.scales)
    if made.method == "mxfp4":
        found: Tensor = convert_moe_packed_tensors(stored, scales, dtype=dtype)
    else:
        found = _from_fp8(stored, scales, made.block).to(dtype)
    if not torch.isfinite(found).all():
        raise BoomspecError(f"{made.stored.file}: '{made.entry.name}' is not finite in {dtype} when it is dequantised")
    return found.contiguous()


def _from_fp8(stored: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    shape = stored.shape
    rows, columns = (1, *shape)[-2:]
    stored = stored.reshape(*(shape[:-2] or ()), rows, columns)
    scales = scales if scales.dtype == torch.uint8 else scales.float()  # exponents are bytes
    scales = scales.reshape(1, 1) if scales.numel() == 1 else scales
    more = (-rows % block[0], -columns % block[1])
    # Zeros are zeros in FP8, too; it has no kernel for padding.
    filled = torch.nn.functional.pad(stored.float(), (0, more[1], 0, more[0])).to(stored.dtype) if any(more) else stored
    found: Tensor = Fp8Dequantize(None).convert({"weight": filled, "weight_scale_inv": scales})["weight"]
    return found.float()[..., :rows, :columns].reshape(shape)


def check_written(folder: Path, expected: Sequence[TensorEntry]) -> None:
    """Raise BoomspecError unless a folder has exactly these tensors: those that everything else was planned with."""
    found = {name: (entry.dtype, entry.shape) for name, entry in read_checkpoint(folder).items()}
    planned = {entry.name: (entry.dtype, entry.shape) for entry in expected}
    for name in sorted(found.keys() | planned.keys()):
        if (has := found.get(name)) != (wanted := planned.get(name)):
            raise BoomspecError(f"{folder}: dequantised, '{name}' is {has}, and {wanted} was foreseen")


def _read(entry: TensorEntry) -> Tensor:
    assert entry.file is not None
    with safe_open(entry.file, framework="pt") as file:
        return file.get_tensor(entry.name)  # type: ignore[no-any-return]
