"""Run tasks in a Ray worker: claim them, execute their body, publish their artifacts.

In: a `Job` (plain data), or several that share work. Out: an `Outcome` for each; an exception of the body is an
outcome, too, so Ray does not retry it. Ray does retry a lost worker: then `execute` starts anew and the body continues
from the checkpoints in `Context.resume`. A machine that does not reach the store makes no outcome: the executor submits
the tasks again for another one.
"""

import importlib
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError, describe, first_line
from boomspec.core.tasks.training import BEFORE
from boomspec.store import Store, Workspace, open_store
from boomspec.store.made_of import content_key, publish_equal
from runners.cluster.store_check import UnreachedError, opened
from runners.executor.heartbeat import beating
from runners.runtime import environment
from runners.runtime.context import Context, PlannedLayers, Progress, Together
from runners.runtime.job import Input, Job, Outcome, TaskState
from runners.runtime.journal import log_file, make_subfolders, progress_file
from runners.runtime.output import captured
from runners.runtime.provenance import provenance
from runners.runtime.relay import relayed
from runners.runtime.task_errors import detect_full_disk, named, names_of
from runners.training.remote_checkpoint import remote_checkpoints


@dataclass(frozen=True)
class _Claimed:
    """A task that this worker has to make. `key`: of the content of its inputs, where it is known."""

    job: Job
    progress: Progress
    key: str | None


def execute(jobs: Sequence[Job]) -> dict[str, Outcome]:
    """Make the artifacts of one job, or of several that are computed together. Returns the outcomes by task id.

    Raises only KeyboardInterrupt, and UnreachedError.
    """
    started, first, outcomes = time.time(), jobs[0], dict[str, Outcome]()

    def ended(job: Job, state: TaskState, same_as: str = "", *, error: Exception | None = None) -> None:
        name, why, seconds = job.node.name, "" if error is None else describe(error), time.time() - started
        outcomes[job.node.id] = Outcome(name, state, why, name if error else "", seconds / len(jobs), same_as)

    def failed(error: Exception) -> None:
        for job in jobs:
            if job.node.id not in outcomes:
                ended(job, "failed", error=error)

    try:
        store, sees_run_folder = opened(first)
        folder = first.folder(store)
        with detect_full_disk(folder), ExitStack() as sent:
            if not sees_run_folder:  # what the task writes into its files goes to the driver
                make_subfolders(folder)
            for job in jobs:
                if not sees_run_folder and job.relay is not None:
                    sent.enter_context(relayed(job.relay, folder, job.node.id))
            each = [(job, Progress(progress_file(folder, job.node.id))) for job in jobs]
            for _, progress in each:
                progress.started(started, run=first.run)
            if store.is_remote:
                store = open_store(first.store, report=each[0][1].note)
            if len(jobs) == 1 and _is_made(first, store):
                ended(first, "reused")
                return outcomes
            for job in jobs:
                if job is not first:
                    with log_file(folder, job.node.id).open("a", encoding="utf-8") as log:
                        log.write(f"computed together with {first.node.name}: see {first.node.id}.log\n")
            with captured(log_file(folder, first.node.id)), beating(Together([progress for _, progress in each])):
                # SystemExit is not caught: it is how Ray ends a worker on a node that goes away, and then tries again.
                try:
                    for job, state, detail in _make(each, store, started):
                        if isinstance(detail, Exception):
                            ended(job, state, error=detail)
                        else:
                            ended(job, state, detail)
                except Exception as error:
                    traceback.print_exc()
                    failed(error)
    except UnreachedError:
        raise
    except BoomspecError as error:  # before there was a log, or of a disk that has no room for it
        failed(error)
    return outcomes


def found(jobs: Sequence[Job]) -> dict[str, Outcome]:
    """Outcomes of those of the tasks that another run has made meanwhile; nothing is made. Raises UnreachedError."""
    store, sees_run_folder = opened(jobs[0])
    folder, outcomes = jobs[0].folder(store), dict[str, Outcome]()
    for job in jobs:
        started = time.time()
        if _is_made(job, store):
            if sees_run_folder:
                Progress(progress_file(folder, job.node.id)).started(started, run=job.run)
            outcomes[job.node.id] = Outcome(job.node.name, "reused", seconds=time.time() - started)
    return outcomes


def _is_made(job: Job, store: Store) -> bool:
    """Whether another run has made it. It is asked again once there is a log, and the task's lock: they take longer."""
    with suppress(BoomspecError, OSError):
        return store.is_whole(job.node.task.kind, job.node.id)
    return False


_STUDENT = "student"  # the role of an input
_Ended = tuple[Job, TaskState, str | Exception]  # with the id of what is equal, or why it failed


def _make(each: Sequence[tuple[Job, Progress]], store: Store, started: float) -> Iterator[_Ended]:
    """Make and publish the artifacts.

    Nothing is made where another run has made it meanwhile, nor where there is one that was made of the same inputs
    byte for byte: that is published under this id, too, and its own is returned.
    """
    first = each[0][0]
    environment.apply_once(store.root, hub=first.hub)
    threads = environment.apply_resources(cpus=first.node.execution.cpus, gpus=first.node.execution.gpus)
    claimed: list[_Claimed] = []
    with ExitStack() as claims:
        # In one order everywhere: two runs that claim several tasks never wait for each other.
        for job, progress in sorted(each, key=lambda one: one[0].node.id):
            task, waiting = job.node.task, "another run is at work on this; waiting for it"
            note = partial(progress.note, waiting)
            claims.enter_context(store.claimed(task.kind, task.id, owner=job.run, waiting=note))
            if store.is_whole(task.kind, task.id):
                yield job, "reused", ""
                continue
            key = None if job.anew else content_key(store, task, job.input_kinds)
            if key is not None and (equal := _publish_equal(job, store, key)):
                yield job, "reused", equal
            elif job.same_as:
                what = f"{task.kind} {job.same_as[:12]}, which was made of the same inputs, is gone or damaged"
                yield job, "failed", BoomspecError(f"{what} since the plan was drawn up", hint="run again")
            else:
                claimed.append(_Claimed(job, progress, key))
        order = [job.node.id for job, _ in each]
        claimed.sort(key=lambda one: order.index(one.job.node.id))
        if claimed:
            yield from _compute(claimed, store, threads, started)


def _compute(claimed: Sequence[_Claimed], store: Store, threads: int, started: float) -> Iterator[_Ended]:
    """Run the bodies, of several tasks together where there are several. If that fails, one task after the other."""
    first, together = claimed[0].job, len(claimed) > 1
    execution, task, made = first.node.execution, first.node.task, set[str]()
    try:
        if execution.workers > 1:  # each machine of theirs fetches for itself
            inputs, layers = first.inputs, dict[str, PlannedLayers]()
            body = importlib.import_module("runners.training.ray_train").train_together  # it takes seconds to import
        else:
            inputs, layers = _inputs([one.job for one in claimed], claimed[0].progress)
            module = importlib.import_module(f"runners.tasks.{task.kind}")
            body = module.run_together if together else module.run
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(threads)  # a process is used again, and torch reads OMP_NUM_THREADS only once
        with ExitStack() as opened:
            work = [opened.enter_context(store.workspace(one.job.node.task.kind, one.job.node.id)) for one in claimed]
            contexts = [
                _context(one, space, inputs, store, layers.get(one.job.node.id))
                for one, space in zip(claimed, work, strict=True)
            ]
            opened.enter_context(detect_full_disk(work[0].path, Path(tempfile.gettempdir())))
            opened.enter_context(named(names_of(first.node.name, inputs, work[0].path)))
            for number, error in body(contexts) if together else [(0, body(contexts[0]))]:
                one = claimed[number]
                if error is None:
                    _publish(one, contexts[number], work[number], store, started, shared_by=len(claimed))
                else:
                    traceback.print_exception(error)
                made.add(one.job.node.id)
                yield one.job, "made" if error is None else "failed", error or ""
    except Exception as error:
        rest = [one for one in claimed if one.job.node.id not in made]
        if not together:
            traceback.print_exc()
            yield first, "failed", error
            return
        # A fault of one of them, or too little memory for all at once.
        traceback.print_exc()
        message = f"{len(rest)} tasks could not be computed together, and are computed one by one"
        claimed[0].progress.note(f"{message}: {first_line(describe(error))}")
    else:
        return
    for one in rest:
        yield from _compute([one], store, threads, time.time())


def _inputs(jobs: Sequence[Job], progress: Progress) -> tuple[dict[str, Input], dict[str, PlannedLayers]]:
    """What the jobs read, in files of this machine, and for each that is measured as layers whose these are.

    Students of several jobs have roles of their own: "student", "student 2", ...; so have the phases that these go on
    from.
    """
    first, store = jobs[0], open_store(jobs[0].reads, report=progress.note)
    if len(jobs) == 1:
        return first.fetched(store), {}
    students = list(dict.fromkeys(job.owners[_STUDENT].id for job in jobs if _STUDENT in job.owners))
    roles = {i: f"{_STUDENT} {n}" if n > 1 else _STUDENT for n, i in enumerate(students, start=1)}
    read, kinds, layers = dict[str, Input](), dict[str, str](), dict[str, PlannedLayers]()
    for job in jobs:
        own = {role: given for role, given in job.inputs.items() if role != "model" or job.plan is None}
        own = {_own_role(role, given): given for role, given in own.items()}
        read |= own | {roles.get(given.id, role): given for role, given in job.owners.items()}
        kinds |= job.input_kinds
        if job.plan is not None:
            layers[job.node.id] = PlannedLayers(
                job.plan, roles[job.owners[_STUDENT].id] if _STUDENT in job.owners else ""
            )
    return replace(first, inputs=read, input_kinds=kinds).fetched(store), layers


def _own_role(role: str, given: Input) -> str:
    """What an input is called among those of several jobs: the phase before, which each has for itself, by its id."""
    return f"{role} {given.id}" if role == BEFORE else role


def _context(
    one: _Claimed, workspace: Workspace, inputs: dict[str, Input], store: Store, layers: PlannedLayers | None
) -> Context[Any]:
    job = one.job
    before = {role: inputs[own] for role, given in job.inputs.items() if (own := _own_role(role, given)) in inputs}
    return Context(
        job.node.task.record,
        {**inputs, **before},
        workspace.path,
        workspace.resume,
        remote_checkpoints(store, job.node, one.progress),
        job.node.execution,
        one.progress,
        log_file(job.folder(store), job.node.id),
        job,
        layers,
    )


def _publish(
    one: _Claimed, context: Context[Any], workspace: Workspace, store: Store, started: float, *, shared_by: int
) -> None:
    """Publish what the body has written. The seconds are divided by the number of tasks that were computed together."""
    job, task, now = one.job, one.job.node.task, time.time()
    made_by = provenance(started=started, finished=now, execution=job.node.execution, commit=job.commit)
    if shared_by > 1:
        made_by |= {"seconds": round((now - started) / shared_by, 3), "together": shared_by}
    if job.node.cost is not None:
        made_by["cost"] = asdict(job.node.cost)  # with the seconds: how fast such tasks are here
    if context.measured:
        made_by["training"] = context.measured
    if one.key is not None:
        store.note_key(task.kind, one.key, task.id)
    store.publish(workspace, task.kind, task.id, task.identity(), made_by)


def _publish_equal(job: Job, store: Store, key: str) -> str:
    """Publish what was made of the same inputs under the task's id, if there is anything. Returns the id of that."""
    task = job.node.task
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for other in store.ids_by_key(task.kind, [key]).get(key, ()):
        same_as = {"same_as": {"id": other, "published": now, "commit": job.commit}}
        if other != task.id:
            store.note_key(task.kind, key, task.id)
            if publish_equal(store, task.kind, task.id, other, task.identity(), same_as, checksums=job.checksums):
                print(f"made of the same inputs, byte for byte, as {other}: nothing is computed")
                return other
    return ""
