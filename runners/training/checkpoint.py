"""Checkpoints of a training: what a killed task continues from.

    <resume>/step-00000120/   weights.safetensors   the trained parameters
                              moments.safetensors   AdamW's two moments of each
                              state.json            steps done, metrics so far, digests of the files

Where parameters are cut by rows over several workers, each writes its rows into files of its own
(weights-00001-of-00004.safetensors), whose headers say which rows they are; so any number of workers
can read what any other number has written.

A checkpoint is written into a temporary sibling and published by one rename; the last two are kept. Where the store is
at a URL they are sent there, too (`runners/training/remote_checkpoint.py`): a task that starts on another machine
fetches the newest. Nothing is pickled, and there is no random state to keep: batches are a function of the step, and
nothing is dropped out. What is broken is passed over, never an error: the task can always start again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from boomspec.core.files import flush, replace_folder
from boomspec.core.identity import file_digest
from boomspec.core.work_sizes import KEPT_CHECKPOINTS
from runners.runtime.context import RemoteCheckpoint
from runners.runtime.disk_full import explained
from runners.training.process_group import ALONE, Team
from runners.training.remote_checkpoint import PART, STATE, step_of

_ROWS = "rows"  # in a file's header: {name: [first row, row behind the last, rows in all]}
_KINDS = ("weights", "moments")
_BROKEN = (OSError, ValueError, KeyError, TypeError, SafetensorError)

Rows = tuple[int, int]


@dataclass(frozen=True)
class Checkpoint:
    """A training behind its `len(metrics)`-th step. `rows`: which rows the tensors are of what is sharded."""

    metrics: list[dict[str, Any]]  # one row a step
    weights: dict[str, Tensor]  # by parameter name
    moments: dict[str, Tensor]  # "exp_avg.<parameter>", "exp_avg_sq.<parameter>"
    rows: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # by the names of both, with all rows there are

    @property
    def steps(self) -> int:
        return len(self.metrics)


@dataclass(frozen=True)
class _Piece:
    file: Path
    shape: tuple[int, ...]  # of the piece
    start: int = 0
    total: int | None = None  # rows of the whole; None where the piece is the whole


class Stored:
    """A checkpoint on the disk, whose tensors are read when they are asked for."""

    def __init__(self, place: Path) -> None:
        self._state = _state(place)
        self._pieces: dict[str, list[_Piece]] = {}
        for name in self._state["sha256"]:
            with safe_open(place / name, framework="pt") as file:
                rows = json.loads((file.metadata() or {}).get(_ROWS, "{}"))
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    start, _, total = rows.get(key, (0, None, None))
                    piece = _Piece(place / name, tuple(file.get_slice(key).get_shape()), start, total)
                    self._pieces.setdefault(key, []).append(piece)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        metrics: list[dict[str, Any]] = self._state["metrics"]
        return metrics

    @property
    def steps(self) -> int:
        return len(self.metrics)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of each parameter."""
        weights = {key: pieces for key, pieces in self._pieces.items() if pieces[0].file.name.startswith("weights")}
        return {
            key: piece.shape if piece.total is None else (piece.total, *piece.shape[1:])
            for key, (piece, *_) in weights.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def tensor(self, name: str, rows: Rows | None) -> Tensor:
        """A tensor on the CPU, or those rows of it."""
        pieces = sorted(self._pieces[name], key=lambda piece: piece.start)
        if rows is None and pieces[0].total is None:
            with safe_open(pieces[0].file, framework="pt") as file:
                whole: Tensor = file.get_tensor(name)
                return whole
        start, end = rows or (0, pieces[0].total or 0)
        parts = []
        for piece in pieces:
            low, high = max(start, piece.start), min(end, piece.start + piece.shape[0])
            with safe_open(piece.file, framework="pt") as file:
                if low < high:
                    parts.append(file.get_slice(name)[low - piece.start : high - piece.start])
                elif not parts and piece is pieces[-1]:  # no rows at all: a small tensor over many workers
                    parts.append(file.get_slice(name)[0:0])
        return torch.cat(parts)


def save(folder: Path, checkpoint: Checkpoint, team: Team = ALONE, mirror: RemoteCheckpoint | None = None) -> None:
    """Publish a checkpoint in `folder` and delete all but the newest two; begin to send it to `mirror`.

    Every worker of the team writes its rows; where nothing is sharded, the leader writes all.
    """
    sharded = bool(checkpoint.rows)
    if not (sharded or team.leads):
        return
    if not sharded:
        team = ALONE
    if mirror is not None:
        mirror.wait()
    part = folder / PART
    try:
        with explained(folder):  # before the part is deleted
            if team.leads:
                folder.mkdir(parents=True, exist_ok=True)
                part = Path(tempfile.mkdtemp(prefix=PART, dir=folder))
            part = folder / team.words(part.name.encode())[0].decode()
            part.mkdir(parents=True, exist_ok=True)  # on another machine than the leader's
            digests, own = {}, []
            for kind in _KINDS:
                name, digest = _write(part, kind, checkpoint, team)
                own.append(name)
                for rank, other in enumerate(team.words(bytes.fromhex(digest))):
                    digests[_name(kind, rank, team.size)] = other.ljust(len(digest) // 2, b"\0").hex()
                assert digests[name] == digest
            called = f"step-{checkpoint.steps:08d}.{part.name.removeprefix(PART)}"
            if team.leads:
                state = {"steps": checkpoint.steps, "sha256": digests, "metrics": checkpoint.metrics}
                final = _publish(folder, part, state)
                if mirror is not None:
                    files = [final / name for name in (own if team.apart else digests)]
                    mirror.publish(called, files, state=(final / STATE).read_bytes(), together=digests)
            elif mirror is not None and team.apart:
                mirror.publish(called, [part / name for name in own], delete=True)
    finally:
        if team.leads:
            shutil.rmtree(part, ignore_errors=True)


def _name(kind: str, rank: int, size: int) -> str:
    return f"{kind}.safetensors" if size == 1 else f"{kind}-{rank + 1:05}-of-{size:05}.safetensors"


def _write(part: Path, kind: str, checkpoint: Checkpoint, team: Team) -> tuple[str, str]:
    """Write this worker's file of one kind; returns its name and digest."""
    tensors: Mapping[str, Tensor] = getattr(checkpoint, kind)
    file = part / _name(kind, team.rank, team.size)
    rows = {name: checkpoint.rows[name] for name in tensors if name in checkpoint.rows}
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()},
        file,
        metadata={_ROWS: json.dumps(rows, allow_nan=False)} if rows else None,
    )
    flush(file)
    return file.name, file_digest(file)


def _publish(folder: Path, part: Path, state: dict[str, Any]) -> Path:
    (part / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
    flush(part / STATE)
    final = folder / f"step-{state['steps']:08d}"
    replace_folder(part, final)  # a broken one that was passed over, or another worker's equal one
    for old in _newest_first(folder)[KEPT_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def found(folder: Path, team: Team, mirror: RemoteCheckpoint | None, tell: Callable[[str], None]) -> Stored | None:
    """The checkpoint to continue from: the newest that is whole, here or in `mirror`. A collective.

    The leader looks for it and reads its files through; `tell` is told of those that are broken.
    """
    stored, brought = None, ""
    if team.leads:
        sweep(folder)
        if mirror is not None:
            brought = _brought(folder, mirror, tell)
        stored, broken = newest(folder)
        for line in broken:
            tell(line)
    steps = team.number(-1 if stored is None else stored.steps)
    if team.apart and mirror is not None and steps >= 0:  # what the leader has found, it has fetched
        brought = team.words(brought.encode())[0].decode()
        if team.first_here and not team.leads:
            mirror.fetch(brought, folder)
        team.wait()
    return behind(folder, steps) if steps >= 0 and stored is None else stored


def _brought(folder: Path, mirror: RemoteCheckpoint, tell: Callable[[str], None]) -> str:
    """Fetch the mirror's newest whole checkpoint, unless that here is as new. Returns the name of what was fetched."""
    here, _ = newest(folder)
    for name in mirror.names():
        if here is not None and f"step-{here.steps:08d}" >= step_of(name):
            break
        try:
            check(mirror.fetch(name, folder))
            return name
        except _BROKEN as error:
            tell(f"checkpoint {name} of the store is broken and passed over: {error}")
            shutil.rmtree(folder / step_of(name), ignore_errors=True)
    return ""


def newest(folder: Path) -> tuple[Stored | None, list[str]]:
    """The newest checkpoint that is whole, or None; and a line about each newer one that is not."""
    broken: list[str] = []
    for place in _newest_first(folder):
        try:
            check(place)
            return Stored(place), broken
        except _BROKEN as error:
            broken.append(f"checkpoint {place.name} is broken and passed over: {error}")
    return None, broken


def check(place: Path) -> None:
    """Raise one of `_BROKEN` unless every file of a checkpoint is what its state says."""
    for name, digest in _state(place)["sha256"].items():
        if file_digest(place / name) != digest:
            raise ValueError(f"{name} does not match its checksum")


def behind(folder: Path, steps: int) -> Stored:
    """The checkpoint behind that step, which another worker has found to be whole."""
    return Stored(folder / f"step-{steps:08d}")


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left half-written."""
    for part in folder.glob(f"{PART}*"):
        shutil.rmtree(part, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _state(place: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((place / STATE).read_text(encoding="utf-8"))
    if outside := [name for name in state["sha256"] if Path(name).name != name]:
        raise ValueError(f"'{outside[0]}' is no file of it")
    return state
