"""Run a planned graph on Ray: submit every task that is ready, follow it, write down how it ended.

Every task is a remote function of its job: Ray places it and replaces lost workers. It is submitted when what it
needs has ended, those with the longest way to go first. A task that fails blocks only what needs it. This module
decides nothing about what must run (`boomspec/plan/plan.py`) and makes nothing itself (`runners/executor/worker.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import boomspec
import runners
from boomspec.core.execution import Execution
from boomspec.core.graph import TaskGraph
from boomspec.plan.plan import Plan, read_by
from boomspec.store import Store
from runners.cluster import ray_errors
from runners.cluster.head_watch import Head
from runners.cluster.ray_cluster import Lost, check_feasible, machines, without_room
from runners.cluster.store_check import Astray, UnreachedError, reached
from runners.executor.heartbeat import ALIVE, Silence
from runners.executor.ready import Ready
from runners.executor.tracking import Tracking
from runners.executor.view import View
from runners.executor.worker import execute
from runners.runtime import environment
from runners.runtime.interrupt import Interrupt
from runners.runtime.job import Input, Job, Outcome, Reach, below, describe
from runners.runtime.journal import Follower, Journal
from runners.runtime.provenance import git_commit

_POLL_SECONDS = 0.3
_GRACE_SECONDS = 10.0  # for bodies to write a checkpoint after an interrupt
_GRACE_AFAR_SECONDS = 40.0  # and to send it to the store


def run_tasks(
    graph: TaskGraph,
    store: Store,
    *,
    plan: Plan,
    checksums: bool,
    journal: Journal,
    view: View,
    interrupt: Interrupt,
    reads: Store | None = None,
    tracking: Tracking | None = None,
    head: Head | None = None,
    anew: bool = False,
) -> dict[str, Outcome]:
    """Run what `plan` says must run, on the cluster that Ray is connected to. Returns the outcomes by task id.

    `reads`: a store that holds every task's inputs already, so that no task waits for another. `tracking`: who else is
    told of metrics and results. `head`: of the cluster, when it is watched. `anew`: everything is computed, whatever
    the store has that was made of the same inputs. After an interrupt the tasks that have not ended are stopped, and
    their outcome is "interrupted". Raises BoomspecError for tasks that no machine of the cluster can run, and
    HeadLostError where the head is gone.
    """
    graph = _without_claims(graph, plan)
    nodes = [graph.nodes[task_id] for task_id in plan.work]
    available = machines()
    check_feasible(nodes, available)
    if any(machine.get("GPU", 0) for machine in available) and not any(node.execution.gpus for node in nodes):
        journal.event("note", message="there are GPUs, but no task asks for one (see `execution` in the spec)")
    # Looked at again: another run may have made it anew since the plan was drawn up.
    found = store.survey([(node.task.kind, node.id) for node in nodes], checksums=checksums)
    for kind, task_id in (task for task, damage in found.items() if damage is not None):
        store.discard(kind, task_id)
    with reached(store, journal, read_by(graph, plan), interrupted=lambda: interrupt.requested) as reach:
        twins = {task_id: plan.steps[task_id].same_as for task_id in plan.work}
        jobs = {
            job.node.id: replace(job, same_as=twins[job.node.id], anew=anew, checksums=checksums)
            for job in _jobs(graph, store, plan.work, journal, reads or store, reach)
        }
        ready = Ready(graph, jobs, machines=machines, ordered=reads is None)
        running = _Running(jobs, ready, journal, view, tracking)
        running.grace = _GRACE_AFAR_SECONDS if store.is_remote else _GRACE_SECONDS
        while not interrupt.requested:
            running.fill()
            if not running.pending:
                break
            for note in head.notes() if head is not None else ():
                journal.event("note", message=note)
            running.poll(_POLL_SECONDS)
        if len(running.outcomes) < len(jobs):
            journal.event("note", message="interrupted: stopping what runs")
            running.stop()
    return running.outcomes


def _without_claims(graph: TaskGraph, plan: Plan) -> TaskGraph:
    """The graph in which tasks that compute nothing, but are published under another id, claim no more than that."""
    least = Execution(cpus=1)
    published = {i: replace(graph.nodes[i], execution=least) for i in plan.work if plan.steps[i].same_as}
    return replace(graph, nodes={**graph.nodes, **published})


def _jobs(
    graph: TaskGraph, store: Store, task_ids: list[str], journal: Journal, reads: Store, reach: Reach | None
) -> Iterator[Job]:
    commit = git_commit(Path(boomspec.__file__).parent, Path(runners.__file__).parent)
    for task_id in task_ids:
        node = graph.nodes[task_id]
        kinds = {input_id: graph.nodes[input_id].task.kind for input_id in graph.task_inputs(task_id)}
        inputs = {
            role: Input(input_id) if input_id in kinds else Input(input_id, source=graph.sources[input_id])
            for role, input_id in node.task.inputs.items()
        }
        yield Job(
            node=node,
            inputs=inputs,
            input_kinds=kinds,
            store=store.address,
            reads=reads.address,
            run_folder=below(store.root, journal.folder),
            run=journal.run,
            commit=commit,
            hub=graph.reads_hub,
            reach=reach,
        )


class _Running:
    """The tasks that Ray has, and how those that ended did."""

    def __init__(
        self, jobs: Mapping[str, Job], ready: Ready, journal: Journal, view: View, tracking: Tracking | None
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.pending: dict[str, Any] = {}  # references by task id
        self.grace = _GRACE_SECONDS
        self._jobs, self._ready = jobs, ready
        self._journal, self._view, self._tracking = journal, view, tracking
        self._followers: dict[str, Follower] = {}
        self._attempts: dict[str, int] = {}
        self._silence, self._gone, self._astray = Silence(), Lost(), Astray()
        self._back: Counter[str] = Counter()  # how often a task has come back from a machine without the store
        self._stopping = False
        self._on_cpu = ray.remote(execute)
        self._on_gpu = ray.remote(max_calls=1)(execute)  # a process keeps its GPU memory: a fresh one for every task

    def fill(self) -> None:
        """Give Ray what it can start, and a little more."""
        while (task_id := self._ready.take()) is not None:
            self._submit(self._jobs[task_id])

    def _submit(self, job: Job) -> None:
        node, execution = job.node, job.node.execution
        options: dict[str, Any] = {"name": node.name, "max_retries": execution.retries}
        if execution.workers > 1:  # it must not hold what its workers need, nor live on when it was interrupted
            # Whoever coordinates others should be lost with the driver or not at all.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            remote = self._on_gpu.options(**options, num_cpus=0, num_gpus=0, scheduling_strategy=here)
        else:
            own = self._on_gpu if execution.gpus else self._on_cpu
            remote = own.options(
                **options,
                num_cpus=execution.cpus,
                num_gpus=execution.gpus,
                memory=execution.memory or None,
                resources=execution.resources or None,
                **environment.process_for(execution.gpus),
                **self._astray.options(node),
            )
        self._followers[node.id] = Follower(self._journal.progress(node.id))
        self.pending[node.id] = remote.remote(job)

    def poll(self, seconds: float) -> None:
        """Wait up to `seconds` for tasks to end; tell what has happened."""
        ended, _ = ray.wait(list(self.pending.values()), num_returns=1, timeout=seconds)
        if ended:  # there may be more than the one that was waited for
            ended, _ = ray.wait(list(self.pending.values()), num_returns=len(self.pending), timeout=0)
        for task_id in self.pending:
            self._follow(task_id)
        for task_id in [task_id for task_id, reference in self.pending.items() if reference in ended]:
            self._settle(task_id)
        lost = self._gone.names()
        for machine in lost:
            self._journal.event("note", message=f"the cluster has lost {machine}, with all that ran there")
        for node in without_room((self._jobs[i].node for i in self.pending), machines()) if lost else ():
            self._journal.event("note", node.id, message="no machine that is left has room for it: it waits for one")
        for task_id, note in self._silence.notes():
            self._journal.event("note", task_id, message=note)
        self._journal.note_failures()
        self._view.tick()

    def stop(self) -> None:
        """Interrupt every task, wait a little for checkpoints to be written, then kill."""
        self._stopping = True
        for task_id in [i for i in self._jobs if i not in self.pending and i not in self.outcomes]:
            self._end(task_id, self._interrupted(task_id))
        if not self.pending:
            return
        for reference in self.pending.values():
            ray.cancel(reference)
        ray.wait(list(self.pending.values()), num_returns=len(self.pending), timeout=self.grace)
        ended, alive = ray.wait(list(self.pending.values()), num_returns=len(self.pending), timeout=0)
        for reference in alive:
            ray.cancel(reference, force=True)
        ray.wait(list(self.pending.values()), num_returns=len(self.pending), timeout=_GRACE_SECONDS)
        for task_id, reference in list(self.pending.items()):
            if reference in ended:
                self._settle(task_id)
            else:
                self._end(task_id, self._interrupted(task_id))

    def _settle(self, task_id: str) -> None:
        """Take the result of a task that has ended."""
        if task_id not in self.pending:
            return
        try:
            outcome: Outcome = ray.get(self.pending[task_id])
        except TaskCancelledError:
            outcome = self._interrupted(task_id)
        except RayTaskError as error:
            if isinstance(error.cause, UnreachedError):
                self._elsewhere(task_id, error.cause)
                return
            outcome = self._without_outcome(task_id, error)
        except RayError as error:
            outcome = self._without_outcome(task_id, error)
        self._end(task_id, outcome)

    def _elsewhere(self, task_id: str, error: UnreachedError) -> None:
        """A task has come back from a machine that does not reach the store: others may, so often as it is retried."""
        if told := self._astray.found(error):
            self._journal.event("note", message=told)
        self._back[task_id] += 1
        if self._stopping:
            self._end(task_id, self._interrupted(task_id))
        elif self._back[task_id] <= self._jobs[task_id].node.execution.retries:
            self._submit(self._jobs[task_id])
        else:
            name = self._name(task_id)
            self._end(task_id, Outcome(name, "failed", describe(error), name))

    def _without_outcome(self, task_id: str, error: RayError) -> Outcome:
        """A task of which Ray gives an error: its worker was lost, or something failed around its body."""
        name = self._name(task_id)
        self._follow(task_id)  # it may have begun once more
        with suppress(OSError), self._journal.log(task_id).open("a", encoding="utf-8") as log:
            log.write(ray_errors.trace(error))
        return Outcome(name, "failed", ray_errors.explained(error, attempts=self._attempts.get(task_id, 0)), name)

    def _interrupted(self, task_id: str) -> Outcome:
        name = self._name(task_id)
        return Outcome(name, "interrupted", "interrupted", name)

    def _end(self, task_id: str, outcome: Outcome) -> None:
        """Note how a task has ended; what needs it can start now, or never."""
        if task_id in self.pending:
            self._follow(task_id)
            self._silence.ended(task_id)
            del self.pending[task_id]
        self.outcomes[task_id] = outcome
        details: dict[str, Any] = {"seconds": round(outcome.seconds, 1)} if outcome.seconds else {}
        if outcome.error:
            details["error"] = outcome.error
        if outcome.same_as:
            details["same_as"] = outcome.same_as
        state = "finished" if outcome.state == "made" else outcome.state
        self._journal.event(f"task_{state}", task_id, **details)
        if outcome.succeeded and self._tracking is not None:
            self._tracking.ended([task_id])
        for following in self._ready.ended(task_id, made=outcome.succeeded):
            if following not in self.outcomes and outcome.state != "interrupted":
                why = f"needs {outcome.cause}, which failed"
                self._end(following, Outcome(self._name(following), "blocked", why, outcome.cause))

    def _name(self, task_id: str) -> str:
        return self._jobs[task_id].node.name

    def _follow(self, task_id: str) -> None:
        """Tell what a task has said about itself."""
        for line in self._followers[task_id].lines():
            self._silence.heard(task_id, line)
            if "started" in line:
                self._started(task_id, line["started"])
            elif "note" in line:
                self._journal.event("note", task_id, message=str(line["note"]))
            elif ALIVE not in line:
                rows = line.pop("rows", [])
                if self._tracking is not None:
                    self._tracking.rows(task_id, rows)
                self._view.progress(task_id, line)

    def _started(self, task_id: str, worker: dict[str, Any]) -> None:
        if worker.get("run") != self._journal.run:
            return  # another run of this graph
        attempt = self._attempts[task_id] = self._attempts.get(task_id, 0) + 1
        place = {"host": worker.get("host"), "pid": worker.get("pid")}
        if attempt == 1:
            self._journal.event("task_started", task_id, **place)
        else:
            self._journal.event("task_retried", task_id, attempt=attempt, **place)
