"""One training on several workers, through Ray Train.

The task itself is the coordinator: it holds no CPU or GPU, starts the workers as one group, and waits.
Every worker runs the body's `work` on the paths that the task was given; no tensor goes through Ray's
object store. Only the leader (rank 0) writes the payload and speaks in the task's progress.

Ray Train starts the group anew when a worker is lost, on as many workers as the cluster has room for
(`min_workers` at least, `workers` at most), and the group continues from its last checkpoint. Ray's own
checkpoints are not used: ours can be read by any number of workers (`resume`).

    <resume>/.workers/   what coordinator and workers share while they are at work
        stop             the coordinator was interrupted: save and stop
        failed.json      a worker has failed for a reason that will not go away: {"error"}; written by Ray's controller
        ray/             Ray Train's own files
        <machine>/       resume folder and payload of workers on a machine that does not share the coordinator's folder

Where the store is at a URL, the machines may share nothing. Then each has folders of its own, fetches its inputs,
sends its progress, and the leader sends the payload to the coordinator by way of the store.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import threading
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from boomspec.errors import BoomspecError, first_line, redact
from boomspec.store import open_store, write_atomically
from runners import environment
from runners.apart import Final, on_this_machine
from runners.context import Context, Progress
from runners.device import collectives
from runners.job import describe
from runners.output import captured
from runners.team import STOP, WORKERS, team

_FAILED = "failed.json"
_GRACE_SECONDS = 8.0  # for the workers to write a checkpoint after an interrupt; the run itself waits for ten
_GRACE_AFAR_SECONDS = 36.0  # and to send it to the store; the run waits for forty
_POLL_SECONDS = 0.2
_SETTINGS = {
    # For room in the cluster alone. Behind a lost machine Ray may count on it once more.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}
# What the libraries for collectives say when the worker at the other end is gone.
_LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def train_together(context: Context[Any]) -> None:
    """Run the body of the task on `options["workers"]` workers. Raises what one of them has failed of."""
    folder = context.resume / WORKERS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ.update({name: os.environ.get(name, value) for name, value in _SETTINGS.items()})
    group = _Group(_trainer(context, folder))
    try:
        group.wait()
        if context.mirror is not None and not any(context.path.iterdir()):
            context.mirror.receive(context.path)
    except KeyboardInterrupt:
        (folder / STOP).touch()
        _stop_afar(context)
        with suppress(Exception):  # it is stopped, however it ends
            group.wait(_GRACE_SECONDS if context.mirror is None else _GRACE_AFAR_SECONDS)
        raise
    except Exception as error:
        raise reason(folder, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop_afar(context: Context[Any]) -> None:
    """Tell workers that do not see this machine's folders to stop."""
    job = context.place.job
    if job is not None and job.reach is not None and job.reach.relay is not None:
        job.reach.relay.stop.remote(job.node.id)


class _Group:
    """Ray Train's `fit`, in a thread of its own: in the main one it takes Ctrl-C for itself and kills the workers."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._error: BaseException | None = None
        self._trainer = trainer
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self._error = error

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the end; raises what it ended with."""
        rest = seconds
        while self._thread.is_alive() and (rest is None or rest > 0):
            self._thread.join(_POLL_SECONDS)
            rest = None if rest is None else rest - _POLL_SECONDS
        if self._error is not None:
            raise self._error


def _trainer(context: Context[Any], folder: Path) -> TorchTrainer:
    options, place = context.options, context.place
    most, least = options["workers"], options.get("min_workers") or 1
    return TorchTrainer(
        member,
        train_loop_config={"context": replace(context, mirror=None)},
        torch_config=TorchConfig(backend=collectives(place.gpus)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=place.gpus > 0,
            resources_per_worker=place.claims,
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=place.retries),
            callbacks=[Watcher(folder, context.progress)],
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def reason(folder: Path, error: Exception) -> Exception:
    """What to tell about a group that has failed."""
    if (folder / _FAILED).exists():
        return BoomspecError(json.loads((folder / _FAILED).read_text(encoding="utf-8"))["error"])
    lost: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not lost:
        inner = getattr(error, "controller_failure", error)
        return BoomspecError(f"the group of workers has failed: {type(inner).__name__}: {redact(str(inner).strip())}")
    who = ", ".join(f"worker {rank} ({_first_line(why)})" for rank, why in sorted(lost.items()))
    return BoomspecError(f"workers were lost too often, at last {who}", hint="raise execution.retries")


class Watcher(ray.train.UserCallback):  # type: ignore[misc]
    """In Ray Train's controller: tells of lost workers, and ends the training where trying again is of no use."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress = folder, progress

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        final = next((error for error in worker_exceptions.values() if isinstance(error, Final)), None)
        if final is not None:
            write_atomically(self._folder / _FAILED, json.dumps({"error": str(final)}))
            raise RuntimeError("a worker has failed")  # Ray Train does not try again after an error of its own
        gone = {rank: error for rank, error in worker_exceptions.items() if not _of_lost_peer(error)}
        listed = ", ".join(f"worker {rank} ({_first_line(why)})" for rank, why in sorted(gone.items()))
        self._progress.note(f"lost {listed or 'a worker'}: the group starts again from the last checkpoint")


def _first_line(error: BaseException) -> str:
    return first_line(error) or type(error).__name__


def member(config: dict[str, Any]) -> None:
    """One worker, in its own process."""
    context: Context[Any] = config["context"]
    job = context.place.job
    assert job is not None
    store = open_store(job.store)
    environment.apply(environment.variables(store.root, hub=job.hub))
    with on_this_machine(context, job, store) as own:
        join(own)


def join(context: Context[Any]) -> None:
    """Work in the team of this process on what is on this machine."""
    place = context.place
    threads = environment.apply_resources(cpus=place.cpus, gpus=place.gpus)
    import torch

    torch.set_num_threads(threads)
    workers = team(context.resume, first_here=context.first_here)
    if not workers.leads:
        context = replace(context, progress=Progress(None))
    assert place.log is not None
    with captured(place.log):
        try:
            _tell(
                context,
                [word.decode() for word in workers.words(f"{socket.gethostname()[:40]} {os.getpid()}".encode())],
            )
            if workers.lays_out:
                _clear(context.path)
            workers.wait()
            importlib.import_module(f"runners.tasks.{context.record.kind}").work(context)
        except KeyboardInterrupt:
            return  # it was stopped, and has saved itself
        except Exception as error:
            traceback.print_exc()
            if _lost_peer(error):
                raise
            raise Final(describe(error)) from error


def _tell(context: Context[Any], members: list[str]) -> None:
    wanted, options = context.options["workers"], context.options
    fewer = f" (of {wanted} wanted)" if len(members) < wanted else ""
    listed = ", ".join(f"{host} (process {pid})" for host, pid in (word.split() for word in members))
    context.progress.note(f"trains on {len(members)} workers{fewer}, {options.get('parallel', 'ddp')}: {listed}")


def _clear(folder: Path) -> None:
    """Delete what a group before this one has begun to write."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lost_peer(error: Exception) -> bool:
    """Whether this worker failed because another one is gone."""
    import torch

    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and _of_lost_peer(error))


def _of_lost_peer(error: Exception) -> bool:
    return any(word in str(error) for word in _LOST_PEER)
