"""A worker of a training that several machines share: its inputs, its folders and its files are those of its machine.

Machines that share a folder work in it together. Where the store is at a URL they may share nothing: then each has
folders of its own, below `.workers/<machine>/` in its resume folder, and its progress is sent; checkpoints go by way of
the store, and so does the payload, from the leader to the coordinator.
"""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train.torch import TorchConfig

from boomspec.core.errors import BoomspecError
from boomspec.store import Store, open_store
from runners.cluster.store_check import opened
from runners.runtime import environment
from runners.runtime.context import Context, Progress
from runners.runtime.device import device
from runners.runtime.disk_full import explained
from runners.runtime.job import Job, describe
from runners.runtime.journal import log_file, make_subfolders, progress_file
from runners.runtime.output import captured
from runners.runtime.relay import relayed
from runners.training.lost_peer import lost_peer
from runners.training.process_group import STOP, WORKERS, team
from runners.training.remote_checkpoint import resume_mirror

_LISTEN_SECONDS = 1.0
_ANSWER_SECONDS = 10.0


class Final(Exception):  # noqa: N818 - it carries another one
    """What a worker has failed of, for a reason that will not go away, in words for people."""


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's, with each worker's share of its machine settled before anything asks torch for GPUs, or NCCL fails."""

    def on_start(self, worker_group: Any, backend_config: Meeting) -> None:
        worker_group.execute(settle, cpus=backend_config.cpus, gpus=backend_config.gpus)
        super().on_start(worker_group, backend_config)


@dataclass
class Meeting(TorchConfig):  # type: ignore[misc]
    """How the workers of a group find each other, and what each has of its machine."""

    cpus: float = 1
    gpus: float = 0

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def settle(*, cpus: float, gpus: float) -> None:
    """Settle this worker's share of its machine. Raises BoomspecError for a GPU that torch does not see."""
    environment.apply_resources(cpus=cpus, gpus=gpus)
    device()


def member(config: dict[str, Any]) -> None:
    """One worker, in its own process."""
    context: Context[Any] = config["context"]
    job = context.job
    assert job is not None
    store, _ = opened(job)
    environment.apply(environment.variables(store.root, hub=job.hub))
    with on_this_machine(context, job, store) as own:
        join(own)


@contextmanager
def on_this_machine(context: Context[Any], job: Job, store: Store) -> Iterator[Context[Any]]:
    """The context with the inputs, folders and files of this machine. Those that share nothing deliver the payload."""
    kind, task_id, workers = job.node.task.kind, job.node.id, team(context.resume)
    # The coordinator's folder for the payload has a random name: who sees it here, shares its folders.
    payload, resume = store.root / kind / context.path.name, store.resume(kind, task_id)
    sees = payload.is_dir()
    machine: str = ray.get_runtime_context().get_node_id()
    first_here, folder = None, resume / WORKERS / machine
    if not all(word == b"1" for word in workers.words(b"1" if sees else b"0")):
        # Not Ray Train's local rank: that counts by addresses, and two machines may be behind one.
        first_here = workers.words(machine.encode()).index(machine.encode()) == workers.rank
        payload, resume = folder / "payload", folder / "resume"
        if first_here:
            shutil.rmtree(folder, ignore_errors=True)
            payload.mkdir(parents=True)
    run_folder, relay = job.folder(store), None if job.reach is None else job.reach.relay
    make_subfolders(run_folder)
    progress = Progress(progress_file(run_folder, task_id))
    mirror = resume_mirror(store, job.node, progress)
    with ExitStack() as around:
        if first_here and not sees and relay is not None:
            around.enter_context(relayed(relay, run_folder, task_id))
        if first_here is not None and workers.leads and relay is not None:
            around.enter_context(_listening(relay, task_id, resume / WORKERS / STOP))
        try:
            inputs = job.fetched(open_store(job.reads))
        except BoomspecError as error:
            raise Final(describe(error)) from error
        yield replace(
            context,
            inputs=inputs,
            path=payload,
            resume=resume,
            mirror=mirror,
            progress=progress,
            log=log_file(run_folder, task_id),
            first_here=first_here,
        )
        if mirror is not None:
            mirror.wait()
        if first_here is None:
            return
        stopped = (resume / WORKERS / STOP).exists()
        if workers.leads and mirror is not None and not stopped:
            mirror.deliver(payload)
        workers.wait()  # nobody reads any more what this one has laid out
        if first_here:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _listening(relay: Any, task_id: str, stop: Path) -> Iterator[None]:
    """While the context lasts, make the coordinator's wish to stop the file `stop` of this machine."""
    done = threading.Event()

    def listen() -> None:
        while not done.wait(_LISTEN_SECONDS):
            with suppress(RayError):  # a relay that is gone asks for nothing
                if ray.get(relay.stopped.remote(task_id), timeout=_ANSWER_SECONDS):
                    stop.parent.mkdir(parents=True, exist_ok=True)
                    stop.touch()
                    return

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def join(context: Context[Any]) -> None:
    """Work in the team of this process on what is on this machine."""
    execution = context.execution
    threads = environment.apply_resources(cpus=execution.cpus, gpus=execution.gpus)
    torch.set_num_threads(threads)
    workers = team(context.resume, first_here=context.first_here)
    if not workers.leads:
        context = replace(context, progress=Progress(None))
    assert context.log is not None
    with captured(context.log):
        try:
            own = f"{socket.gethostname()[:40]} {os.getpid()}"
            _tell(context, [word.decode() for word in workers.words(own.encode())])
            if workers.lays_out:
                _clear(context.path)
            workers.wait()
            with explained(context.path, context.resume):
                importlib.import_module(f"runners.tasks.{context.record.kind}").work(context)
        except KeyboardInterrupt:
            return  # it was stopped, and has saved itself
        except Exception as error:
            traceback.print_exc()
            fewer = workers.size < context.training.workers  # each may have more in its memory than was reckoned with
            if lost_peer(error) or (fewer and isinstance(error, torch.OutOfMemoryError)):
                raise
            raise Final(describe(error)) from error


def _tell(context: Context[Any], members: list[str]) -> None:
    wanted = context.training.workers
    fewer = f" (of {wanted} wanted)" if len(members) < wanted else ""
    listed = ", ".join(f"{host} (process {pid})" for host, pid in (word.split() for word in members))
    context.progress.note(f"trains on {len(members)} workers{fewer}, {context.training.parallel}: {listed}")


def _clear(folder: Path) -> None:
    """Delete what a group before this one has begun to write."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
