"""The order in which tasks start, and how long they take together on a number of CPUs and GPUs.

Of the tasks that could start, the one with the longest remaining path through the graph starts first, as soon as there
is room. A path is as long as its operations; a task whose operations are not known counts as the largest known one of
its kind, and equal paths are ordered by how long such kinds of tasks usually are.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping

from boomspec.core.graph import TaskGraph


def longest_first(graph: TaskGraph) -> list[str]:
    """The ids of all tasks, those on the longest remaining path first; equals in the order of the graph."""
    operations = {i: 0 if node.cost is None else node.cost.flops for i, node in graph.nodes.items()}
    largest: dict[str, int] = defaultdict(int)
    for task_id, node in graph.nodes.items():
        largest[node.task.kind] = max(largest[node.task.kind], operations[task_id])
    after: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))  # the longest path from the end of a task
    remaining: dict[str, tuple[int, int]] = {}
    for task_id in reversed(graph.nodes):
        node, (flops, usual) = graph.nodes[task_id], after[task_id]
        own = largest[node.task.kind] if node.cost is None or node.cost.unknown else node.cost.flops
        remaining[task_id] = flops + own, usual + node.task.record.usual_work
        for needed in graph.waits_for(task_id):
            after[needed] = max(after[needed], remaining[task_id])
    return sorted(graph.nodes, key=lambda task_id: remaining[task_id], reverse=True)


def critical_path(graph: TaskGraph, seconds: Mapping[str, float]) -> float:
    """Seconds of the longest chain of tasks that wait for each other; tasks that are not in `seconds` take none."""
    ends: dict[str, float] = {}
    for task_id in graph.nodes:
        start = max([ends[i] for i in graph.waits_for(task_id)], default=0.0)
        ends[task_id] = start + seconds.get(task_id, 0.0)
    return max(ends.values(), default=0.0)


def elapsed(graph: TaskGraph, seconds: Mapping[str, float], *, cpus: float, gpus: float) -> float:
    """Seconds until the last task in `seconds` has ended. A task that asks for more than there is gets all of it."""
    return Simulation(graph, seconds, cpus=cpus, gpus=gpus).elapsed(seconds)


class Simulation:
    """The same for several assumptions about how long the same tasks take."""

    def __init__(self, graph: TaskGraph, task_ids: Iterable[str], *, cpus: float, gpus: float) -> None:
        wanted = set(task_ids)
        # A task is the number of its place in the order: a sweep has tens of thousands.
        self._order = [task_id for task_id in longest_first(graph) if task_id in wanted]
        self._room = cpus, gpus
        place = {task_id: i for i, task_id in enumerate(self._order)}
        self._following: list[list[int]] = [[] for _ in self._order]
        self._missing = [0] * len(self._order)  # how many tasks each one waits for
        for i, task_id in enumerate(self._order):
            needed = [place[first] for first in graph.waits_for(task_id) if first in place]
            self._missing[i] = len(needed)
            for first in needed:
                self._following[first].append(i)
        # What a task asks for; tasks that ask for the same wait in one queue.
        claims: dict[tuple[float, float], int] = {}
        self._queue = []
        for task_id in self._order:
            execution = graph.nodes[task_id].execution
            claim = min(execution.workers * execution.cpus, cpus), min(execution.workers * execution.gpus, gpus)
            self._queue.append(claims.setdefault(claim, len(claims)))
        self._claims = list(claims)

    def elapsed(self, seconds: Mapping[str, float]) -> float:
        """Seconds until the last task has ended; `seconds`: of each task."""
        if not any(seconds.values()):
            return 0.0
        takes, missing = [seconds[task_id] for task_id in self._order], self._missing.copy()
        ready: list[list[int]] = [[] for _ in self._claims]
        for i, count in enumerate(missing):
            if count == 0:
                ready[self._queue[i]].append(i)  # in their order, which is a heap
        running: list[tuple[float, int]] = []  # by their ends
        now, free_cpus, free_gpus = 0.0, self._room[0] + 1e-9, self._room[1] + 1e-9
        while True:
            first = len(missing)
            for (cpus, gpus), queue in zip(self._claims, ready, strict=True):
                if queue and queue[0] < first and cpus <= free_cpus and gpus <= free_gpus:
                    first = queue[0]
            if first < len(missing):
                heapq.heappop(ready[self._queue[first]])
                heapq.heappush(running, (now + takes[first], first))
                cpus, gpus = self._claims[self._queue[first]]
                free_cpus, free_gpus = free_cpus - cpus, free_gpus - gpus
            elif running:
                now, ended = heapq.heappop(running)
                for i in self._following[ended]:
                    missing[i] -= 1
                    if missing[i] == 0:
                        heapq.heappush(ready[self._queue[i]], i)
                cpus, gpus = self._claims[self._queue[ended]]
                free_cpus, free_gpus = free_cpus + cpus, free_gpus + gpus
            else:
                return now
