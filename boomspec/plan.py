"""What a run would do: which tasks are reused, run, not needed or blocked, and why.

The walk goes backwards from the targets. An artifact that is present and whole is reused, and what only it
was made from is not needed, should it be gone. Nothing is changed here: damaged artifacts are only named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boomspec.graph import Node, Source, TaskGraph
from boomspec.store import Store

Action = Literal["reuse", "run", "unneeded", "blocked"]


@dataclass(frozen=True)
class Step:
    """What happens to one task, and why."""

    action: Action
    reason: str


@dataclass(frozen=True)
class Plan:
    """The step of every task, by task id, in the order of the graph."""

    steps: dict[str, Step]

    def ids(self, action: Action) -> list[str]:
        return [task_id for task_id, step in self.steps.items() if step.action == action]


def needed(graph: TaskGraph, store: Store, *, checksums: bool = False) -> Plan:
    """Say for every task of `graph` what a run against `store` would do with it.

    `checksums` compares the contents of artifacts with their records, not only their sizes.
    """
    steps: dict[str, Step] = {}
    wanted = set(graph.targets)
    for node in reversed(graph.nodes.values()):
        if (absence := _absence(node, store, checksums)) is None:
            steps[node.id] = Step("reuse", "in the store")
        elif node.id not in wanted:
            steps[node.id] = Step("unneeded", f"{absence}, but nothing that runs needs it")
        else:
            steps[node.id] = Step("run", absence)
            wanted.update(graph.task_inputs(node.id))
    for node in graph.nodes.values():
        if steps[node.id].action == "run" and (obstacle := _obstacle(graph, node, steps)) is not None:
            steps[node.id] = Step("blocked", obstacle)
    return Plan({task_id: steps[task_id] for task_id in graph.nodes})


def missing_files(source: Source) -> Iterable[Path]:
    """The places on this machine where `source` should be and is not. The hub is not asked."""
    places = [*source.location.get("files", ()), source.location.get("folder")]
    return (path for path in map(Path, filter(None, places)) if not path.exists())


def _absence(node: Node, store: Store, checksums: bool) -> str | None:
    damage = store.damage(node.task.kind, node.id, checksums=checksums)
    if damage is not None:
        return f"damaged: {damage}"
    return None if store.has(node.task.kind, node.id) else "not in the store"


def _obstacle(graph: TaskGraph, node: Node, steps: dict[str, Step]) -> str | None:
    for role, input_id in node.task.inputs.items():
        if input_id in graph.sources:
            for path in missing_files(graph.sources[input_id]):
                return f"its {role} is gone: {path} does not exist"
        elif steps[input_id].action == "blocked":
            return f"its input {graph.nodes[input_id].name} is blocked"
    return None
