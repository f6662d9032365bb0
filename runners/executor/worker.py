"""Run one task in a Ray worker: claim it, execute its body, publish its artifact.

In: a `Job` (plain data). Out: an `Outcome`; an exception of the body is an outcome, too, so Ray does not retry it. Ray
does retry a lost worker: then `execute` starts anew and the body continues from the checkpoints in `Context.resume`.
A machine that does not reach the store makes no outcome: the executor submits the task again for another one.
"""

import importlib
import os
import socket
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from boomspec.core.errors import BoomspecError, describe
from boomspec.core.json_text import json_text
from boomspec.store import Store, open_store
from boomspec.store.made_of import content_key, publish_equal
from runners.cluster.store_check import UnreachedError, opened
from runners.executor.heartbeat import beating
from runners.runtime import environment
from runners.runtime.context import Context, Progress
from runners.runtime.job import Job, Outcome, TaskState
from runners.runtime.journal import log_file, make_subfolders, progress_file
from runners.runtime.output import captured
from runners.runtime.provenance import provenance
from runners.runtime.relay import relayed
from runners.runtime.task_errors import detect_full_disk, named, names_of
from runners.training.remote_checkpoint import remote_checkpoints


def execute(job: Job) -> Outcome:
    """Make the artifact of `job`. Raises only KeyboardInterrupt, and UnreachedError."""
    started = time.time()

    def outcome(state: TaskState, same_as: str = "", *, error: Exception | None = None) -> Outcome:
        name, why = job.node.name, "" if error is None else describe(error)
        return Outcome(name, state, why, name if error else "", time.time() - started, same_as)

    try:
        store, sees_run_folder = opened(job)
        folder = job.folder(store)
        with detect_full_disk(folder), ExitStack() as sent:
            if not sees_run_folder:  # what the task writes into its files goes to the driver
                make_subfolders(folder)
                if job.relay is not None:
                    sent.enter_context(relayed(job.relay, folder, job.node.id))
            line = {"time": started, "started": {"run": job.run, "host": socket.gethostname(), "pid": os.getpid()}}
            with progress_file(folder, job.node.id).open("a", encoding="utf-8") as lines:
                lines.write(json_text(line) + "\n")
            progress = Progress(progress_file(folder, job.node.id))
            store = open_store(job.store, report=progress.note)
            with captured(log_file(folder, job.node.id)), beating(progress):
                # SystemExit is not caught: it is how Ray ends a worker on a node that goes away, and then tries again.
                try:
                    return outcome(*_make(job, store, progress, started))
                except Exception as error:
                    traceback.print_exc()
                    return outcome("failed", error=error)
    except UnreachedError:
        raise
    except BoomspecError as error:  # before there was a log, or of a disk that has no room for it
        return outcome("failed", error=error)


def _make(job: Job, store: Store, progress: Progress, started: float) -> tuple[TaskState, str]:
    """Make and publish the artifact.

    Nothing is made where another run has made it meanwhile, nor where there is one that was made of the same inputs
    byte for byte: that is published under this id, too, and its own is returned.
    """
    environment.apply(environment.variables(store.root, hub=job.hub))
    execution, task = job.node.execution, job.node.task
    threads = environment.apply_resources(cpus=execution.cpus, gpus=execution.gpus)
    waiting = "another run is at work on this; waiting for it"
    with store.claimed(task.kind, task.id, owner=job.run, waiting=lambda: progress.note(waiting)):
        if store.has(task.kind, task.id) and store.damage(task.kind, task.id) is None:
            return "reused", ""
        key = None if job.anew else content_key(store, task, job.input_kinds)
        if key is not None and (equal := _publish_equal(job, store, key)):
            return "reused", equal
        if job.same_as:
            what = f"{task.kind} {job.same_as[:12]}, which was made of the same inputs, is gone or damaged"
            raise BoomspecError(f"{what} since the plan was drawn up", hint="run again")
        if execution.workers > 1:  # each machine of theirs fetches for itself
            inputs = job.inputs
            run = importlib.import_module("runners.training.ray_train").train_together  # it takes seconds to import
        else:
            inputs = job.fetched(open_store(job.reads, report=progress.note))
            run = importlib.import_module(f"runners.tasks.{task.kind}").run
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(threads)  # a process is used again, and torch reads OMP_NUM_THREADS only once
        remote, log = remote_checkpoints(store, job.node, progress), log_file(job.folder(store), job.node.id)
        with (
            store.workspace(task.kind, task.id) as workspace,
            detect_full_disk(workspace.path, Path(tempfile.gettempdir())),
            named(names_of(job.node.name, inputs, workspace.path)),
        ):
            folders = workspace.path, workspace.resume
            context = Context(task.record, inputs, *folders, remote, execution, progress, log, job)
            run(context)
            made_by = provenance(started=started, finished=time.time(), execution=execution, commit=job.commit)
            if job.node.cost is not None:
                made_by["cost"] = asdict(job.node.cost)  # with the seconds: how fast such tasks are here
            if context.measured:
                made_by["training"] = context.measured
            if key is not None:
                store.note_key(task.kind, key, task.id)
            store.publish(workspace, task.kind, task.id, task.identity(), made_by)
    return "made", ""


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
