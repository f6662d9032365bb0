"""Choose the next ready task for Ray, longest remaining path first; Ray places it on a node.

Ray starts tasks of equal claims in the order in which it gets them, those of different claims in any (measured with
2.60), and one that becomes ready late comes last. So a task that many others need would wait for everything that was
submitted before. Placing is Ray's alone.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from heapq import heappop, heappush

from boomspec.core.graph import TaskGraph
from boomspec.plan.schedule import longest_first

_AHEAD = 1.5  # times what there is: free places are filled without waiting for us, and a cluster that can grow, does
_LOOK_SECONDS = 5.0  # machines come and go

_Claims = tuple[tuple[str, float], ...]
_Machines = list[dict[str, float]]


class Ready:
    """The tasks of a run that Ray does not have yet. `machines` says what each machine has."""

    def __init__(
        self, graph: TaskGraph, task_ids: Iterable[str], *, machines: Callable[[], _Machines], ordered: bool = True
    ) -> None:
        self._claims: dict[str, _Claims] = {}  # what all workers of a task take of the cluster
        for task_id in task_ids:
            execution = graph.nodes[task_id].execution
            claims = sorted(execution.claims.items())
            self._claims[task_id] = tuple((name, amount * execution.workers) for name, amount in claims)
        self._places = {task_id: place for place, task_id in enumerate(longest_first(graph))}
        self._following: dict[str, list[str]] = defaultdict(list)
        self._sorter: TopologicalSorter[str] = TopologicalSorter()
        self._ready: dict[_Claims, list[tuple[int, str]]] = defaultdict(list)  # heaps of (place, task id)
        self._machines, self._looked = machines, -_LOOK_SECONDS
        self._there: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._given: set[str] = set()
        self._last: _Claims = ()
        for task_id in self._claims:
            needs = [needed for needed in graph.waits_for(task_id) if ordered and needed in self._claims]
            self._sorter.add(task_id, *needs)
            for needed in needs:
                self._following[needed].append(task_id)
        self._sorter.prepare()

    def take(self) -> str | None:
        """The task to give to Ray now; None where none is ready, or Ray has enough."""
        for task_id in self._sorter.get_ready():
            heappush(self._ready[self._claims[task_id]], (self._places[task_id], task_id))
        # Where nothing runs there is always room: what Ray cannot place now, it keeps.
        found = [queue for claims, queue in self._ready.items() if queue and not (self._given and self._full(claims))]
        if not found:
            return None
        _, task_id = heappop(min(found))
        self._given.add(task_id)
        self._last = self._claims[task_id]
        self._taken.update(dict(self._last))
        return task_id

    def ended(self, task_id: str, *, made: bool) -> list[str]:
        """A task has ended. Returns those that can never start, because they need it and it was not made."""
        if task_id in self._given:
            self._given.remove(task_id)
            self._taken.subtract(dict(self._claims[task_id]))
        if not made:
            return self._following.pop(task_id, [])
        self._sorter.done(task_id)
        return []

    def _full(self, claims: _Claims) -> bool:
        """Whether Ray has enough tasks already that claim something of this."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._there = Counter()
            for machine in self._machines():
                self._there.update(machine)
            self._looked = time.monotonic()
        limit = _AHEAD if claims == self._last else 1.0  # of other claims, it might overtake what waits there
        return any(self._taken[name] >= limit * self._there[name] for name, _ in claims)
