"""Several experiments with hand-made numbers in one graph, as the compiler makes it of variants and a sweep."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from boomspec.core.graph import Experiment, Node, Task, TaskGraph
from boomspec.core.tasks import Compared, Comparison
from boomspec.store import Store
from tests.runners.family import LOSS, SPEC, Family
from tests.runners.tiny import recipe

ENDS = ("teacher", "naive_pruning")  # what does not depend on how the student is trained


@dataclass(frozen=True)
class Made:
    """One experiment: its axes, and by how much its student and what is made of it are worse than LOSS."""

    axes: Mapping[str, str]
    worse: float | Mapping[int, float] = 0.0
    noise: Mapping[str, list[float]] | None = None
    leave_out: Collection[str] = ()
    meaning: Mapping[str, Any] = field(default_factory=dict)
    student: int | None = None  # which one; by default one of its own

    @property
    def label(self) -> str:
        return ",".join(value if name == "variant" else f"{name}={value}" for name, value in self.axes.items())

    def loss(self) -> dict[str, dict[int, float]]:
        worse = self.worse if isinstance(self.worse, Mapping) else dict.fromkeys(range(20), self.worse)
        return {
            series: {
                layers: value + (0.0 if series in ENDS else worse.get(layers, 0.0)) for layers, value in sizes.items()
            }
            for series, sizes in LOSS.items()
        }


class Experiments:
    """The graph of all of them, and a store with their results.

    `whole`: with a second measure and with the control of a random start; it takes three times as long.
    """

    def __init__(self, store: Store, *made: Made, whole: bool = False) -> None:
        self.store = store
        self.nodes: dict[str, Node] = {}
        compared: list[Compared] = []
        experiments: list[Experiment] = []
        inputs: dict[str, str] = {}
        for number, one in enumerate(made):
            trained = recipe(seed=number if one.student is None else one.student)
            family = Family(
                store,
                loss={series: sizes for series, sizes in one.loss().items() if whole or series != "random_init"},
                noise=one.noise,
                leave_out=one.leave_out,
                trained=trained,
                measures=("held_out", "quiz") if whole else ("held_out",),
                kinds=("evaluate",),
            )
            report = family.nodes.pop(family.id("report"))
            for task, node in family.nodes.items():
                name = f"{one.label}: {node.name}" if number else node.name
                self.nodes.setdefault(task, Node(node.task, name))
            cells = family.record.cells
            inputs |= {f"{one.label}/{cell.input}": report.task.inputs[cell.input] for cell in cells}
            compared.append(Compared(label=one.label, axes=dict(one.axes), cells=cells))
            tasks = {node.name: node.id for node in family.nodes.values()}
            experiments.append(Experiment(one.label, dict(one.axes), tasks, dict(one.meaning)))
            source = family.source
        self.record = Comparison(experiments=tuple(compared))
        self.node = Node(Task(self.record, inputs), "comparison")
        self.nodes[self.node.id] = self.node
        self.graph = TaskGraph("family", self.nodes, {source.id: source}, (self.node.id,), SPEC, tuple(experiments))

    def find(self, role: str) -> Any:
        """The folder of an input, or why there is none."""
        node = self.nodes[self.node.task.inputs[role]]
        made = self.store.has(node.task.kind, node.id)
        return self.store.path(node.task.kind, node.id) if made else "it failed"
