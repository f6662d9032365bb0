"""Where numbers can be watched: TensorBoard's files, Weights & Biases, MLflow. Each takes the same three calls.

    begin(curve)                 a curve starts again: its earlier points are void
    points(curve, points)        values by step, steps rising
    end(state)                   the run is over: "finished", "failed" or "interrupted"

A curve is a training ("distill student", by optimiser step) or a series of sizes ("sizes/interpolated", by
parameters). None of them is imported before it is used, and any of them may raise anything.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from boomspec.core.errors import BoomspecError

_PACKAGES = {"tensorboard": ("tensorboardX", "run"), "wandb": ("wandb", "wandb"), "mlflow": ("mlflow", "mlflow")}
_WANDB_WITHOUT_KEY = ("offline", "dryrun", "disabled")
_NUMBERS = itertools.count()
_MLFLOW_BATCH = 1000  # values in one request


@dataclass(frozen=True)
class Point:
    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """What trackers say about the run that they show."""

    name: str
    folder: Path
    about: Mapping[str, str] = field(default_factory=dict)


class Tracker(Protocol):
    name: str

    def begin(self, curve: str) -> None: ...
    def points(self, curve: str, points: Sequence[Point]) -> None: ...
    def end(self, state: str) -> None: ...


def check(wanted: Mapping[str, Any]) -> None:
    """Raise BoomspecError where a package or a key is missing for what a spec's `tracking` asks for."""
    for name, (package, extra) in _PACKAGES.items():
        if not wanted.get(name):
            continue
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:  # a folder of that name is no package
            raise BoomspecError(
                f"execution.tracking asks for {name}, but {package} is not installed here",
                hint=f"pip install 'boomspec[{extra}]', or leave it out of the spec",
            )
    offline = os.environ.get("WANDB_MODE") in _WANDB_WITHOUT_KEY
    if wanted.get("wandb") and not offline and not os.environ.get("WANDB_API_KEY"):
        raise BoomspecError(
            "execution.tracking asks for wandb, but there is no key",
            hint="set WANDB_API_KEY where the run starts, or WANDB_MODE=offline",
        )


def trackers(wanted: Mapping[str, Any], run: Run) -> Iterator[Tracker]:
    """Those that a spec's `tracking` asks for. Nothing is imported, opened or written yet."""
    if wanted.get("tensorboard"):
        yield TensorBoard(run)
    if wanted.get("wandb"):
        yield Wandb(run, **wanted["wandb"])
    if wanted.get("mlflow"):
        yield Mlflow(run, **wanted["mlflow"])


class TensorBoard:
    """One folder `<run folder>/tensorboard/<curve>/`. A curve that starts anew gets a new file; old ones are emptied.

    The new file says so at its start, for a TensorBoard that has read the old one.
    """

    name = "tensorboard"

    def __init__(self, run: Run) -> None:
        self._folder = run.folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def begin(self, curve: str) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        parts = curve.split("/", 1) if curve.startswith("sizes/") else [curve]
        folder = self._folder.joinpath(*map(_file_name, parts))
        folder.mkdir(parents=True, exist_ok=True)
        if curve in self._writers:
            self._writers.pop(curve).close()
        before = list(folder.glob("events.out.tfevents.*"))
        # TensorBoard reads files in the order of their names, which begin with the second. Two containers on one volume
        # may have the same host name and process number.
        writer = EventsWriter(str(folder / "events"), f".{next(_NUMBERS):06}.{secrets.token_hex(8)}")
        restart = Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START))
        writer.write_event(restart)
        writer.flush()
        for file in before:  # a TensorBoard that reads one never gets over it when that is deleted
            os.truncate(file, 0)
        self._writers[curve] = writer

    def points(self, curve: str, points: Sequence[Point]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        writer = self._writers[curve]
        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            writer.write_event(Event(wall_time=point.time, step=point.step, summary=Summary(value=values)))
        writer.flush()

    def end(self, state: str) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


class _Appending:
    """A tracker that takes no point back: where a curve starts again, as after a kill, only new steps are added."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._steps: dict[tuple[str, str], set[int]] = defaultdict(set)

    def new(self, curve: str, points: Sequence[Point]) -> Iterator[Point]:
        """What has not been added yet of these points."""
        for point in points:
            values = {n: value for n, value in point.values.items() if point.step not in self._steps[curve, n]}
            for name in values:
                self._steps[curve, name].add(point.step)
            if values:
                yield replace(point, values=values)


class Wandb(_Appending):
    """One run of Weights & Biases."""

    name = "wandb"

    def __init__(self, run: Run, *, project: str, entity: str | None = None) -> None:
        super().__init__(run)
        self._project, self._entity = project, entity
        self._open: Any = None

    def begin(self, curve: str) -> None:
        if self._open is None:
            import wandb

            self._open = wandb.init(
                project=self._project,
                entity=self._entity,
                name=self._run.name,
                group=self._run.name,
                config=dict(self._run.about),
                dir=str(self._run.folder),
                settings=wandb.Settings(  # the run's numbers alone; everything else is in the store
                    console="off",
                    silent=True,
                    disable_git=True,
                    disable_code=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                ),
            )
        self._open.define_metric(f"{curve}/step", hidden=True)
        self._open.define_metric(f"{curve}/*", step_metric=f"{curve}/step")

    def points(self, curve: str, points: Sequence[Point]) -> None:
        for point in self.new(curve, points):
            values = {f"{curve}/{name}": value for name, value in point.values.items()}
            self._open.log({f"{curve}/step": point.step, **values})

    def end(self, state: str) -> None:
        if self._open is not None:
            self._open.finish(exit_code=0 if state == "finished" else 1)


class Mlflow(_Appending):
    """One run of MLflow."""

    name = "mlflow"

    def __init__(self, run: Run, *, uri: str, experiment: str | None = None) -> None:
        super().__init__(run)
        self._uri, self._experiment = uri, experiment or run.about["name"]
        self._client: Any = None
        self._id = ""

    def begin(self, curve: str) -> None:
        if self._client is not None:
            return
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        found = client.get_experiment_by_name(self._experiment)
        experiment = client.create_experiment(self._experiment) if found is None else found.experiment_id
        tags = {f"boomspec.{name}": value for name, value in self._run.about.items()}
        self._id = client.create_run(experiment, run_name=self._run.name, tags=tags).info.run_id
        self._client = client

    def points(self, curve: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            # MLflow allows few letters in names.
            Metric(re.sub(r"[^\w ./:-]", "_", f"{curve}/{name}")[:250], value, int(point.time * 1000), point.step)
            for point in self.new(curve, points)
            for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + _MLFLOW_BATCH])

    def end(self, state: str) -> None:
        states = {"finished": "FINISHED", "interrupted": "KILLED"}
        if self._client is not None:
            self._client.set_terminated(self._id, states.get(state, "FAILED"))


def _file_name(text: str) -> str:
    """A text as the name of one folder."""
    return re.sub(r"[/\0]", "_", text).lstrip(".")[:200] or "_"
