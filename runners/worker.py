"""One task, from start to published artifact, in the Ray worker that runs it.

In: a `Job` (plain data). Out: an `Outcome`; an exception of the body is an outcome, too, so Ray does not
retry it. What Ray does retry is a lost worker: then `execute` starts anew and the body continues from what
it left in `Context.resume`.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from boomspec.errors import BoomspecError, redact
from boomspec.graph import Node
from boomspec.store import Store
from runners import environment
from runners.context import Context, Input, Place, Progress
from runners.output import captured
from runners.provenance import provenance

_LOCK_POLL_SECONDS = 0.5

State = Literal["made", "reused", "failed", "blocked", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a task ended. `error` says why, where it did not succeed; it holds no secrets."""

    name: str
    state: State
    error: str = ""
    cause: str = ""  # name of the task whose failure this one follows from
    seconds: float = 0.0

    @property
    def succeeded(self) -> bool:
        return self.state in ("made", "reused")


@dataclass(frozen=True)
class Job:
    """Everything that a worker must know about one task of one run."""

    node: Node
    inputs: dict[str, Input]
    input_kinds: dict[str, str]  # kinds of the inputs that are artifacts, by id
    store: Path
    reads: Path  # the store of the inputs; another one where artifacts are made again for comparison
    run_folder: Path
    run: str
    commit: str | None
    variables: dict[str, str]

    @property
    def log(self) -> Path:
        return self.run_folder / "logs" / f"{self.node.id}.log"

    @property
    def progress(self) -> Path:
        return self.run_folder / "progress" / f"{self.node.id}.jsonl"


def execute(job: Job) -> Outcome:
    """Make the artifact of `job`. Raises only KeyboardInterrupt."""
    name = job.node.name
    started = time.time()
    with job.progress.open("a", encoding="utf-8") as file:
        line = {"time": started, "started": {"run": job.run, "host": socket.gethostname(), "pid": os.getpid()}}
        file.write(json.dumps(line) + "\n")
    progress = Progress(job.progress)
    with captured(job.log):
        # SystemExit is not caught: it is how Ray ends a worker on a node that goes away, and such a task is retried.
        try:
            state: State = "made" if _make(job, progress, started) else "reused"
        except Exception as error:
            traceback.print_exc()
            return Outcome(name, "failed", describe(error), name, time.time() - started)
    return Outcome(name, state, seconds=time.time() - started)


def describe(error: BaseException) -> str:
    """An error as one text without secrets: those that a user can act on need no class name."""
    text = str(error) if isinstance(error, BoomspecError) else f"{type(error).__name__}: {error}"
    if not str(error) and (frames := traceback.extract_tb(error.__traceback__)):
        text += f"{frames[-1].line} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return redact(text.strip())


def _make(job: Job, progress: Progress, started: float) -> bool:
    """Make and publish the artifact. False where another run has made it meanwhile."""
    environment.apply(job.variables)
    execution, task = job.node.execution, job.node.task
    threads = environment.apply_resources(cpus=execution.cpus, gpus=execution.gpus)
    store = Store(job.store)
    _check_inputs(job, Store(job.reads))
    with _one_at_a_time(store.resume(task.kind, task.id), progress):
        if store.has(task.kind, task.id) and store.damage(task.kind, task.id) is None:
            return False
        body = _body(task.kind, threads)
        with store.workspace(task.kind, task.id) as workspace:
            body(
                Context(
                    record=task.record,
                    inputs=job.inputs,
                    path=workspace.path,
                    resume=workspace.resume,
                    options=execution.options,
                    progress=progress,
                    place=Place(
                        execution.cpus,
                        execution.gpus,
                        execution.retries,
                        job.variables,
                        job.log,
                        claims=execution.claims,
                    ),
                )
            )
            made_by = provenance(started=started, finished=time.time(), execution=execution, commit=job.commit)
            if job.node.cost is not None:
                made_by["cost"] = asdict(job.node.cost)  # with the seconds: how fast such tasks are here
            store.publish(workspace, task.kind, task.id, task.identity(), made_by)
    return True


def _body(kind: str, threads: int) -> Callable[[Context[Any]], None]:
    body: Callable[[Context[Any]], None] = importlib.import_module(f"runners.tasks.{kind}").run
    # A worker is used again, and torch reads OMP_NUM_THREADS only once.
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    return body


def _check_inputs(job: Job, store: Store) -> None:
    for role, given in job.inputs.items():
        kind = job.input_kinds.get(given.id)
        if kind is None:
            continue
        problem = store.damage(kind, given.id) if store.has(kind, given.id) else "it is not in the store"
        if problem is not None:
            raise BoomspecError(f"input {role} ({kind} {given.id[:12]}) cannot be used: {problem}", hint="run again")


@contextmanager
def _one_at_a_time(resume: Path, progress: Progress) -> Iterator[None]:
    """Hold the task's resume folder, so that two runs do not write the same checkpoints.

    The second one waits for the first, and then finds its artifact. A dead process holds nothing.
    """
    handle = _lock(resume)
    if handle is None:
        progress.note("another run is at work on this; waiting for it")
        while (handle := _lock(resume)) is None:
            time.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        with suppress(OSError):
            resume.rmdir()  # when it holds nothing to resume from
        os.close(handle)


def _lock(folder: Path) -> int | None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == folder.stat().st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass  # held by another, or removed by the one who held it
    os.close(handle)
    return None
