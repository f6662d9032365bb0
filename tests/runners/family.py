"""A family of models that were never trained: a graph, and a store with hand-made numbers for its cells."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from boomspec.core.graph import Experiment, Node, Source, Task, TaskGraph
from boomspec.core.layers import teacher_layers
from boomspec.core.losses import HiddenCosine, Losses
from boomspec.core.tasks import (
    Baseline,
    Cell,
    Distill,
    Evaluate,
    HeldOut,
    Interpolate,
    LmEval,
    Recipe,
    Record,
    Report,
    Subset,
)
from boomspec.store import Store
from tests.runners.tiny import recipe

LOSS = {
    "student": {4: 3.75},
    "interpolated": {5: 3.70, 6: 3.60, 7: 3.45},
    "teacher": {8: 3.30},
    "naive_pruning": {4: 4.10, 5: 3.90, 6: 3.73, 7: 3.50},
    "random_init": {4: 3.6, 5: 4.9, 6: 5.9, 7: 5.2},
}
SPEC = "# Does it grow?\n#\n# A second paragraph.\nname: family  # <script>alert(1)</script>\n"
PROVENANCE = {
    "seconds": 1.5,
    "finished": "2026-01-01T00:00:00+00:00",
    "commit": "abc123",
    "packages": {"torch": "2.13.0"},
    "hardware": {"cpu": "A CPU", "cpus": 2, "memory_bytes": 2**33, "gpus": []},
}
NOISE = [0.5, -0.5, 0.3, -0.3, 0.1, -0.1]  # of the windows, the same for every model


class Family:
    """Builds the graph; publishes every artifact (of `kinds`) but those whose node's name is in `leave_out`."""

    def __init__(
        self,
        store: Store,
        *,
        loss: Mapping[str, Mapping[int, float]] = LOSS,
        noise: Mapping[str, list[float]] | None = None,
        leave_out: Collection[str] = (),
        trained: Recipe | None = None,
        measures: Collection[str] = ("held_out", "quiz"),
        kinds: Collection[str] | None = None,
    ) -> None:
        self.store, self.leave_out, self.noise, self.kinds = store, leave_out, noise or {}, kinds
        self.nodes: dict[str, Node] = {}
        self.source = Source("model", {"sha256": {"a": "b"}}, {"folder": "/nowhere"})
        distill = Distill(
            kept=(0, 2, 4, 6),
            initial="teacher",
            train_embedding=False,
            losses=Losses(hidden_cosine=HiddenCosine()),
            recipe=trained or recipe(),
        )
        student = self.add("distill student", distill, {"teacher": self.source.id}, training())
        cells: list[Cell] = []
        inputs = {"training/student": student}
        for series, sizes in loss.items():
            for layers, value in sizes.items():
                plan = teacher_layers(range(layers))
                record: Record = Baseline(build=Subset(plan=plan))
                if series in ("interpolated", "random_init"):
                    record = Interpolate(plan=plan, tied=series == "random_init")
                made = {"teacher": self.source.id, "student": student}.get(series)
                start = {"teacher": self.source.id} if series == "naive_pruning" else {"student": student}
                made = made or self.add(f"{series} {layers}", record, start, {"made": ""})
                for measure, files in self.measured(series, value).items():
                    if measure not in measures:
                        continue
                    role, name = f"{series} {layers}/{measure}", f"{series} {layers} {measure}"
                    held_out = HeldOut(sequence_length=128)
                    evaluate = Evaluate(
                        measure=held_out if measure == "held_out" else LmEval(task=measure, seed=0), precision="fp32"
                    )
                    reads = {"tokens" if measure == "held_out" else "tasks": self.source.id}
                    inputs[role] = self.add(name, evaluate, {"model": made, **reads}, files)
                    size = {"parameters": 1000 * layers, "bytes": 4000 * layers}
                    cells.append(Cell(series=series, layers=layers, measure=measure, input=role, **size))
        self.record = Report(cells=tuple(cells), trainings={"student": "training/student"})
        report = self.add("report", self.record, inputs, None)
        experiment = Experiment("", {}, {node.name: node.id for node in self.nodes.values()}, {"order": [3, 2, 1, 0]})
        self.graph = TaskGraph("family", self.nodes, {self.source.id: self.source}, (report,), SPEC, (experiment,))

    def add(self, name: str, record: Record, inputs: dict[str, str], files: dict[str, str] | None) -> str:
        node = Node(Task(record, inputs), name)
        self.nodes[node.id] = node
        wanted = name not in self.leave_out and (self.kinds is None or record.kind in self.kinds)
        if files is not None and wanted and not self.store.has(record.kind, node.id):
            with self.store.workspace(record.kind, node.id) as workspace:
                for file, text in files.items():
                    (workspace.path / file).write_text(text)
                self.store.publish(workspace, record.kind, node.id, node.task.identity(), PROVENANCE)
        return node.id

    def id(self, name: str) -> str:
        return next(node.id for node in self.nodes.values() if node.name == name)

    def measured(self, series: str, loss: float) -> dict[str, dict[str, str]]:
        """Files of the two evaluate artifacts of one model: of the held-out text, and of a task "quiz"."""
        windows = [loss + x for x in self.noise.get(series, NOISE)]
        right = [1.0] * round(20 - 4 * loss) + [0.0] * (20 - round(20 - 4 * loss))
        quiz = sum(right) / 20
        error = math.sqrt(quiz * (1 - quiz) / 19)
        text_table = [("held_out", "loss", loss, 0.02, False), ("held_out", "perplexity", math.exp(loss), None, False)]
        quiz_table = [("quiz", "f1", quiz / 2, None, None), ("quiz", "acc", quiz, error, True)]
        return {
            "held_out": artifact(text_table, [("held_out", "loss", i, 128, x) for i, x in enumerate(windows)])
            | {"results.json": json.dumps({"configs": {"held_out": {"tokens": 128 * len(windows), "bytes": 3000}}})},
            "quiz": artifact(quiz_table, [("quiz", "acc", i, 1, x) for i, x in enumerate(right)]),
        }


def artifact(table: list[tuple[Any, ...]], items: list[tuple[Any, ...]]) -> dict[str, str]:
    """table.csv and items.csv; the filter is "none" everywhere."""
    head = ("measure", "metric", "filter")
    return {
        "table.csv": as_csv((*head, "value", "stderr", "higher_is_better"), table),
        "items.csv": as_csv((*head, "item", "weight", "value"), items),
    }


def as_csv(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([header, *((*row[:2], "none", *row[2:]) for row in rows)])
    return text.getvalue()


def training() -> dict[str, str]:
    steps = [{"step": i, "tokens": 128 * i, "loss": 5 - i / 10, "hidden_cosine": 0.1, "lr": 0.1} for i in range(1, 9)]
    pairs = [{"student": f"layer {i}", "teacher": f"layer {2 * i}", "before": 0.5, "after": 0.9} for i in range(4)]
    return {
        "metrics.jsonl": "".join(json.dumps(step) + "\n" for step in steps),
        "similarity.json": json.dumps({"pairs": pairs}),
    }
