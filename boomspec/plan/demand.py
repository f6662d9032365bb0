"""The smallest machine that can run a graph, and the local files that it must be able to read.

Ray fills a machine: it starts as many tasks at once as its CPUs, its GPUs (a task may take a share of one) and what
tasks claim of its memory allow, and it holds nobody to the memory that was not claimed. So a machine that has the
cores for four evaluations needs the memory for four. What a machine has at least is what one task claims.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

from boomspec.core.graph import Node, TaskGraph
from boomspec.core.task_data import data_paths

OBJECT_STORE = 1 << 30  # bytes; only jobs and how they ended go through it. Ray's default is 30 % of a machine's memory
# For every process of a cluster. Where a machine is cut off without a word, its tasks are tried again after about half
# a minute; with Ray's own settings it took seven (measured with 2.60). They must not be those of some processes only:
# the others break connections on which they are asked so often, and tasks that run are taken for lost.
KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "20000", "RAY_grpc_client_keepalive_timeout_ms": "20000"}
# On two cores Ray took 0.8 GB, and each worker with torch and transformers 0.6 GB (measured).
_RAY = 2 << 30
_WORKER = 1 << 30
_UNKNOWN = 8 << 30  # for a task whose memory is not known


@dataclass(frozen=True)
class MachineRequirement:
    """One of equal machines. Memory in bytes."""

    cpus: int
    gpus: int
    memory: int
    claimable: int  # what tasks may claim of the memory, by Ray's bookkeeping
    gpu_memory: int = 0  # what tasks need of one GPU: the largest, or as many as share one
    resources: dict[str, float] = field(default_factory=dict)  # custom ones of Ray

    @property
    def gibibytes(self) -> int:
        return ceil(self.memory / (1 << 30))


def machine(graph: TaskGraph, *, nodes: int, gpus: bool | None = None) -> MachineRequirement | None:
    """The smallest machine of which `nodes` can run every task with (or without) GPUs; None where there is none.

    None for `gpus` means every task: there is one kind of machine. A training of several workers is spread over the
    machines evenly.
    """
    tasks = [node for node in graph.nodes.values() if gpus is None or (node.execution.gpus > 0) is gpus]
    if not tasks:
        return None

    def workers(node: Node) -> int:  # of a task on one machine
        return ceil(node.execution.workers / nodes)

    has: dict[str, float] = defaultdict(float)  # by Ray's names, what one task takes of a machine
    alike: dict[tuple[tuple[str, float], ...], list[Node]] = defaultdict(list)  # tasks that claim the same
    for node in tasks:
        alike[tuple(sorted(node.execution.claims.items()))].append(node)
        for name, amount in node.execution.claims.items():
            whole = ceil if name in ("CPU", "GPU") else float
            has[name] = max(has[name], whole(amount * workers(node)))
    needed = gpu_memory = 0
    for group in alike.values():
        execution, memory = group[0].execution, max(map(_memory, group))
        # Of tasks that are limited by one thing (mostly the CPUs), the worst mix is the densest kind alone.
        at_once = workers(group[0])
        if execution.memory < memory:  # else more of them start only where more memory can be claimed
            claims = {name: amount for name, amount in execution.claims.items() if name != "memory"}
            # Rounded: three workers of 0.1 CPUs fit into 0.3.
            room = min(int(round(has[name] / amount, 6)) for name, amount in claims.items())
            at_once = max(at_once, min(room, sum(map(workers, group))))
        needed = max(needed, at_once * (memory + _WORKER))
        if share := execution.gpus:
            sharing = min(int(round(1 / share, 6)), len(group)) if share < 1 else 1
            gpu_memory = max(gpu_memory, sharing * max(node.cost.peak if node.cost else 0 for node in group))
    cpus, own_gpus = (ceil(has.get(name, 0)) for name in ("CPU", "GPU"))
    memory = needed + _RAY + OBJECT_STORE
    custom = {name: amount for name, amount in sorted(has.items()) if name not in ("CPU", "GPU", "memory")}
    return MachineRequirement(cpus, own_gpus, memory, claimable=needed, gpu_memory=gpu_memory, resources=custom)


def local_paths(graph: TaskGraph) -> Iterator[str]:
    """What the graph reads from folders; of several files their common folder."""
    for source in graph.sources.values():
        if files := source.location.get("files"):
            place = os.path.commonpath(files)
            yield place if len(files) == 1 else f"{place} ({len(files)} files)"
        elif "folder" in source.location:
            yield source.location["folder"]
        yield from map(str, data_paths(source))


def _memory(node: Node) -> int:
    """Main memory of one process. What goes to a GPU passes through it."""
    known = node.cost is not None and not (node.cost.unknown and not node.cost.memory)
    return max(node.execution.memory, node.cost.peak if node.cost is not None and known else _UNKNOWN)
