"""One training on several workers, through Ray Train.

The task itself is the coordinator: it holds no CPU or GPU, starts the workers as one group, and waits. Every worker
runs the task's body on the paths that the task was given; no tensor goes through Ray's object store. Only rank 0
writes the payload and reports the task's progress.

A group is one run of Ray Train, which neither repairs nor resizes it. Where it loses a worker, a machine or its
controller, the coordinator starts another one, on as many workers as the machines have room for (`min_workers` at
least, `workers` at most), and that continues from the last checkpoint. Ray's own checkpoints are not used: ours can be
read by any number of workers.

    <resume>/.workers/   what coordinator and workers share while they are at work
        stop             the coordinator was interrupted: save and stop
        ray/             Ray Train's own files
        <machine>/       resume folder and payload of workers on a machine that does not share the coordinator's folder
"""

import json
import math
import os
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from boomspec.core.errors import BoomspecError, first_line, redact
from runners.cluster.ray_cluster import fitting, on_other_machines
from runners.cluster.store_check import UnreachedError
from runners.runtime import environment
from runners.runtime.context import Context
from runners.runtime.device import collective_backend
from runners.training.process_group import STOP, WORKERS, is_peer_failure
from runners.training.ray_train_worker import MEASURED, FinalError, GroupConfig, run_worker

_GRACE_SECONDS = 8.0  # for the workers to write a checkpoint after an interrupt; the run itself waits for ten
_REMOTE_GRACE_SECONDS = 36.0  # and to upload it; the run waits for forty
_POLL_SECONDS = 0.2
_ROOM_SECONDS = (10.0, 300.0)  # until the machines are counted again. Ray may count on a lost one once more
_END_SECONDS = 60.0  # for a controller that cannot be reached to end
_ROOM_SETTING = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_SETTINGS = {"RAY_TRAIN_METRICS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}


def train_together(context: Context[Any]) -> None:
    """Run the body of the task on its `workers`. Raises the error of one of them."""
    folder, job, stopped = context.resume / WORKERS, context.job, threading.Event()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ.update({name: os.environ.get(name, value) for name, value in _SETTINGS.items()})
    errors: list[BaseException] = []

    def work() -> None:
        try:
            _train_in_groups(context, folder, stopped)
        except BaseException as error:
            errors.append(error)

    def wait(seconds: float = math.inf) -> None:
        until = time.monotonic() + seconds
        while thread.is_alive() and time.monotonic() < until:
            thread.join(_POLL_SECONDS)  # not for long: a signal must get through
        if errors:
            raise errors[0]

    # In a thread of its own: in the main one Ray Train takes Ctrl-C for itself and kills the workers.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        wait()
        if context.remote is not None and not any(context.path.iterdir()):
            context.remote.receive(context.path)
        measured = context.path / MEASURED
        if measured.exists():
            context.measured.update(json.loads(measured.read_text(encoding="utf-8")))
            measured.unlink()
    except KeyboardInterrupt:
        stopped.set()  # the workers save themselves and stop, and no others start
        with suppress(OSError):  # a full disk
            (folder / STOP).touch()
        if job is not None and job.relay is not None:
            job.relay.stop.remote(job.node.id)  # for workers that do not see this machine's folders
        with suppress(Exception):  # it is stopped, however it ends
            wait(_GRACE_SECONDS if context.remote is None else _REMOTE_GRACE_SECONDS)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train_in_groups(context: Context[Any], folder: Path, stopped: threading.Event) -> None:
    retries, least, most = context.execution.retries, context.training.least_workers, context.training.workers
    excluded: set[str] = set()  # machines that do not reach the store
    lost, waits = 0, 0
    while not stopped.is_set():
        remove_orphan_placement_groups()
        machines = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        others = [has for machine, has in machines.items() if machine not in excluded]
        room, where = fitting(context.execution.claims, others), on_other_machines(excluded) if excluded else None
        if where is None or room < least:
            room, where = fitting(context.execution.claims, machines.values()), None
        size = int(max(least, min(most, room)))
        os.environ[_ROOM_SETTING] = f"{min(_ROOM_SECONDS[0] * 2**waits, _ROOM_SECONDS[1]):g}"
        failure = run_group(context, folder, size, where)
        if failure is None or stopped.is_set():
            return
        if not failure.lost:
            note = f"waits for room for {size} workers" if waits == 0 else ""
            waits += 1
        else:
            lost, waits = lost + failure.counts, 0
            if lost > retries:
                raise BoomspecError(f"workers were lost too often, at last {failure.lost}", hint=failure.hint)
            note = f"lost {failure.lost}: the group starts again from the last checkpoint"
        excluded |= failure.unreached
        if failure.out_of_memory:  # the next one must be larger
            least = min(max(least, size + 1), most)
        if note:
            with suppress(OSError):  # no training ends because a full disk takes no note
                context.progress.note(note)


@dataclass(frozen=True)
class Failure:
    """Why a group has ended, where another one may do better."""

    lost: str = ""  # what it has lost, for people; empty where there was no room for it
    counts: bool = True  # among those that `retries` limits
    out_of_memory: bool = False
    unreached: frozenset[str] = frozenset()  # machines that do not reach the store
    hint: str = "raise execution.retries"


def run_group(context: Context[Any], folder: Path, size: int, where: dict[str, str] | None) -> Failure | None:
    """Run one group; None where it has trained, else why not. BoomspecError for what another group would have, too."""
    shutil.rmtree(folder / "ray", ignore_errors=True)
    try:
        _trainer(context, folder, size, where).fit()
        return None
    except RayActorError as error:
        controller = error.actor_id
    except Exception as error:
        return failure_of(error)
    # Only now that nothing here refers to it any more does Ray end a controller that it merely could not reach.
    until = time.monotonic() + _END_SECONDS
    while controller and ray._private.state.actors(controller).get("State", "DEAD") != "DEAD":
        if time.monotonic() > until:
            raise BoomspecError("the controller of the group of workers does not answer, and does not end")
        time.sleep(_POLL_SECONDS)
    return Failure("the controller of the group")


def _trainer(context: Context[Any], folder: Path, size: int, where: dict[str, str] | None) -> TorchTrainer:
    execution = context.execution
    never = ray.train.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
    return TorchTrainer(
        run_worker,
        train_loop_config={"context": replace(context, remote=None)},
        torch_config=GroupConfig(backend=collective_backend(execution.gpus), cpus=execution.cpus, gpus=execution.gpus),
        scaling_config=ray.train.ScalingConfig(
            num_workers=size, use_gpu=execution.gpus > 0, resources_per_worker=execution.claims, label_selector=where
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder),
            worker_runtime_env=environment.process_for(execution.gpus).get("runtime_env"),
            failure_config=never,
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def failure_of(error: Exception) -> Failure:
    """Why a group has ended. Raises BoomspecError for an error that another one would have, too."""
    lost: dict[int, Exception] = getattr(error, "worker_failures", {})
    for why in lost.values():
        if isinstance(why, FinalError):
            raise BoomspecError(str(why)) from error
    if lost:
        gone = {rank: first_line(why) or type(why).__name__ for rank, why in lost.items() if not is_peer_failure(why)}
        unreached = [why for why in lost.values() if isinstance(why, UnreachedError)]
        taken = [getattr(getattr(why, "health_check_failure", why), "preempted", False) for why in lost.values()]
        return Failure(
            ", ".join(f"worker {rank} ({line})" for rank, line in sorted(gone.items())) or "a worker",
            counts=not any(taken),  # not those that were lost with a machine that was taken away in good order
            out_of_memory=any(isinstance(why, torch.OutOfMemoryError) for why in lost.values()),
            unreached=frozenset(why.machine for why in unreached),
            hint=next((why.hint for why in unreached if why.hint), Failure.hint),
        )
    if hasattr(error, "preemption_info"):
        return Failure("a machine that was taken away", counts=False)
    inner = getattr(error, "controller_failure", error)
    name, cause = type(inner).__name__, getattr(inner, "cause", inner)
    if name == "WorkerGroupStartupTimeoutError":
        return Failure()
    if isinstance(cause, BoomspecError):
        raise cause from error
    if name == "WorkerGroupStartupFailedError" or isinstance(inner, RayActorError) or is_peer_failure(cause):
        return Failure(f"a worker that was to start ({first_line(str(inner).strip().splitlines()[-1])})")
    raise BoomspecError(f"the group of workers has failed: {name}: {redact(str(inner).strip())}") from error


def remove_orphan_placement_groups() -> None:
    """Remove the placement groups whose controller was killed, which Ray does only where it has a dashboard.

    Their workers have ended with the controller (measured: within 0.1 s), long before those of another group are up.
    """
    with suppress(AttributeError, ImportError):  # a Ray that keeps its table elsewhere
        from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Group

        state, job = ray._private.state, ray.get_runtime_context().get_job_id()
        table = state.state._connect_and_get_accessor().get_placement_group_table()  # the public one hides the creator
        for group in map(Group.FromString, table):
            if group.creator_job_id.hex() == job and group.creator_actor_dead and group.state != Group.REMOVED:
                creator = state.actors(group.creator_actor_id.hex())
                if creator.get("ActorClassName") == "TrainController":
                    remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
