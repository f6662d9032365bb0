"""Files of stored outputs of a teacher: shards of rows, written one after the other, read by row.

    outputs-00000.safetensors, ...   each the next rows of a training, [rows, T, ...] by tensor
    meta.json                        how many rows there are, and in each shard

    top k     ids (uint16 or uint32) and log_probs (fp16), of which the last is that of all others together
    samples   ids, log_weights (fp16; not where all weights are 1) and entropy (fp32, nats)

How a shard is cut follows from the record and the teacher alone. A task that was killed goes on after the last shard
that is whole: each carries a checksum, and gets its name when it is written.

Shapes: B rows, T positions, K tokens that are stored of a position.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from boomspec.core.errors import BoomspecError
from boomspec.core.files import read_json, write_atomically
from boomspec.core.work_sizes import OUTPUT_SHARD
from runners.training.stored_outputs import SampledTokens, StoredOutputs, TopTokens

META = "meta.json"
Arrays = Mapping[str, npt.NDArray[Any]]


def shard_name(number: int) -> str:
    return f"outputs-{number:05}.safetensors"


def rows_of_shard(position_bytes: int, sequence_length: int) -> int:
    return max(1, OUTPUT_SHARD // (position_bytes * sequence_length))


def write_shard(path: Path, arrays: Arrays) -> None:
    crc = str(_crc({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    write_atomically(path, save(dict(arrays), metadata={"crc32": crc}))


def is_whole(path: Path) -> bool:
    """Whether a shard was written to its end and is undamaged."""
    try:
        with safe_open(path, "np") as file:
            found = _crc({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return bool(file.metadata()["crc32"] == str(found))
    except (OSError, SafetensorError, KeyError, TypeError):
        return False


def _crc(arrays: Arrays) -> int:
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(arrays[name].tobytes(), found)
    return found


def write_meta(folder: Path, *, rows: int, shard_rows: int) -> None:
    text = json.dumps({"rows": rows, "shard_rows": shard_rows}, allow_nan=False)
    (folder / META).write_text(text + "\n", encoding="utf-8")


class StoredRows:
    """The outputs of an artifact, by row. Only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        meta = read_json(folder / META)
        self.folder, self.rows, self.shard_rows = folder, int(meta["rows"]), int(meta["shard_rows"])
        self._open: dict[int, Any] = {}

    def __call__(self, rows: Sequence[int], device: torch.device) -> StoredOutputs:
        """What is stored of these rows, [B, T, ...]. Raises BoomspecError for a row that is not there."""
        if max(rows) >= self.rows:
            raise BoomspecError(f"{self.folder}: has outputs of {self.rows} sequences, and not of number {max(rows)}")
        parts = [{name: self._shard(row // self.shard_rows).get_slice(name) for name in self.names} for row in rows]
        places = [row % self.shard_rows for row in rows]
        found: dict[str, Tensor] = {}
        for name in self.names:
            arrays = [part[name][at : at + 1] for part, at in zip(parts, places, strict=True)]
            array = np.concatenate(arrays)
            array = array.astype(np.int64 if name == "ids" else np.float32)
            found[name] = torch.from_numpy(array).to(device, non_blocking=True)
        if "log_probs" in found:
            return TopTokens(found["ids"], found["log_probs"])
        return SampledTokens(found["ids"], found.get("log_weights"), found["entropy"])

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._shard(0).keys()))

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            self._open[number] = safe_open(self.folder / shard_name(number), "np")
        return self._open[number]
