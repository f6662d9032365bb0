"""Feed trackers, such as TensorBoard, with the numbers of a run while it runs.

In: the rows of metrics in the progress lines of trainings, and which tasks have ended. Out: calls of trackers
(`runners/executor/trackers.py`), from a thread of its own, so that none of them holds the run up. One that fails gets
nothing more, and that is noted once; so is what the store does not give. Nothing here ends a run.
"""

from __future__ import annotations

import io
import json
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from boomspec.core.errors import first_line
from boomspec.core.graph import TaskGraph
from boomspec.core.tasks import TRAININGS, Cell, Comparison, Report
from boomspec.core.tasks.report import shown_measure
from boomspec.store import Store
from runners.executor.trackers import Point, Run, Tracker, trackers
from runners.runtime.job import describe
from runners.runtime.journal import Journal
from runners.runtime.tables import read_table

_NO_VALUES = ("step", "tokens")  # in a row of metrics
_END_SECONDS = 30.0  # for what is still to be sent

Row = Mapping[str, Any]


class Tracking:
    """The trackers of one run. Its methods return at once, `end` aside; call them from one thread."""

    def __init__(self, graph: TaskGraph, store: Store, used: Iterable[Tracker]) -> None:
        self.state = "failed"  # how the run ends, until that is known
        self._graph, self._store = graph, store
        self._trackers = list(used)
        self._cells = cells(graph)
        self._followed: set[str] = set()  # trainings whose rows have come
        self._sizes: dict[str, list[Point]] = defaultdict(list)
        self._failed: queue.SimpleQueue[str] = queue.SimpleQueue()
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

    def failures(self) -> Iterator[str]:
        """Notes about trackers that have failed since the last call."""
        while not self._failed.empty():
            yield self._failed.get()

    def end(self) -> None:
        """The run is over. Waits a little for what is still to be sent."""
        self._jobs.put(lambda: self._each(lambda tracker: tracker.end(self.state)))
        self._jobs.put(None)
        self._thread.join(_END_SECONDS)
        if self._thread.is_alive():
            self._failed.put("trackers have not taken everything in time; the store has it all")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # the next jobs, and the end, are still to be done
                self._failed.put(f"trackers have missed something of this run: {first_line(describe(error))}")

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except BaseException as error:
                self._trackers.remove(tracker)
                reason = first_line(f"{type(error).__name__}: {error}")
                self._failed.put(f"{tracker.name} gets nothing more of this run: {reason}")

    def _curve(self, task_id: str, rows: Sequence[Row], now: float) -> None:
        if not rows:
            return
        name = self._graph.nodes[task_id].name
        points = [Point(int(row["step"]), now, _values(row)) for row in rows]
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
            self._failed.put(f"trackers do not get the numbers of {name}{more}: {reason}")

    def _show(self, curve: str, points: Sequence[Point], *, anew: bool) -> None:
        if anew:
            self._each(lambda tracker: tracker.begin(curve))
        self._each(lambda tracker: tracker.points(curve, points))


@contextmanager
def tracked(graph: TaskGraph, store: Store, journal: Journal) -> Iterator[Tracking]:
    """What the graph's spec asks for, for one run. What its store holds already is shown first."""
    about = {"name": graph.name, "graph": graph.id, "folder": str(journal.folder)}
    tracking = Tracking(graph, store, trackers(graph.tracking, Run(journal.folder.name, journal.folder, about)))
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


def _values(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name not in _NO_VALUES}


def _table(text: str, cell: Cell) -> dict[str, float]:
    """The numbers of an evaluation: "held_out/loss", with lm-eval's filter after a comma where it has one."""
    values: dict[str, float] = {}
    for row in read_table(io.StringIO(text)):
        name = shown_measure(row["measure"], task=cell.task, called=cell.measure)
        metric = row["metric"] if row["filter"] == "none" else f"{row['metric']},{row['filter']}"
        if row["value"]:  # else it is not finite
            values[f"{name}/{metric}"] = float(row["value"])
    return values
