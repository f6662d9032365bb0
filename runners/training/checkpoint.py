"""Find and load (sharded) training checkpoints; `checkpoint_writer.py` writes them, `loop.py` resumes from them.

    <resume>/step-00000120/   weights.safetensors   the trained parameters
                              moments.safetensors   AdamW's two moments of each
                              state.json            steps done, metrics so far, digests of the files

Of sharded parameters each rank writes its rows into files of its own (weights-00001-of-00004.safetensors), whose
headers say which rows they are; any number of workers can read what any other number has written. A checkpoint appears
by one rename; the last two are kept, and uploaded where the store is at a URL. There is no random state to keep:
batches are a function of the step, and nothing is dropped out. A broken checkpoint is passed over, never an error.

Why not torch.distributed.checkpoint: it pickles its metadata, has no checksums, and reads only what it wrote whole.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from boomspec.core.identity import file_digest
from runners.runtime.context import SharedCheckpoints
from runners.training.process_group import ProcessGroup
from runners.training.remote_checkpoint import PART, STATE, step_of

ROWS = "rows"  # in a file's header: {name: [first row, row after the last, rows in all]}
_BROKEN = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True)
class _Shard:
    file: Path
    shape: tuple[int, ...]
    start: int = 0
    total: int | None = None  # rows of the whole; None where the shard is the whole


class SavedCheckpoint:
    """A checkpoint on the disk. `check`: by its checksums. Raises one of `_BROKEN` where it is not whole."""

    def __init__(self, place: Path, *, check: bool = False) -> None:
        state = json.loads((place / STATE).read_text(encoding="utf-8"))
        self.metrics: list[dict[str, Any]] = state["metrics"]
        self._shards: dict[str, list[_Shard]] = {}
        for name, sha256 in state["sha256"].items():
            if Path(name).name != name:
                raise ValueError(f"'{name}' is no file of it")
            if check and file_digest(place / name) != sha256:
                raise ValueError(f"{name} does not match its checksum")
            with safe_open(place / name, framework="pt") as file:
                rows = json.loads((file.metadata() or {}).get(ROWS, "{}"))
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    start, _, total = rows.get(key, (0, None, None))
                    shard = _Shard(place / name, tuple(file.get_slice(key).get_shape()), start, total)
                    self._shards.setdefault(key, []).append(shard)

    @property
    def steps(self) -> int:
        return len(self.metrics)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of each parameter."""
        return {
            key: shard.shape if shard.total is None else (shard.total, *shard.shape[1:])
            for key, (shard, *_) in self._shards.items()
            if shard.file.name.startswith("weights")
        }

    def __contains__(self, name: str) -> bool:
        return name in self._shards

    def tensor(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        """A tensor on the CPU, or those rows of it."""
        shards = sorted(self._shards[name], key=lambda shard: shard.start)
        if rows is None and shards[0].total is None:
            with safe_open(shards[0].file, framework="pt") as file:
                return file.get_tensor(name)  # type: ignore[no-any-return]
        start, end = rows or (0, shards[0].total or 0)
        parts = []
        for shard in shards:
            low, high = max(start, shard.start), min(end, shard.start + shard.shape[0])
            with safe_open(shard.file, framework="pt") as file:
                if low < high:
                    parts.append(file.get_slice(name)[low - shard.start : high - shard.start])
                elif not parts and shard is shards[-1]:  # no rows at all: a small tensor over many workers
                    parts.append(file.get_slice(name)[0:0])
        return torch.cat(parts)


def find(
    folder: Path, group: ProcessGroup, remote: SharedCheckpoints | None, note: Callable[[str], None]
) -> SavedCheckpoint | None:
    """The newest checkpoint that is whole, here or in `remote`; `note` is told of each broken one. A collective."""
    stored, fetched = None, ""
    if group.is_leader:
        for part in folder.glob(f"{PART}*"):  # of writers that were killed
            shutil.rmtree(part, ignore_errors=True)
        if remote is not None:
            fetched = _fetch_newest(folder, remote, note)
        stored = _newest(folder, note)
    steps = group.broadcast(-1 if stored is None else stored.steps)
    if group.local_leader is not None and remote is not None and steps >= 0:  # what rank 0 has found, it has fetched
        fetched = group.all_gather(fetched.encode())[0].decode()
        if group.local_leader and not group.is_leader:
            remote.fetch(fetched, folder)
        group.barrier()
    return SavedCheckpoint(folder / f"step-{steps:08d}") if steps >= 0 and stored is None else stored


def _fetch_newest(folder: Path, remote: SharedCheckpoints, note: Callable[[str], None]) -> str:
    """Fetch the newest whole checkpoint of `remote`, unless ours is as new. Returns its name, or ""."""
    here = _newest(folder)
    for name in remote.names():
        if here is not None and f"step-{here.steps:08d}" >= step_of(name):
            break
        try:
            SavedCheckpoint(remote.fetch(name, folder), check=True)
            return name
        except _BROKEN as error:
            note(f"checkpoint {name} of the store is broken and passed over: {error}")
            shutil.rmtree(folder / step_of(name), ignore_errors=True)
    return ""


def _newest(folder: Path, note: Callable[[str], object] = str) -> SavedCheckpoint | None:
    for place in sorted(folder.glob("step-*"), reverse=True):
        try:
            return SavedCheckpoint(place, check=True)
        except _BROKEN as error:
            note(f"checkpoint {place.name} is broken and passed over: {error}")
    return None
