"""Show the numbers of a run while it runs: in TensorBoard's files, Weights & Biases and MLflow.

In: the rows of metrics in the progress lines of trainings, and which tasks have ended. Out: calls of trackers, from a
thread of its own, so that none of them holds the run up. One that fails gets nothing more, and that is noted once; so
is what the store does not give. Nothing here ends a run.

    begin(curve)                 a curve starts again: its earlier points are void
    points(curve, points)        values by step, steps rising
    end(state)                   the run is over: "finished", "failed" or "interrupted"

A curve is a training ("distill student", by optimiser step) or a series of sizes ("sizes/interpolated", by
parameters). No tracker is imported before it is used, and any of them may raise anything.
"""

import importlib.util
import io
import itertools
import json
import os
import queue
import re
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from boomspec.core.errors import BoomspecError, describe, first_line
from boomspec.core.graph import TaskGraph
from boomspec.core.machine import install_line
from boomspec.core.tasks import TRAININGS, Cell, Comparison, Report
from boomspec.core.tasks.report import shown_measure
from boomspec.store import Store
from runners.runtime.journal import Journal

_WANDB_WITHOUT_KEY = ("offline", "dryrun", "disabled")
_NUMBERS = itertools.count()
_MLFLOW_BATCH = 1000  # values in one request
_NO_VALUES = ("step", "tokens")  # in a row of metrics
_END_SECONDS = 30.0  # for what is still to be sent

Row = Mapping[str, Any]


class Point(NamedTuple):
    step: int
    time: float
    values: Mapping[str, float]


class _Tracker:
    """Shows the run of a folder. `about` is what it says of the run, `settings` what the spec says of the tracker."""

    name: str
    package: str
    extra: str  # of boomspec, which installs the package

    def __init__(self, folder: Path, about: Mapping[str, str], **settings: Any) -> None:
        self._folder, self._about, self._settings = folder, about, settings
        self._client: Any = None  # None until the first curve begins
        self._steps: dict[tuple[str, str], set[int]] = defaultdict(set)

    def new(self, curve: str, points: Sequence[Point]) -> Iterator[Point]:
        """What is not there yet. For a tracker that takes no point back: a curve may start again, as after a kill."""
        for point in points:
            values = {n: value for n, value in point.values.items() if point.step not in self._steps[curve, n]}
            for name in values:
                self._steps[curve, name].add(point.step)
            if values:
                yield point._replace(values=values)


class TensorBoard(_Tracker):
    """One folder `<run folder>/tensorboard/<curve>/`. A curve that starts anew gets a new file; old ones are emptied.

    The new file says so at its start, for a TensorBoard that has read the old one.
    """

    name, package, extra = "tensorboard", "tensorboardX", "run"

    def __init__(self, folder: Path, about: Mapping[str, str]) -> None:
        super().__init__(folder, about)
        self._writers: dict[str, Any] = {}

    def begin(self, curve: str) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        parts = curve.split("/", 1) if curve.startswith("sizes/") else [curve]
        names = [re.sub(r"[/\0]", "_", part).lstrip(".")[:200] or "_" for part in parts]
        folder = self._folder.joinpath("tensorboard", *names)
        folder.mkdir(parents=True, exist_ok=True)
        if curve in self._writers:
            self._writers.pop(curve).close()
        before = list(folder.glob("events.out.tfevents.*"))
        # TensorBoard reads files in the order of their names, which begin with the second. Two containers on one volume
        # may have the same host name and process number.
        writer = EventsWriter(str(folder / "events"), f".{next(_NUMBERS):06}.{secrets.token_hex(8)}")
        writer.write_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
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


class Wandb(_Tracker):
    """One run of Weights & Biases."""

    name = package = extra = "wandb"

    def begin(self, curve: str) -> None:
        if self._client is None:
            import wandb

            # The run's numbers alone; everything else is in the store.
            off = {"disable_git": True, "disable_code": True, "x_disable_meta": True, "x_disable_stats": True}
            settings = wandb.Settings(console="off", silent=True, **off)
            run = {**self._settings, **dict.fromkeys(("name", "group"), self._folder.name), "dir": str(self._folder)}
            self._client = wandb.init(**run, config=dict(self._about), settings=settings)
        self._client.define_metric(f"{curve}/step", hidden=True)
        self._client.define_metric(f"{curve}/*", step_metric=f"{curve}/step")

    def points(self, curve: str, points: Sequence[Point]) -> None:
        for point in self.new(curve, points):
            values = {f"{curve}/{name}": value for name, value in point.values.items()}
            self._client.log({f"{curve}/step": point.step, **values})

    def end(self, state: str) -> None:
        if self._client is not None:
            self._client.finish(exit_code=0 if state == "finished" else 1)


class Mlflow(_Tracker):
    """One run of MLflow."""

    name = package = extra = "mlflow"

    def begin(self, curve: str) -> None:
        if self._client is not None:
            return
        from mlflow import MlflowClient

        client, wanted = MlflowClient(tracking_uri=self._settings["uri"]), self._settings.get("experiment")
        wanted = wanted or self._about["name"]
        found = client.get_experiment_by_name(wanted)
        experiment = client.create_experiment(wanted) if found is None else found.experiment_id
        tags = {f"boomspec.{name}": value for name, value in self._about.items()}
        self._id = client.create_run(experiment, run_name=self._folder.name, tags=tags).info.run_id
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


Tracker = TensorBoard | Wandb | Mlflow
_KINDS: tuple[type[Tracker], ...] = (TensorBoard, Wandb, Mlflow)


def check(wanted: Mapping[str, Any]) -> None:
    """Raise BoomspecError where a package or a key is missing for what a spec's `tracking` asks for."""
    for kind in (kind for kind in _KINDS if wanted.get(kind.name)):
        found = importlib.util.find_spec(kind.package)
        if found is None or found.origin is None:  # a folder of that name is no package
            message = f"execution.tracking asks for {kind.name}, but {kind.package} is not installed here"
            raise BoomspecError(message, hint=f"{install_line(kind.extra)}, or leave it out of the spec")
    offline = os.environ.get("WANDB_MODE") in _WANDB_WITHOUT_KEY
    if wanted.get("wandb") and not offline and not os.environ.get("WANDB_API_KEY"):
        message = "execution.tracking asks for wandb, but there is no key"
        raise BoomspecError(message, hint="set WANDB_API_KEY where the run starts, or WANDB_MODE=offline")


class Tracking:
    """The trackers of one run. Its methods return at once, `end` aside; call them from one thread."""

    def __init__(self, graph: TaskGraph, store: Store, used: Iterable[Tracker]) -> None:
        self.state = "failed"  # how the run ends, until that is known
        self._graph, self._store = graph, store
        self._trackers = list(used)
        self._cells = cells(graph)
        self._followed: set[str] = set()  # trainings whose rows have come
        self._sizes: dict[str, list[Point]] = defaultdict(list)
        self.failures: queue.SimpleQueue[str] = queue.SimpleQueue()  # notes about trackers that have failed
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def rows(self, task_id: str, rows: Sequence[Row]) -> None:
        """Rows of metrics of a training; one that goes on from a checkpoint starts with the rows up to there."""
        if rows and self._trackers:
            self._followed.add(task_id)
            self._jobs.put(lambda: self._curve(task_id, rows, time.time()))

    def ended(self, task_ids: Iterable[str]) -> None:
        """These tasks have their artifacts: show the results of measurements, and trainings that nobody followed."""
        ids = [i for i in task_ids if i in self._cells or self._graph.nodes[i].task.record.trains]
        if ids and self._trackers:
            followed = frozenset(self._followed)
            self._jobs.put(lambda: self._read([i for i in ids if i not in followed]))

    def end(self) -> None:
        """The run is over. Waits a little for what is still to be sent."""
        self._jobs.put(lambda: self._each(lambda tracker: tracker.end(self.state)))
        self._jobs.put(None)
        self._thread.join(_END_SECONDS)
        if self._thread.is_alive():
            self.failures.put("trackers have not taken everything in time; the store has it all")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # the next jobs, and the end, are still to be done
                self.failures.put(f"trackers have missed something of this run: {first_line(describe(error))}")

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except BaseException as error:
                self._trackers.remove(tracker)
                reason = first_line(f"{type(error).__name__}: {error}")
                self.failures.put(f"{tracker.name} gets nothing more of this run: {reason}")

    def _curve(self, task_id: str, rows: Sequence[Row], now: float) -> None:
        if not rows:
            return
        name = self._graph.nodes[task_id].name
        values = [{key: float(value) for key, value in row.items() if key not in _NO_VALUES} for row in rows]
        points = [Point(int(row["step"]), now, numbers) for row, numbers in zip(rows, values, strict=True)]
        self._show(name, points, anew=points[0].step == 0)

    def _read(self, task_ids: Sequence[str]) -> None:
        touched: set[str] = set()
        unread: dict[str, str] = {}  # why, by name
        for task_id in task_ids:
            kind, now = self._graph.nodes[task_id].task.kind, time.time()
            try:
                if kind in TRAININGS:
                    lines = self._store.read(kind, task_id, "metrics.jsonl").splitlines()
                    self._curve(task_id, [json.loads(line) for line in lines], now)
                    continue
                text = self._store.read(kind, task_id, "table.csv").decode("utf-8")
                found = [(series, cell, _table(text, cell)) for series, cell in self._cells[task_id]]
            except Exception as error:  # denied, damaged, no answer, or not what it should be
                unread[self._graph.nodes[task_id].name] = first_line(describe(error))
                continue
            for series, cell, values in found:
                self._sizes[series].append(Point(cell.parameters, now, values))
                touched.add(series)
        for series in touched:
            points = sorted(self._sizes[series], key=lambda point: point.step)
            self._show(f"sizes/{series}", points, anew=True)
        if unread:
            name, reason = next(iter(unread.items()))
            more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            self.failures.put(f"trackers do not get the numbers of {name}{more}: {reason}")

    def _show(self, curve: str, points: Sequence[Point], *, anew: bool) -> None:
        if anew:
            self._each(lambda tracker: tracker.begin(curve))
        self._each(lambda tracker: tracker.points(curve, points))


@contextmanager
def tracked(graph: TaskGraph, store: Store, journal: Journal) -> Iterator[Tracking]:
    """What the graph's spec asks for, for one run. What its store holds already is shown first."""
    about = {"name": graph.name, "graph": graph.id, "folder": str(journal.folder)}
    wanted = [(kind, graph.tracking.get(kind.name)) for kind in _KINDS]
    used = [kind(journal.folder, about, **({} if given is True else given)) for kind, given in wanted if given]
    tracking = Tracking(graph, store, used)
    journal.notes_failures_of(tracking.failures)
    there = store.records((node.task.kind, i) for i, node in graph.nodes.items())
    tracking.ended([i for i, node in graph.nodes.items() if (node.task.kind, i) in there])
    try:
        yield tracking
    finally:
        tracking.end()
        journal.note_failures()


def cells(graph: TaskGraph) -> dict[str, list[tuple[str, Cell]]]:
    """For each task that measures: the series and sizes that its numbers are of."""
    found: dict[str, list[tuple[str, Cell]]] = defaultdict(list)
    for node in graph.nodes.values():
        match node.task.record:
            case Report(cells=own):
                for cell in own:
                    found[node.task.inputs[cell.input]].append((cell.series, cell))
            case Comparison(experiments=experiments):
                for experiment in experiments:
                    for cell in experiment.cells:
                        task = node.task.inputs[f"{experiment.label}/{cell.input}"]
                        found[task].append((f"{experiment.label}: {cell.series}", cell))
    return dict(found)


def _table(text: str, cell: Cell) -> dict[str, float]:
    """The numbers of an evaluation: "held_out/loss", with lm-eval's filter after a comma where it has one."""
    from runners.runtime.tables import read_table  # imports pandas, which a run without work does not need

    values: dict[str, float] = {}
    for row in read_table(io.StringIO(text)):
        name = shown_measure(row["measure"], task=cell.task, called=cell.measure)
        metric = row["metric"] if row["filter"] == "none" else f"{row['metric']},{row['filter']}"
        if row["value"]:  # else it is not finite
            values[f"{name}/{metric}"] = float(row["value"])
    return values
