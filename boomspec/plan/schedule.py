"""How long a plan takes on so many CPUs and GPUs: what is ready starts longest first, as soon as there is room."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping

from boomspec.core.graph import TaskGraph
from boomspec.plan.order import longest_first


def critical_path(graph: TaskGraph, seconds: Mapping[str, float]) -> float:
    """The longest chain of tasks that wait for each other; tasks that are not in `seconds` take none."""
    ends: dict[str, float] = {}
    for task_id in graph.nodes:
        start = max((ends[i] for i in graph.waits_for(task_id)), default=0.0)
        ends[task_id] = start + seconds.get(task_id, 0.0)
    return max(ends.values(), default=0.0)


def elapsed(graph: TaskGraph, seconds: Mapping[str, float], *, cpus: float, gpus: float) -> float:
    """Seconds until the last task in `seconds` has ended. A task that asks for more than there is gets all of it."""
    if not any(seconds.values()):
        return 0.0
    waiting: dict[str, int] = {}
    behind: dict[str, list[str]] = defaultdict(list)
    for task_id in seconds:
        first = [i for i in graph.waits_for(task_id) if i in seconds]
        waiting[task_id] = len(first)
        for needed in first:
            behind[needed].append(task_id)
    order = {task_id: i for i, task_id in enumerate(longest_first(graph))}
    wants = {}
    for task_id in seconds:
        asked = graph.nodes[task_id].execution
        wants[task_id] = min(asked.workers * asked.cpus, cpus), min(asked.workers * asked.gpus, gpus)
    ready = {kind: list[tuple[int, str]]() for kind in set(wants.values())}

    def offer(task_id: str) -> None:
        heapq.heappush(ready[wants[task_id]], (order[task_id], task_id))

    for task_id, count in waiting.items():
        if count == 0:
            offer(task_id)
    running: list[tuple[float, int, str]] = []
    now, free = 0.0, [cpus, gpus]
    while True:
        fitting = [queue[0] for want, queue in ready.items() if queue and _fits(want, free)]
        if fitting:
            place, task_id = min(fitting)
            heapq.heappop(ready[wants[task_id]])
            free = [free[0] - wants[task_id][0], free[1] - wants[task_id][1]]
            heapq.heappush(running, (now + seconds[task_id], place, task_id))
        elif running:
            now, _, task_id = heapq.heappop(running)
            free = [free[0] + wants[task_id][0], free[1] + wants[task_id][1]]
            for following in behind[task_id]:
                waiting[following] -= 1
                if waiting[following] == 0:
                    offer(following)
        else:
            return now


def _fits(want: tuple[float, float], free: list[float]) -> bool:
    return want[0] <= free[0] + 1e-9 and want[1] <= free[1] + 1e-9
