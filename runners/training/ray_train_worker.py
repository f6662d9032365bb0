"""The function each Ray Train worker runs: set up inputs and folders, then train.

Machines that share a folder work in it together. Where the store is at a URL they may share nothing: then each has
folders of its own, below `.workers/<machine>/` in its resume folder, and its progress is sent; checkpoints go by way of
the store, and so does the payload, from rank 0 to the coordinator.
"""

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

from boomspec.core.errors import BoomspecError, describe
from boomspec.core.json_text import json_text
from boomspec.store import Store, open_store
from runners.cluster.store_check import opened
from runners.runtime import environment
from runners.runtime.context import Context, Progress
from runners.runtime.device import device
from runners.runtime.job import Job
from runners.runtime.journal import log_file, make_subfolders, progress_file
from runners.runtime.output import captured
from runners.runtime.relay import relayed
from runners.runtime.task_errors import detect_full_disk
from runners.training.process_group import STOP, WORKERS, is_peer_failure, process_group
from runners.training.remote_checkpoint import remote_checkpoints

MEASURED = ".measured.json"  # beside the payload: what the coordinator takes into its provenance
_LISTEN_SECONDS = 1.0
_ANSWER_SECONDS = 10.0


class FinalError(Exception):
    """The error of a worker that another group would have, too, as text for people."""


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's, after each worker has its share of its machine: torch asks for GPUs once, and NCCL needs them."""

    def on_start(self, worker_group: Any, backend_config: "GroupConfig") -> None:
        worker_group.execute(set_up, cpus=backend_config.cpus, gpus=backend_config.gpus)
        super().on_start(worker_group, backend_config)


@dataclass
class GroupConfig(TorchConfig):  # type: ignore[misc]
    """The process group of torch that the workers make, and what each has of its machine."""

    cpus: float = 1
    gpus: float = 0

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def set_up(*, cpus: float, gpus: float) -> None:
    """Limit this process to its share of the machine. Raises BoomspecError for a GPU that torch does not see."""
    environment.apply_resources(cpus=cpus, gpus=gpus)
    device()


def run_worker(config: dict[str, Any]) -> None:
    """One worker, in its own process."""
    context: Context[Any] = config["context"]
    job = context.job
    assert job is not None
    store, _ = opened(job)
    environment.apply(environment.variables(store.root, hub=job.hub))
    with local_context(context, job, store) as own:
        work_in_group(own)


@contextmanager
def local_context(context: Context[Any], job: Job, store: Store) -> Iterator[Context[Any]]:
    """The context with the inputs, folders and files of this machine. Those that share nothing deliver the payload."""
    kind, task_id, group = job.node.task.kind, job.node.id, process_group(context.resume)
    # The coordinator's folder for the payload has a random name: who sees it here, shares its folders.
    payload, resume = store.root / kind / context.path.name, store.resume(kind, task_id)
    sees = payload.is_dir()
    machine: str = ray.get_runtime_context().get_node_id()
    local_leader, folder = None, resume / WORKERS / machine
    if not all(answer == b"1" for answer in group.all_gather(b"1" if sees else b"0")):
        # Not Ray Train's local rank: that counts by addresses, and two machines may have one.
        local_leader = group.all_gather(machine.encode()).index(machine.encode()) == group.rank
        payload, resume = folder / "payload", folder / "resume"
        if local_leader:
            shutil.rmtree(folder, ignore_errors=True)
            payload.mkdir(parents=True)
    run_folder, stop = job.folder(store), resume / WORKERS / STOP
    make_subfolders(run_folder)
    progress = Progress(progress_file(run_folder, task_id))
    remote = remote_checkpoints(store, job.node, progress)
    with ExitStack() as around:
        if local_leader and not sees and job.relay is not None:
            around.enter_context(relayed(job.relay, run_folder, task_id))
        if local_leader is not None and group.is_leader and job.relay is not None:
            around.enter_context(_listening(job.relay, task_id, stop))
        try:
            inputs = job.fetched(open_store(job.reads))
        except BoomspecError as error:
            raise FinalError(describe(error)) from error
        context = replace(context, inputs=inputs, path=payload, resume=resume, local_leader=local_leader)
        yield replace(context, remote=remote, progress=progress, log=log_file(run_folder, task_id))
        if local_leader is None:
            return
        if group.is_leader and remote is not None and not stop.exists():
            remote.deliver(payload)
        group.barrier()  # after it nobody reads what this one has written
        if local_leader:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _listening(relay: Any, task_id: str, stop: Path) -> Iterator[None]:
    """While the context lasts, make the file `stop` on this machine when the coordinator wants to stop."""
    done = threading.Event()

    def listen() -> None:
        while not done.wait(_LISTEN_SECONDS):
            with suppress(RayError):  # a relay that is gone wants nothing
                if ray.get(relay.stopped.remote(task_id), timeout=_ANSWER_SECONDS):
                    stop.parent.mkdir(parents=True, exist_ok=True)
                    stop.touch()
                    return

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def work_in_group(context: Context[Any]) -> None:
    """Run the body in the process group of this process."""
    execution, wanted = context.execution, context.training.workers
    torch.set_num_threads(environment.apply_resources(cpus=execution.cpus, gpus=execution.gpus))
    group = process_group(context.resume, local_leader=context.local_leader)
    if not group.is_leader:
        context = replace(context, progress=Progress(None))
    assert context.log is not None
    with captured(context.log):
        try:
            workers = [one.decode() for one in group.all_gather(f"{socket.gethostname()[:40]} {os.getpid()}".encode())]
            fewer = f" (of {wanted} wanted)" if group.size < wanted else ""
            listed = ", ".join(f"{host} (process {pid})" for host, pid in map(str.split, workers))
            context.progress.note(f"trains on {group.size} workers{fewer}, {context.training.parallel}: {listed}")
            if group.writes:
                for path in context.path.iterdir():  # of a group before this one
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            group.barrier()
            with detect_full_disk(context.path, context.resume):
                importlib.import_module(f"runners.tasks.{context.record.kind}").run(context)
                if group.is_leader:
                    (context.path / MEASURED).write_text(json_text(context.measured), encoding="utf-8")
        except KeyboardInterrupt:
            return  # it was stopped, and has saved itself
        except Exception as error:
            traceback.print_exc()
            # Of fewer workers than planned, each holds more than was planned.
            if is_peer_failure(error) or (group.size < wanted and isinstance(error, torch.OutOfMemoryError)):
                raise
            raise FinalError(describe(error)) from error
