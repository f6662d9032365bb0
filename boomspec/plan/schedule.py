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
        start = max((ends[i] for i in graph.waits_for(task_id)), default=0.0)
        ends[task_id] = start + seconds.get(task_id, 0.0)
    return max(ends.values(), default=0.0)


def elapsed(graph: TaskGraph, seconds: Mapping[str, float], *, cpus: float, gpus: float) -> float:
    """Seconds until the last task in `seconds` has ended. A task that asks for more than there is gets all of it."""
    return Simulation(graph, seconds, cpus=cpus, gpus=gpus).elapsed(seconds)


class Simulation:
    """The same for several assumptions about how long the same tasks take."""

    def __init__(self, graph: TaskGraph, task_ids: Iterable[str], *, cpus: float, gpus: float) -> None:
        self._places = {task_id: i for i, task_id in enumerate(longest_first(graph))}
        self._room = cpus, gpus
        self._missing = dict.fromkeys(task_ids, 0)  # how many tasks each one waits for
        self._following: dict[str, list[str]] = {i: [] for i in self._missing}
        self._claims: dict[str, tuple[float, float]] = {}
        for i in self._missing:
            execution = graph.nodes[i].execution
            self._claims[i] = (
                min(execution.workers * execution.cpus, cpus),
                min(execution.workers * execution.gpus, gpus),
            )
            for needed in graph.waits_for(i):
                if needed in self._missing:
                    self._following[needed].append(i)
                    self._missing[i] += 1

    def elapsed(self, seconds: Mapping[str, float]) -> float:
        """Seconds until the last task has ended; `seconds`: of each task."""
        if not any(seconds.values()):
            return 0.0
        missing, claims, places = dict(self._missing), self._claims, self._places
        ready = {claim: list[tuple[int, str]]() for claim in set(claims.values())}
        running: list[tuple[float, int, str]] = []  # by their ends
        now, free_cpus, free_gpus = 0.0, self._room[0] + 1e-9, self._room[1] + 1e-9
        can_start = [i for i, count in missing.items() if count == 0]
        while True:
            for i in can_start:
                heapq.heappush(ready[claims[i]], (places[i], i))
            can_start = []
            fitting = [queue[0] for (c, g), queue in ready.items() if queue and c <= free_cpus and g <= free_gpus]
            if fitting:
                place, task_id = min(fitting)
                heapq.heappop(ready[claims[task_id]])
                heapq.heappush(running, (now + seconds[task_id], place, task_id))
                sign = -1
            elif running:
                now, _, task_id = heapq.heappop(running)
                for i in self._following[task_id]:
                    missing[i] -= 1
                    if missing[i] == 0:
                        can_start.append(i)
                sign = 1
            else:
                return now
            free_cpus, free_gpus = free_cpus + sign * claims[task_id][0], free_gpus + sign * claims[task_id][1]
