"""Choose the next ready tasks for Ray, longest remaining path first; Ray places them on nodes.

Ray starts tasks of equal claims in the order in which it gets them, those of different claims in any (measured with
2.60), and one that becomes ready late comes last. So a task that many others need would wait for everything that was
submitted before. Placing is Ray's alone.

Tasks that share work (`runners.executor.sharing`) are given together. They wait for each other as long as those that
are not ready wait for copies of files alone. A group is split where there is more room than there are groups.

Tasks that measure the machine run alone: one is given when nothing else is ready, and nothing else while it runs. What
other runs do there meanwhile, nobody here knows.

Where another run has made the last task of a kind meanwhile, it may have made more: those that are ready are looked at
by one task of Ray, because to submit a task takes longer than to look. Those that are missing come back.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from graphlib import TopologicalSorter
from heapq import heappop, heappush

from boomspec.core.graph import TaskGraph
from boomspec.plan.schedule import longest_first
from runners.executor.sharing import NOTHING, Sharing, copies_files

_AHEAD = 1.5  # times what there is: free places are filled without waiting for us, and a cluster that can grow, does
_LOOK_SECONDS = 5.0  # machines come and go
_SHORT_SECONDS = 0.05  # tasks that take no longer are over sooner than we hear of it and submit the next one
# Of those so many more wait in Ray. (Empty tasks, 2 CPUs: 3 at a time take twice as long as 8, and 64 no less than 8.)
_MORE = 8
_LOOKED_AT = 32  # tasks, by one task of Ray

_Claims = tuple[tuple[str, float], ...]
_Machines = list[dict[str, float]]
_Part = tuple[str, ...]  # ids of tasks that Ray gets as one


class Ready:
    """The tasks of a run that Ray does not have yet. `machines` says what each machine has."""

    def __init__(
        self,
        graph: TaskGraph,
        task_ids: Iterable[str],
        shared: Sharing = NOTHING,
        *,
        machines: Callable[[], _Machines],
        ordered: bool = True,
    ) -> None:
        self._claims: dict[str, _Claims] = {}  # what all workers of a task take of the cluster
        for task_id in task_ids:
            execution = graph.nodes[task_id].execution
            claims = sorted(execution.claims.items())
            self._claims[task_id] = tuple((name, amount * execution.workers) for name, amount in claims)
        self._places = {task_id: place for place, task_id in enumerate(longest_first(graph))}
        self._following: dict[str, list[str]] = defaultdict(list)
        self._sorter: TopologicalSorter[str] = TopologicalSorter()
        self._ready: dict[_Claims, list[tuple[int, _Part]]] = defaultdict(list)  # heaps of (place, ids)
        self._machines, self._looked = machines, -_LOOK_SECONDS
        self._there: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._given: dict[str, _Part] = {}  # by the tasks of it that have not ended
        self._last: _Claims = ()
        self._exclusive = {task_id for task_id in self._claims if graph.nodes[task_id].task.record.exclusive}
        self._quiet: list[tuple[int, _Part]] = []  # a heap of those of them that are ready
        self._kinds = {task_id: graph.nodes[task_id].task.kind for task_id in self._claims}
        self._seconds: dict[str, float] = {}  # of the last task of each kind that has ended
        self._found: set[str] = set()  # kinds whose last task was there already
        self._missing: set[str] = set()  # tasks that were looked at
        self._needs: dict[str, set[str]] = {}  # what a task still waits for
        for task_id in self._claims:
            self._needs[task_id] = {i for i in graph.waits_for(task_id) if ordered and i in self._claims}
            self._sorter.add(task_id, *self._needs[task_id])
            for needed in self._needs[task_id]:
                self._following[needed].append(task_id)
        self._sorter.prepare()
        self._sharing = shared
        self._groups: dict[Hashable, set[str]] = defaultdict(set)  # those of a group that Ray does not have
        for task_id, group in self._sharing.groups.items():
            self._groups[group].add(task_id)
        self._quick = {task_id for task_id in self._claims if copies_files(graph.nodes[task_id].task.record)}
        self._held: set[str] = set()  # ready, and with a group

    def take(self) -> _Part:
        """The tasks to give to Ray now, as one; empty where none is ready, or Ray has enough."""
        for task_id in self._sorter.get_ready():
            if task_id in self._sharing.groups:
                self._held.add(task_id)
            else:
                heappush(self._queue(task_id), (self._places[task_id], (task_id,)))
        self._release()
        if not self._exclusive.isdisjoint(self._given):
            return ()
        # Where nothing runs there is always room: what Ray cannot place now, it keeps.
        found = [queue for queue in self._ready.values() if queue and not (self._given and self._full(queue[0][1]))]
        if not found and self._quiet and not self._given:
            found = [self._quiet]
        if not found:
            return ()
        _, part = heappop(min(found))
        self._given |= dict.fromkeys(part, part)
        self._last = self._claims[part[0]]
        self._taken.update(dict(self._last))
        return part

    def likely_made(self, part: _Part) -> list[_Part]:
        """What Ray gets together with `part`, which was taken, to look whether all of it has been made meanwhile."""
        queue, found = self._ready[self._claims[part[0]]], list[_Part]()
        if not self._may_be_made(part):
            return found
        while queue and len(found) < _LOOKED_AT - 1 and self._may_be_made(queue[0][1]):
            found.append(heappop(queue)[1])
        together = tuple(task_id for one in (part, *found) for task_id in one)
        self._given |= dict.fromkeys(together, together)
        return found

    def _may_be_made(self, part: _Part) -> bool:
        alone = len(part) == 1 and part[0] not in self._exclusive
        return alone and self._kinds[part[0]] in self._found and part[0] not in self._missing

    def missing(self, task_ids: Iterable[str]) -> None:
        """These were looked at: they have to be made, and are ready."""
        for task_id in task_ids:
            self._found.discard(self._kinds[task_id])
            self._missing.add(task_id)
            self._end_claims(task_id)
            heappush(self._queue(task_id), (self._places[task_id], (task_id,)))

    def ended(self, task_id: str, *, made: bool, found: bool = False, seconds: float = math.inf) -> list[str]:
        """A task has ended, after so long; `found`: it was made already. Returns those that can never start now."""
        kind = self._kinds[task_id]
        self._seconds[kind] = seconds
        (self._found.add if found else self._found.discard)(kind)
        self._end_claims(task_id)
        following = self._following.pop(task_id, [])
        if not made:
            self._groups[self._sharing.groups.get(task_id)].discard(task_id)
            return following
        for other in following:
            self._needs[other].discard(task_id)
        self._sorter.done(task_id)
        return []

    def _queue(self, task_id: str) -> list[tuple[int, _Part]]:
        return self._quiet if task_id in self._exclusive else self._ready[self._claims[task_id]]

    def _end_claims(self, task_id: str) -> None:
        """Ray does not have a task any more. Tasks that it has as one claim something until the last one has ended."""
        if (part := self._given.pop(task_id, None)) is not None and self._given.keys().isdisjoint(part):
            self._taken.subtract(dict(self._claims[task_id]))

    def _release(self) -> None:
        """Queue the groups of which no more tasks will be ready soon."""
        for group in dict.fromkeys(self._sharing.groups[task_id] for task_id in self._held):
            waiting = self._groups[group] - self._held
            if any(self._needs[task_id] and self._is_soon(task_id) for task_id in waiting):
                continue
            ready = self._groups[group] & self._held
            claims = self._claims[next(iter(ready))]
            others = sum(bool(ids) for key, ids in self._groups.items() if key is not None)
            for part in self._sharing.parts(
                sorted(ready, key=self._places.__getitem__), max(1, self._room(claims) // others)
            ):
                heappush(self._ready[claims], (min(self._places[task_id] for task_id in part), part))
            self._groups[group] -= ready
            self._held -= ready

    def _is_soon(self, task_id: str) -> bool:
        """Whether all that a task waits for copies files, and waits for nothing else."""
        return all(needed in self._quick and not self._needs[needed] for needed in self._needs[task_id])

    def _room(self, claims: _Claims) -> int:
        """How many tasks of such claims the whole cluster runs at the same time."""
        self._look()
        return max(1, int(min((self._there[name] // amount for name, amount in claims), default=1)))

    def _look(self) -> None:
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._there = Counter()
            for machine in self._machines():
                self._there.update(machine)
            self._looked = time.monotonic()

    def _is_short(self, part: _Part) -> bool:
        """Whether each of these takes hardly longer than to submit it, as the last one of its kind did."""
        return all(self._seconds.get(self._kinds[task_id], math.inf) <= _SHORT_SECONDS for task_id in part)

    def _full(self, part: _Part) -> bool:
        """Whether Ray has enough tasks already that claim something of what these do."""
        self._look()
        claims, more = self._claims[part[0]], _MORE if self._is_short(part) else 0
        limit = _AHEAD if claims == self._last else 1.0  # of other claims, it might overtake what waits there
        return any(self._taken[name] >= limit * self._there[name] + more * amount for name, amount in claims)
