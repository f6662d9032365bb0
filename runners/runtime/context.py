"""`Context`, the argument of each task's `run`: record, inputs, output and resume folders, progress.

A body is `run(context) -> None` in `runners/tasks/<kind>.py`. It reads `context.inputs`, writes its
payload into `context.path`, and returns; publishing, provenance and retries are the executor's.
"""

import os
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from boomspec.core.errors import redact
from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.graph import CODE
from boomspec.core.json_text import json_text
from boomspec.core.layers import LayerPlan
from boomspec.core.tasks import Record
from boomspec.core.work_sizes import BATCH_SIZE
from runners.runtime.job import Input, Job

R = TypeVar("R", bound=Record)


class Progress:
    """Progress of one task, appended as JSON lines to a file that the driver follows.

    One line: {"time", "done", "total", "unit", ...values}. At most a few lines a second are written. A line has
    "rows", too, where metrics were recorded since the one before.
    """

    def __init__(self, file: Path | None, *, every_seconds: float = 0.3) -> None:
        self._file = file
        self._every = every_seconds
        self._last = 0.0
        self._rows: list[dict[str, Any]] = []

    def record(self, *rows: dict[str, Any]) -> None:
        """Metrics of optimiser steps. Every row is written, with the next update."""
        if self._file is not None:
            self._rows += rows

    def update(self, done: float, total: float, *, unit: str = "", **values: float | str) -> None:
        """Say that `done` of `total` units (0: not known) are done; `values` are shown beside the bar (loss terms)."""
        now = time.time()
        if self._file is None or (now - self._last < self._every and (done < total or total <= 0)):
            return
        self._last = now
        rows, self._rows = self._rows, []
        self._write(
            {"time": now, "done": done, "total": total, "unit": unit, **values} | ({"rows": rows} if rows else {})
        )

    def started(self, now: float, *, run: str) -> None:
        """The first line of an attempt: where it runs, and for which run."""
        self._write({"time": now, "started": {"run": run, "host": socket.gethostname(), "pid": os.getpid()}})

    def alive(self) -> None:
        """A sign of life, and nothing more. It does not raise where a full disk does not take it."""
        with suppress(OSError):
            self._write({"time": time.time(), "alive": True})

    def note(self, message: str, *, once: str = "") -> None:
        """A line for people: a warning, a resume. Shown at once and kept in the run's events.

        once: what it is about, where one task of a run says it for all.
        """
        self._write({"time": time.time(), "note": redact(message)} | ({"once": once} if once else {}))

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json_text(line) + "\n")


class Together(Progress):
    """The progress of several tasks that are run as one: what is reported of it is reported of each."""

    def __init__(self, each: Sequence[Progress]) -> None:
        super().__init__(None)
        self._each = each

    def update(self, done: float, total: float, *, unit: str = "", **values: float | str) -> None:
        for progress in self._each:
            progress.update(done, total, unit=unit, **values)

    def alive(self) -> None:
        for progress in self._each:
            progress.alive()

    def note(self, message: str, *, once: str = "") -> None:
        self._each[0].note(message, once=once)


class SharedCheckpoints(Protocol):
    """What a training calls of the checkpoints at a store's URL (`runners.training.remote_checkpoint`)."""

    def publish(
        self, name: str, files: Sequence[Path], state: tuple[bytes, Collection[str]] | None = ..., *, delete: bool = ...
    ) -> None: ...
    def wait(self) -> None: ...
    def names(self) -> list[str]: ...
    def fetch(self, name: str, folder: Path) -> Path: ...
    def receive(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class PlannedLayers:
    """A model as layers of the input `teacher` and of another input, its student. `student`: the role of that."""

    plan: LayerPlan
    student: str = ""


@dataclass
class Context(Generic[R]):
    record: R
    inputs: dict[str, Input]
    path: Path  # payload folder, empty at the start
    resume: Path  # checkpoints survive here when the task is killed
    remote: SharedCheckpoints | None = None  # and here when the machine is lost; None for a store in a folder
    execution: Execution = field(default_factory=Execution)
    progress: Progress = field(default_factory=lambda: Progress(None))
    log: Path | None = None
    job: Job | None = None  # what workers of its own must know
    layers: PlannedLayers | None = None  # of the model, where it is no input of its own
    # Of a worker whose team is on machines that share no folder: whether it writes what those of its machine read.
    local_leader: bool | None = None
    measured: dict[str, Any] = field(default_factory=dict)  # by a training, how fast it was; for the provenance

    @property
    def training(self) -> TrainingOptions:
        return self.execution.training or TrainingOptions()

    @property
    def model_flops_per_token(self) -> int:
        """Operations that a training needs for a real token; 0 where that is not known."""
        cost = None if self.job is None else self.job.node.cost
        return 0 if cost is None else cost.model_flops_per_token

    @property
    def batch_size(self) -> int:
        """Sequences of one forward pass, where nothing is trained."""
        return self.execution.batch_size or BATCH_SIZE

    @property
    def code(self) -> tuple[str, ...]:
        """sha256 of the files of foreign code that the spec trusts (`runners.modeling.foreign_code`)."""
        return self.execution.code

    def code_of(self, role: str) -> tuple[str, ...]:
        """The same of one input: of a source its own, of an artifact all that the task may run."""
        source = self.inputs[role].source
        return self.code if source is None else tuple(source.identity.get(CODE, {}).values())
