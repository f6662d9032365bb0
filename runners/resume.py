"""Checkpoints of a training: what a killed task continues from.

    <resume>/step-00000120/   weights.safetensors   the trained parameters
                              moments.safetensors   AdamW's two moments of each
                              state.json            steps done, metrics so far, digests of the two files

A checkpoint is written into a temporary sibling and published by one rename; the last two are kept.
Nothing is pickled, and there is no random state to keep: batches are a function of the step, and
nothing is dropped out. What is broken is passed over, never an error: the task can always start again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from boomspec.identity import file_digest
from boomspec.store import flush

KEPT_CHECKPOINTS = 2
_STATE = "state.json"
_PART = ".part-"


@dataclass(frozen=True)
class Checkpoint:
    """A training behind its `len(metrics)`-th step. Tensors are on the CPU when read, anywhere when saved."""

    metrics: list[dict[str, Any]]  # one row a step
    weights: dict[str, Tensor]  # by parameter name
    moments: dict[str, Tensor]  # "exp_avg.<parameter>", "exp_avg_sq.<parameter>"

    @property
    def steps(self) -> int:
        return len(self.metrics)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Publish a checkpoint in `folder` and delete all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=_PART, dir=folder))
    try:
        digests = {}
        for name in ("weights", "moments"):
            file = part / f"{name}.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in getattr(checkpoint, name).items()}, file)
            digests[file.name] = file_digest(file)
        state = {"steps": checkpoint.steps, "sha256": digests, "metrics": checkpoint.metrics}
        (part / _STATE).write_text(json.dumps(state), encoding="utf-8")
        for file in part.iterdir():
            flush(file)
        final = folder / f"step-{checkpoint.steps:08d}"
        if final.exists():  # a broken one that was passed over, or another worker's equal one
            shutil.rmtree(final)
        part.rename(final)
        flush(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in _newest_first(folder)[KEPT_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, or None; and a line about each newer one that is not."""
    broken: list[str] = []
    for place in _newest_first(folder):
        try:
            return _read(place), broken
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            broken.append(f"checkpoint {place.name} is broken and passed over: {error}")
    return None, broken


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left half-written."""
    for part in folder.glob(f"{_PART}*"):
        shutil.rmtree(part, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _read(place: Path) -> Checkpoint:
    state = json.loads((place / _STATE).read_text(encoding="utf-8"))
    for name, digest in state["sha256"].items():
        if file_digest(place / name) != digest:
            raise ValueError(f"{name} does not match its checksum")
    return Checkpoint(
        metrics=state["metrics"],
        weights=load_file(place / "weights.safetensors"),
        moments=load_file(place / "moments.safetensors"),
    )
