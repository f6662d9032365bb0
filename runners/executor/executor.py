"""Run a planned graph on Ray: submit every task that is ready, follow it, write down how it ended.

Every task is a remote function of its job: Ray places it and replaces lost workers. It is submitted when what it
needs has ended, those with the longest way to go first. A task that fails blocks only what needs it. This module
does not decide what must run (`boomspec/plan/plan.py`) and makes nothing itself (`runners/executor/worker.py`).
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import boomspec
import runners
from boomspec.core.errors import describe
from boomspec.core.execution import Execution
from boomspec.core.graph import TaskGraph
from boomspec.plan.plan import RunPlan, sources_read
from boomspec.store import Store
from runners.cluster import ray_errors
from runners.cluster.head_watch import RayHead
from runners.cluster.ray_cluster import LostMachines, check_feasible, fits, machines
from runners.cluster.store_check import ExcludedMachines, UnreachedError, checked_machines
from runners.executor.heartbeat import ALIVE, Heartbeats
from runners.executor.ready import Ready
from runners.executor.sharing import Sharing, sharing
from runners.executor.tracking import Tracking
from runners.executor.view import View
from runners.executor.worker import execute, found
from runners.runtime import environment
from runners.runtime.interrupt import Interrupt
from runners.runtime.job import CheckedMachines, Input, Job, Outcome, below
from runners.runtime.journal import Follower, Journal
from runners.runtime.provenance import git_commit

_POLL_SECONDS = 0.3
_GRACE_SECONDS = 10.0  # for bodies to write a checkpoint after an interrupt
_REMOTE_GRACE_SECONDS = 40.0  # and to upload it


def run_tasks(
    graph: TaskGraph,
    store: Store,
    *,
    plan: RunPlan,
    checksums: bool = False,
    journal: Journal,
    view: View,
    interrupt: Interrupt,
    reads: Store | None = None,
    tracking: Tracking | None = None,
    head: RayHead | None = None,
    anew: bool = False,
) -> dict[str, Outcome]:
    """Run the tasks of `plan` that must run, on the cluster that Ray is connected to. Returns the outcomes by task id.

    `reads`: a store that holds every task's inputs already, so that no task waits for another. `tracking`: gets
    metrics and results. `head`: of the cluster, when it is watched. `anew`: everything is computed, whatever the store
    has that was made of the same inputs. After an interrupt the tasks that have not ended are stopped, and their
    outcome is "interrupted". Raises BoomspecError for tasks that no machine of the cluster can run, and HeadLostError
    where the head is gone.
    """
    least = Execution(cpus=1)  # of tasks that compute nothing, but are published under another id
    published = {i: replace(graph.nodes[i], execution=least) for i in plan.work if plan.steps[i].same_as}
    graph = replace(graph, nodes={**graph.nodes, **published})
    nodes = [graph.nodes[task_id] for task_id in plan.work]
    available = machines()
    check_feasible(nodes, available)
    if any(machine.get("GPU", 0) for machine in available) and not any(node.execution.gpus for node in nodes):
        journal.event("note", message="there are GPUs, but no task asks for one (see `execution` in the spec)")
    # Looked at again: another run may have made it anew since the plan was drawn up.
    found = store.survey([(node.task.kind, node.id) for node in nodes], checksums=checksums)
    for kind, task_id in (task for task, damage in found.items() if damage is not None):
        store.discard(kind, task_id)
    sources, interrupted = sources_read(graph, plan), lambda: interrupt.requested
    with checked_machines(store, journal, sources, interrupted=interrupted) as checked:
        jobs = {
            job.node.id: replace(job, same_as=plan.steps[job.node.id].same_as, anew=anew, checksums=checksums)
            for job in _jobs(graph, store, plan.work, journal, reads or store, checked)
        }
        shared = _shared(graph, jobs, reads or store)
        ready = Ready(graph, jobs, shared, machines=machines, ordered=reads is None)
        running = _Running(jobs, ready, journal, view, tracking)
        running.grace = _REMOTE_GRACE_SECONDS if store.is_remote else _GRACE_SECONDS
        while not interrupt.requested:
            while part := ready.take():  # what Ray can start, and a little more
                running.submit(part, look=ready.likely_made(part))
            if not running.parts:
                break
            for note in head.notes() if head is not None else ():
                journal.event("note", message=note)
            running.poll(_POLL_SECONDS)
        if len(running.outcomes) < len(jobs):
            journal.event("note", message="interrupted: stopping what runs")
            running.stop()
    return running.outcomes


def _jobs(
    graph: TaskGraph, store: Store, task_ids: list[str], journal: Journal, reads: Store, checked: CheckedMachines | None
) -> Iterator[Job]:
    commit = git_commit(Path(boomspec.__file__).parent, Path(runners.__file__).parent)
    for task_id in task_ids:
        node = graph.nodes[task_id]
        kinds = {input_id: graph.nodes[input_id].task.kind for input_id in graph.task_inputs(task_id)}
        yield Job(
            node=node,
            inputs={role: Input(i, source=graph.sources.get(i)) for role, i in node.task.inputs.items()},
            input_kinds=kinds,
            store=store.address,
            reads=reads.address,
            run_folder=below(store.root, journal.folder),
            run=journal.run,
            commit=commit,
            hub=graph.reads_hub,
            machines=checked,
        )


def _shared(graph: TaskGraph, jobs: dict[str, Job], store: Store) -> Sharing:
    """What the jobs share. Those that may be computed with others get what that reads; `store` has or gets it."""

    def has(model: str) -> bool:
        return model not in graph.nodes or model in jobs or store.has(graph.nodes[model].task.kind, model)

    memory = max((machine.get("memory", 0.0) for machine in machines()), default=0.0)
    shared = sharing(graph, jobs, has=has, memory=memory)
    for task_id, model in shared.models.items():
        owners = {"teacher": model.teacher} | ({"student": model.student} if model.student else {})
        made = {i: graph.nodes[i].task.kind for i in owners.values() if i in graph.nodes}
        read = {role: Input(i, source=graph.sources.get(i)) for role, i in owners.items()}
        kinds = jobs[task_id].input_kinds | made
        jobs[task_id] = replace(jobs[task_id], plan=model.plan, owners=read, input_kinds=kinds)
    return shared


class _Running:
    """The tasks that Ray has, and the outcomes of those that have ended."""

    def __init__(
        self, jobs: Mapping[str, Job], ready: Ready, journal: Journal, view: View, tracking: Tracking | None
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.parts: dict[Any, tuple[str, ...]] = {}  # by Ray's reference the ids of tasks that it has as one
        self.grace = _GRACE_SECONDS
        self._jobs, self._ready = jobs, ready
        self._journal, self._view, self._tracking = journal, view, tracking
        self._said: set[str | None] = set()  # notes that one task makes for all
        self._followers: dict[str, Follower] = {}
        self._attempts: dict[str, int] = {}
        self._heartbeats, self._lost, self._excluded = Heartbeats(), LostMachines(), ExcludedMachines()
        self._returned: Counter[str] = Counter()  # how often a task has come back from a machine without the store
        self._looking: set[Any] = set()  # references of what makes nothing
        self._stopping = False
        self._followed = 0.0
        self._on_cpu = ray.remote(execute)
        self._look = ray.remote(found)
        self._on_gpu = ray.remote(max_calls=1)(execute)  # a process keeps its GPU memory: a fresh one for every task

    def submit(self, part: tuple[str, ...], look: Sequence[tuple[str, ...]] = ()) -> None:
        """Give tasks to Ray that are computed together: the execution of all is the same.

        look: others, which are only looked at, and so is `part` then.
        """
        part = tuple(task_id for one in (part, *look) for task_id in one)
        node = self._jobs[part[0]].node
        execution, more = node.execution, f" and {len(part) - 1} more" if len(part) > 1 else ""
        options: dict[str, Any] = {"name": f"{node.name}{more}", "max_retries": execution.retries}
        if execution.workers > 1:  # it must not hold what its workers need, nor live on when it was interrupted
            # A coordinator should be lost with the driver or not at all.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            remote = self._on_gpu.options(**options, num_cpus=0, num_gpus=0, scheduling_strategy=here)
        else:
            remote = (self._look if look else self._on_gpu if execution.gpus else self._on_cpu).options(
                **options,
                num_cpus=execution.cpus,
                num_gpus=execution.gpus,
                memory=execution.memory * (len(part) if node.task.record.trains else 1) or None,
                resources=execution.resources or None,
                **environment.process_for(execution.gpus),
                **self._excluded.options(node),
            )
        self._followers |= {task_id: Follower(self._journal.progress(task_id)) for task_id in part}
        self.parts[reference := remote.remote([self._jobs[task_id] for task_id in part])] = part
        if look:
            self._looking.add(reference)

    def poll(self, seconds: float) -> None:
        """Wait up to `seconds` for tasks to end; report what has happened."""
        ended, _ = ray.wait(list(self.parts), num_returns=1, timeout=seconds)
        if ended:  # there may be more than the one that was waited for
            ended, _ = ray.wait(list(self.parts), num_returns=len(self.parts), timeout=0)
        for reference in ended:
            self._settle(reference)
        if time.monotonic() - self._followed >= _POLL_SECONDS:  # short tasks end much more often
            for task_id in self._given():
                self._follow(task_id)
            self._followed = time.monotonic()
        if lost := self._lost.names():
            for machine in lost:
                self._journal.event("note", message=f"the cluster has lost {machine}, with all that ran there")
            for node in (self._jobs[task_id].node for task_id in self._given()):
                if not fits(node, machines(), fewest=True):
                    message = "no machine that is left has room for it: it waits for one"
                    self._journal.event("note", node.id, message=message)
        for task_id, note in self._heartbeats.notes():
            self._journal.event("note", task_id, message=note)
        self._journal.note_failures()
        self._journal.flush()
        self._view.tick()

    def stop(self) -> None:
        """Interrupt every task, wait a little for checkpoints to be written, then kill."""
        self._stopping = True
        given = set(self._given())
        for task_id in [i for i in self._jobs if i not in given and i not in self.outcomes]:
            self._end(task_id, self._outcome(task_id))
        if not self.parts:
            return
        for reference in self.parts:
            ray.cancel(reference)
        ray.wait(list(self.parts), num_returns=len(self.parts), timeout=self.grace)
        ended, alive = ray.wait(list(self.parts), num_returns=len(self.parts), timeout=0)
        for reference in alive:
            ray.cancel(reference, force=True)
        ray.wait(list(self.parts), num_returns=len(self.parts), timeout=_GRACE_SECONDS)
        for reference in ended:
            self._settle(reference)
        for task_id in self._given():
            self._end(task_id, self._outcome(task_id))

    def _given(self) -> list[str]:
        """The tasks that Ray has."""
        return [task_id for part in self.parts.values() for task_id in part if task_id not in self.outcomes]

    def _settle(self, reference: Any) -> None:
        part = self.parts[reference]
        try:
            outcomes: Mapping[str, Outcome] = ray.get(reference)
        except TaskCancelledError:
            outcomes = {task_id: self._outcome(task_id) for task_id in part}
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, UnreachedError):
                self._run_elsewhere(reference, cause)
                return
            outcomes = {} if reference in self._looking else {i: self._failed(i, error) for i in part}
        for task_id in part:
            if task_id in outcomes:
                self._end(task_id, outcomes[task_id])
        del self.parts[reference]
        self._looking.discard(reference)
        if missing := [task_id for task_id in part if task_id not in outcomes]:
            self._ready.missing(missing)

    def _failed(self, task_id: str, error: RayError) -> Outcome:
        self._follow(task_id)  # it may have begun once more
        with suppress(OSError), self._journal.log(task_id).open("a", encoding="utf-8") as log:
            log.write(ray_errors.trace(error))
        explained = ray_errors.describe_ray_error(error, attempts=self._attempts.get(task_id, 0))
        return self._outcome(task_id, "failed", explained)

    def _run_elsewhere(self, reference: Any, error: UnreachedError) -> None:
        """Submit tasks again that came back from a machine without the store, as often as they are retried."""
        if note := self._excluded.add(error):
            self._journal.event("note", message=note)
        part = self.parts.pop(reference)
        if reference in self._looking and not self._stopping:
            self._looking.remove(reference)
            self._ready.missing(part)
            return
        self._returned.update(part)
        execution = self._jobs[part[0]].node.execution
        if not self._stopping and max(self._returned[task_id] for task_id in part) <= execution.retries:
            self.submit(part)
            return
        ended = ("interrupted", "interrupted") if self._stopping else ("failed", describe(error))
        for task_id in part:
            self._end(task_id, self._outcome(task_id, *ended))

    def _outcome(self, task_id: str, state: Any = "interrupted", error: str = "interrupted") -> Outcome:
        name = self._jobs[task_id].node.name
        return Outcome(name, state, error, cause=name)

    def _end(self, task_id: str, outcome: Outcome) -> None:
        """Note how a task has ended. What needs it can start now, or never."""
        if task_id in self._followers:
            self._follow(task_id)
            self._heartbeats.ended(task_id)
            del self._followers[task_id]
        self.outcomes[task_id] = outcome
        details: dict[str, Any] = {"seconds": round(outcome.seconds, 1)} if outcome.seconds else {}
        details |= {name: value for name in ("error", "same_as") if (value := getattr(outcome, name))}
        state = "finished" if outcome.state == "made" else outcome.state
        self._journal.event(f"task_{state}", task_id, **details)
        if outcome.succeeded and self._tracking is not None:
            self._tracking.ended([task_id])
        made = outcome.succeeded
        for following in self._ready.ended(
            task_id, made=made, found=outcome.state == "reused", seconds=outcome.seconds
        ):
            if following not in self.outcomes and outcome.state != "interrupted":
                blocked = self._outcome(following, "blocked", f"needs {outcome.cause}, which failed")
                self._end(following, replace(blocked, cause=outcome.cause))

    def _follow(self, task_id: str) -> None:
        """Pass on what a task has reported about itself."""
        for line in self._followers[task_id].lines():
            self._heartbeats.received(task_id, line)
            if "started" in line and (worker := line["started"]).get("run") != self._journal.run:
                continue  # another run of this graph
            if "started" in line:
                attempt = self._attempts[task_id] = self._attempts.get(task_id, 0) + 1
                event, more = ("task_started", {}) if attempt == 1 else ("task_retried", {"attempt": attempt})
                self._journal.event(event, task_id, **more, host=worker.get("host"), pid=worker.get("pid"))
            elif "note" in line:
                if (about := line.get("once")) is None or about not in self._said:
                    self._said.add(about)
                    self._journal.event("note", task_id, message=str(line["note"]))
            elif ALIVE not in line:
                rows = line.pop("rows", [])
                if self._tracking is not None:
                    self._tracking.rows(task_id, rows)
                self._view.progress(task_id, line)
