"""What a graph asks of the machines that run it: the smallest that will do, and what they must be able to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

from boomspec.graph import Node, TaskGraph

# Beside a task: Ray's own processes, the libraries that a worker loads, the object store. On two cores Ray took 0.8 GB
# and each worker with torch and transformers 0.6 GB (measured).
_BESIDE = 4 << 30
_UNKNOWN = 8 << 30  # for a task whose memory cannot be told


@dataclass(frozen=True)
class Machine:
    """One of equal machines. Memory in bytes; `gpu_memory` is what the largest task needs on each GPU."""

    cpus: int
    gpus: int
    memory: int
    gpu_memory: int = 0
    resources: dict[str, float] = field(default_factory=dict)  # custom ones of Ray

    @property
    def gibibytes(self) -> int:
        return ceil(self.memory / (1 << 30))


def machine(graph: TaskGraph, *, nodes: int, gpus: bool) -> Machine | None:
    """The smallest machine of which `nodes` can run every task with (or without) GPUs; None where there is none.

    A training of several workers is spread over the machines evenly.
    """
    tasks = [node for node in graph.nodes.values() if (node.execution.gpus > 0) is gpus]
    if not tasks:
        return None
    names = sorted({name for node in tasks for name in node.execution.resources})
    return Machine(
        cpus=max(ceil(node.execution.cpus * _each(node, nodes)) for node in tasks),
        gpus=max(ceil(node.execution.gpus * _each(node, nodes)) for node in tasks),
        memory=max(_memory(node) * _each(node, nodes) for node in tasks) + _BESIDE,
        gpu_memory=max(node.cost.peak if node.cost is not None else 0 for node in tasks) if gpus else 0,
        resources={
            name: max(node.execution.resources.get(name, 0) * _each(node, nodes) for node in tasks) for name in names
        },
    )


def local_paths(graph: TaskGraph) -> Iterator[str]:
    """What the graph reads from folders; of several files their common folder."""
    for source in graph.sources.values():
        files = source.location.get("files")
        if files:
            place = os.path.commonpath(files)
            yield place if len(files) == 1 else f"{place} ({len(files)} files)"
        elif "folder" in source.location:
            yield source.location["folder"]


def _each(node: Node, nodes: int) -> int:
    """How many of a task's workers one machine holds."""
    return ceil(node.execution.workers / nodes)


def _memory(node: Node) -> int:
    """Main memory. What goes to a GPU passes through it."""
    return max(node.execution.memory, _UNKNOWN if node.cost is None else node.cost.peak)
