"""A part of a training that is a task of its own, and the state that one such part hands to the next.

    <artifact>/training/   weights.safetensors   the trained parameters, in fp32
                           moments.safetensors   AdamW's two moments of each
                           state.json            steps done, metrics so far, the names of the files

As of every artifact, the digests of the files are in its record, and nowhere else: `boomspec verify` could not tell
digests that differ from numbers that do. The format is that of a checkpoint (`checkpoint.py`), so that a phase begins
as a training that was interrupted goes on: to the same bits. Of parameters that are sharded over workers the leader
gathers and writes one after the other; any number of workers can read them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from boomspec.core.errors import BoomspecError
from boomspec.core.files import flush
from boomspec.core.tasks import Distill
from boomspec.core.tasks.training import BEFORE
from runners.runtime.context import Context
from runners.training.checkpoint import SavedCheckpoint
from runners.training.checkpoint_writer import Tensors, write_tensors
from runners.training.process_group import ProcessGroup
from runners.training.remote_checkpoint import STATE

TRAINING = "training"  # folder of the artifact of a phase that another one follows


@dataclass(frozen=True)
class Part:
    """Which steps of a training are done here, where its state comes from, and where it goes to."""

    steps: range  # of those of the whole, whose number is the recipe's
    before: Path | None = None  # the folder of the state that the steps before these have left
    after: Path | None = None  # the folder for the state that is left to the steps behind these


def part_of(context: Context[Distill]) -> Part:
    """The part that a distillation is."""
    record = context.record
    before = context.inputs[BEFORE].folder / TRAINING if record.steps.start else None
    return Part(record.steps, before, context.path / TRAINING if record.hands_on else None)


def read_state(part: Part) -> SavedCheckpoint | None:
    """The state that the phase before has left; None of the first. Raises BoomspecError for a wrong one."""
    if part.before is None:
        return None
    try:
        stored = SavedCheckpoint(part.before)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BoomspecError(f"{part.before}: the state of the phase before cannot be read: {error}") from error
    if stored.steps != part.steps.start:
        message = f"{part.before}: is of {stored.steps} steps, and the phase begins after {part.steps.start}"
        raise BoomspecError(message)
    return stored


def write_state(
    folder: Path,
    metrics: list[dict[str, Any]],  # one row a step
    tensors: Tensors,
    *,
    whole: Callable[[Tensor], Tensor],  # of a shard the whole tensor: a collective
    group: ProcessGroup,
) -> None:
    """Write the state that a training has reached. A collective where tensors are sharded."""
    if group.is_leader:
        folder.mkdir(parents=True, exist_ok=True)
    for kind, of_kind in tensors.items():
        file = folder / f"{kind}.safetensors"
        if group.is_leader:
            write_tensors(file, _Gathered(of_kind, whole), {})
        else:
            for tensor in of_kind.values():
                whole(tensor)
    if group.is_leader:
        files = {f"{kind}.safetensors": None for kind in tensors}
        state = {"steps": len(metrics), "sha256": files, "metrics": metrics}
        (folder / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        flush(folder / STATE)


class _Gathered(Mapping[str, Tensor]):
    """Tensors that are made whole one after the other, when their values are read; their items may be shards."""

    def __init__(self, tensors: Mapping[str, Tensor], whole: Callable[[Tensor], Tensor]) -> None:
        self._tensors, self._whole = tensors, whole

    def __getitem__(self, name: str) -> Tensor:
        return self._whole(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def items(self) -> Any:
        """The shards, whose shapes are those of the whole."""
        return self._tensors.items()
