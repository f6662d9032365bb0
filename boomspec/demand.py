"""What machines a graph asks for: the smallest that can run each of its tasks, from `execution` and the estimates."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from boomspec.graph import Node, TaskGraph

# What a machine needs beside a task: Ray's own processes, the libraries that a worker loads, its object store.
# Measured on two cores without tasks: 0.8 GB for Ray and 0.6 GB for each worker with torch and transformers.
_BESIDE = 4 << 30
_UNKNOWN = 8 << 30  # for a task whose memory cannot be told


@dataclass(frozen=True)
class Machine:
    """One of equal machines. Memory in bytes; `gpu_memory` is what the largest task needs on each GPU."""

    cpus: int
    gpus: int
    memory: int
    gpu_memory: int = 0

    @property
    def gibibytes(self) -> int:
        return ceil(self.memory / (1 << 30))


def machine(graph: TaskGraph, *, nodes: int, gpus: bool) -> Machine | None:
    """The smallest machine of which `nodes` can run every task with (or without) GPUs; None where there is no such task.

    A training of several workers is spread over the machines evenly.
    """
    tasks = [node for node in graph.nodes.values() if (node.execution.gpus > 0) is gpus]
    if not tasks:
        return None
    return Machine(
        cpus=max(ceil(node.execution.cpus * _each(node, nodes)) for node in tasks),
        gpus=max(ceil(node.execution.gpus * _each(node, nodes)) for node in tasks),
        memory=max(_memory(node) * _each(node, nodes) for node in tasks) + _BESIDE,
        gpu_memory=max(node.cost.peak if node.cost is not None else 0 for node in tasks) if gpus else 0,
    )


def _each(node: Node, nodes: int) -> int:
    """How many of a task's workers one machine holds."""
    return ceil(node.execution.workers / nodes)


def _memory(node: Node) -> int:
    """Of the host. What goes to a GPU passes through it."""
    return node.cost.peak if node.cost is not None and node.cost.peak else _UNKNOWN if node.cost is None else 0
