"""Read safetensors headers: names, dtypes, shapes and byte ranges of a checkpoint's tensors, without loading any.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes. A checkpoint is one
`model.safetensors` or shards listed in `model.safetensors.index.json`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.models.folder import INDEX, SINGLE, check_fetched, names_in, refusal

_LARGEST_HEADER = 100 * 2**20  # the format's own limit
_BLOCK = 1 << 22  # bytes that are compared at a time
# Bits per element.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16,
    "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "F4": 4,
}  # fmt: skip
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of the types that are converted into each other


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: bytes [start, end) of `file`. `file` is None when only the header is known."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path | None = None
    start: int = 0
    end: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * _BITS[self.dtype] // 8


Tensors = Mapping[str, TensorEntry]  # by name


def read_header(file: Path) -> list[TensorEntry]:
    """Read one safetensors file's header. Raises BoomspecError where it is truncated or inconsistent."""
    try:
        check_fetched(file)
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise BoomspecError(f"{file}: truncated or not a safetensors file ({size} bytes)")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise BoomspecError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BoomspecError(f"{file}: its safetensors header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise BoomspecError(f"{file}: its safetensors header is not an object")
    header.pop("__metadata__", None)
    end = 8 + length
    tensors = [_entry(file, name, entry, end, size) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    for tensor in tensors:
        if tensor.start != end:
            wrong = "overlaps the one before it" if tensor.start < end else "does not follow the one before it"
            raise BoomspecError(f"{file}: corrupted: tensor '{tensor.name}' {wrong}")
        end = tensor.end
    if end != size:
        raise BoomspecError(f"{file}: corrupted: {size - end} bytes belong to no tensor")
    return tensors


def _entry(file: Path, name: str, entry: Any, offset: int, size: int) -> TensorEntry:
    where = f"{file}: tensor '{name}'"
    try:
        dtype, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
        start, end = (offset + int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise BoomspecError(f"{where} has a malformed header entry") from error
    if any(length < 0 for length in shape):
        raise BoomspecError(f"{where} has a negative length: {shape}")
    if dtype not in _BITS:
        raise BoomspecError(f"{where} has unknown dtype {dtype}")
    tensor = TensorEntry(name, dtype, shape, file, start, end)
    if end - start != tensor.bytes or start < offset:
        raise BoomspecError(f"{where} says {end - start} bytes, its shape needs {tensor.bytes}")
    if end > size:
        raise BoomspecError(f"{file}: truncated: tensor '{name}' ends at byte {end}, the file has {size}")
    return tensor


def read_checkpoint(folder: Path) -> dict[str, TensorEntry]:
    """Read the headers of a model folder, sharded or not. Names are unique across shards."""
    tensors: dict[str, TensorEntry] = {}
    for file in checkpoint_files(folder):
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise BoomspecError(f"{folder}: tensor '{tensor.name}' is in two shards")
            tensors[tensor.name] = tensor
    for name, shard in _weight_map(folder).items():
        if name not in tensors or tensors[name].file != folder / shard:
            raise BoomspecError(f"{folder}: tensor '{name}' is not in the shard '{shard}' that the index names")
    return tensors


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads of a model folder. Raises BoomspecError where that is not clear."""
    index = _weight_map(folder)
    if (folder / SINGLE).is_file():
        if others := sorted(set(index.values()) - {SINGLE}):
            hint = f"transformers reads {SINGLE} alone; remove what was left there from another save"
            raise BoomspecError(f"{folder}: holds {SINGLE} and an index that names {others[0]}", hint=hint)
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = sorted(set(index.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise BoomspecError(f"{folder}: '{outside[0]}' of the index is no file of this folder")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise BoomspecError(f"{folder}: shard '{missing[0]}' of the index is missing")
        return [folder / name for name in names]
    raise refusal(list(names_in(folder)), str(folder)) or BoomspecError(f"{folder}: no {SINGLE} and no {INDEX}")


def same_bytes(one: TensorEntry, other: TensorEntry) -> bool | None:
    """Whether two tensors hold the same values; None where their bytes are not here (only headers are known)."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.file is None or other.file is None:
        return None
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        sizes = (min(_BLOCK, one.bytes - at) for at in range(0, one.bytes, _BLOCK))
        return all(first.read(size) == second.read(size) for size in sizes)  # those that differ do so nearly everywhere


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> shard, as the index says; empty for a checkpoint without one."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise TypeError
        return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BoomspecError(f"{path}: not a checkpoint index") from error


def encode_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...], int, int]],
    *,
    alignment: int = 8,
    remainder: int = 0,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Encode a header from name -> (dtype, shape, start, end); offsets count from the end of the header.

    It is padded so that the tensors' bytes begin `remainder` bytes after a multiple of `alignment`. `metadata`: more of
    it than that the tensors are torch's.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    for name, (dtype, shape, start, end) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * ((remainder - 8 - len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text
