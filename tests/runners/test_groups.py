"""Groups of workers that end before they are done: which are followed by another one, and what is told of it."""

from __future__ import annotations

import errno
import importlib
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.graph import Node, Task
from runners.runtime.context import Context, Progress
from runners.runtime.job import CheckedMachines, Job
from runners.tasks import distill
from runners.training.process_group import STOP, WORKERS
from tests.messages import wording
from tests.runners import tiny
from tests.runners.crew import Crew
from tests.runners.test_distill import record as recorded
from tests.runners.test_distill import teacher_artifact


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens and a teacher."""
    folder = tmp_path_factory.mktemp("groups")
    tiny.token_artifact(folder / "tokens")
    teacher_artifact(folder / "tied", tie_word_embeddings=True)
    return folder


LATE = "DistNetworkError: late"
AGAIN = ": the group starts again from the last checkpoint"
LOST: dict[str, str] = {
    "controller": "the controller of the group",
    "worker": "worker 3 (The actor died.)",
    "peer": "a worker",
    "no start": "a worker that was to start (ActorDiedError: it died)",
    "no peer at start": f"a worker that was to start ({LATE})",
}


def endings() -> dict[str, Any]:
    """How a group can end, as Ray Train says it."""
    from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
    from ray.train.v2._internal import exceptions as internal
    from ray.train.v2.api import exceptions

    from runners.cluster.store_check import UnreachedError
    from runners.training.ray_train_worker import FinalError

    peer = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
    taken = internal.WorkerHealthCheckFailedError("gone", RayActorError(preempted=True))
    unseen = RayTaskError("settle", "Traceback", BoomspecError("no GPU on node7", hint="update it"))
    workers: dict[str, dict[int, Exception]] = {
        "worker": {0: peer, 3: OSError("The actor died.\nmore")},
        "peer": {0: peer},
        "taken": {0: peer, 1: taken},
        "memory": {0: torch.OutOfMemoryError("CUDA out of memory.")},
        "astray": {1: UnreachedError("node7 does not reach the store: no", machine="b", hint="credentials")},
        "final": {0: peer, 1: FinalError("no space left on the disk of /store (node7)")},
    }
    controller = {
        "no room": internal.WorkerGroupStartupTimeoutError(2),
        "no start": internal.WorkerGroupStartupFailedError("One failed:\n  in f\nActorDiedError: it died"),
        "no peer at start": RayTaskError("settle", f"Traceback\n{LATE}", torch.distributed.DistNetworkError("late")),
        "unseen": unseen,
        "other": RuntimeError("all is lost"),
    }
    return {
        "end": None,
        "controller": ActorDiedError(),
        **{name: exceptions.WorkerGroupError("", failures) for name, failures in workers.items()},
        **{name: exceptions.ControllerError(failure) for name, failure in controller.items()},
    }


class FullDisk(Progress):
    def note(self, message: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def groups(
    place: Path, names: list[str], *, full: bool = False, machines: int = 4, **options: Any
) -> tuple[list[int], list[str], str, list[Any]]:
    """Groups that end so, one after the other, on machines with room for one worker each.

    Returns their sizes, what was told, what the task fails of, and where each group could be.
    """
    many_workers = importlib.import_module("runners.training.ray_train")  # loads Ray
    context: Context[Any] = tiny.context(place)
    context.execution = Execution(retries=2, training=TrainingOptions(**{"workers": 4, **options}))
    if full:
        context.progress = FullDisk(None)
    every, started, failure = [endings()[name] for name in names], [], ""
    nodes = [{"NodeID": i, "Resources": {"CPU": 1.0}, "Alive": i in "abcd"[:machines]} for i in "abcd"]

    class Trainer:
        def fit(self) -> None:
            if (ending := every[len(started) - 1]) is not None:
                raise ending

    def trainer(_context: Any, folder: Path, size: int, where: Any) -> Trainer:
        assert folder.is_dir()
        started.append((size, where))
        return Trainer()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many_workers, "_trainer", trainer)
        patch.setattr(many_workers, "remove_orphan_placement_groups", lambda: None)
        patch.setattr(many_workers.ray, "nodes", lambda: nodes)
        try:
            many_workers.train_together(context)
        except BoomspecError as error:
            failure = str(error)
    assert len(started) == len(every)
    assert list(context.resume.iterdir()) == []
    return [size for size, _ in started], tiny.notes(context), failure, [where for _, where in started]


@pytest.mark.parametrize("how", LOST)
def test_a_group_that_loses_someone_is_followed_by_another_one_so_often_as_it_may_be_tried_again(
    tmp_path: Path, crew: Crew, how: str
) -> None:
    sizes, told, failure, _ = crew.run(1, groups, tmp_path / "good", [how, how, "end"])[0]
    assert (sizes, failure) == ([4, 4, 4], "")
    assert told == [f"lost {LOST[how]}{AGAIN}"] * 2
    _, told, failure, _ = crew.run(1, groups, tmp_path / "bad", [how, "controller", how])[0]
    assert told == [f"lost {what}{AGAIN}" for what in (LOST[how], LOST["controller"])]
    assert failure == wording("groups.workers_lost_too_often", lost=LOST[how])


@pytest.mark.parametrize(
    ("how", "failure"),
    [
        ("final", "no space left on the disk of /store (node7)"),
        ("unseen", "no GPU on node7\n  hint: update it"),
        ("other", "the group of workers has failed: RuntimeError: all is lost"),
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_what_another_group_would_fail_of_too_is_not_tried_again_and_reaches_the_task_without_a_file(
    tmp_path: Path, crew: Crew, how: str, failure: str, full: bool
) -> None:
    ended = crew.run(1, partial(groups, full=full), tmp_path, ["worker", how])[0]
    assert ended[1:3] == ([] if full else [f"lost {LOST['worker']}{AGAIN}"], failure)


def test_a_group_waits_for_room_for_as_long_as_it_takes_and_that_is_told_once(tmp_path: Path, crew: Crew) -> None:
    names = [*["no room"] * 5, "worker", *["no room"] * 5, "end"]
    sizes, told, failure, _ = crew.run(1, groups, tmp_path, names)[0]
    assert (set(sizes), failure) == ({4}, "")
    assert told == [waits := "waits for room for 4 workers", f"lost {LOST['worker']}{AGAIN}", waits]


def test_machines_that_are_taken_away_in_good_order_do_not_count(tmp_path: Path, crew: Crew) -> None:
    _, told, failure, _ = crew.run(1, groups, tmp_path, [*["taken"] * 5, "end"])[0]
    assert failure == ""
    assert told == [f"lost worker 1 (gone){AGAIN}"] * 5


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 2),
        ({"parallel": "fsdp"}, 4),
        ({"teacher": "sharded"}, 4),
        ({"parallel": "fsdp", "min_workers": 2}, 2),
        ({"min_workers": 3}, 3),
    ],
)
def test_fewer_workers_go_on_only_where_each_holds_no_more_then_or_the_spec_says_so(
    tmp_path: Path, crew: Crew, options: dict[str, Any], size: int
) -> None:
    sizes, told, *_ = crew.run(1, partial(groups, machines=2, **options), tmp_path, ["no room", "end"])[0]
    assert sizes == [size, size]
    assert told == [wording("groups.waits_room_workers", size=size)]


def test_a_group_that_is_too_small_for_its_memory_is_followed_by_a_larger_one(tmp_path: Path, crew: Crew) -> None:
    work = partial(groups, machines=2, parallel="fsdp", min_workers=1)
    sizes, told, failure, _ = crew.run(1, work, tmp_path, ["memory", "no room", "end"])[0]
    assert (sizes, failure) == ([2, 3, 3], "")
    assert told == [wording("groups.lost_worker_cuda_out", again=AGAIN), wording("groups.waits_room_workers_2")]


def test_the_next_group_keeps_out_of_a_machine_that_does_not_reach_the_store(tmp_path: Path, crew: Crew) -> None:
    sizes, told, _, where = crew.run(1, groups, tmp_path / "fewer", ["astray", "end"])[0]
    assert (sizes, where) == ([4, 3], [None, {"ray.io/node-id": "!in(b)"}])
    assert told == [wording("groups.lost_worker_node_does", again=AGAIN)]
    work = partial(groups, min_workers=4)  # it needs them all
    sizes, _, failure, where = crew.run(1, work, tmp_path / "all", ["astray"] * 3)[0]
    assert (sizes, where) == ([4, 4, 4], [None] * 3)
    assert failure.endswith(wording("groups.last_worker_node_does"))


def growing(place: Path) -> str:
    """What Ray Train decides about a healthy group when there is room for a larger one."""
    many_workers = importlib.import_module("runners.training.ray_train")
    policies = importlib.import_module("ray.train.v2._internal.execution.scaling_policy.factory")
    context: Context[Any] = tiny.context(place)
    context.execution = Execution(training=TrainingOptions(workers=4, min_workers=1))
    policy = policies.create_scaling_policy(many_workers._trainer(context, place, 3, None).scaling_config)
    policy._maybe_send_resource_request = lambda: None
    policy._get_reserved_resources = lambda: {"a": {"CPU": 4.0}}
    old = SimpleNamespace(start_time=-1e9, num_workers=3)
    return type(policy.make_decision_for_running_worker_group(old, None)).__name__


def test_a_group_that_is_at_work_is_never_ended_to_make_it_larger(tmp_path: Path, crew: Crew) -> None:
    assert crew.run(1, growing, tmp_path) == ["NoopDecision"]


def joined(place: Path, inputs: dict[str, Path], wanted: int, error: Exception | None) -> tuple[str, str]:
    """What a worker that is alone in its group raises whose body fails."""
    apart = importlib.import_module("runners.training.ray_train_worker")
    context: Context[Any] = tiny.context(place, recorded(), resume=place / "resume", **inputs)
    context.execution, context.log = Execution(training=TrainingOptions(workers=wanted)), place / "task.log"

    def fails(_: Any) -> None:
        assert error is not None
        raise error

    with pytest.MonkeyPatch.context() as patch:
        if error is not None:
            patch.setattr(distill, "run", fails)
        with pytest.raises((apart.FinalError, torch.OutOfMemoryError)) as caught:
            apart.work_in_group(context)
    return caught.typename, str(caught.value)


def test_an_error_of_a_worker_itself_is_final_but_not_one_of_too_small_a_group(
    tmp_path: Path, crew: Crew, folder: Path
) -> None:
    larger = tiny.token_artifact(tmp_path / "tokens", vocabulary=tiny.VOCABULARY + 1)
    inputs = {"teacher": folder / "tied", "tokens": larger}
    kind, said = crew.run(1, joined, tmp_path / "own", inputs, 2, None)[0]
    assert kind == "FinalError"
    assert wording("distill.vocabulary_but_teacher_embeds") in said
    assert "Traceback" in (tmp_path / "own" / "task.log").read_text()
    memory = torch.OutOfMemoryError("CUDA out of memory.")
    assert crew.run(1, joined, tmp_path / "whole", inputs, 1, memory)[0][0] == "FinalError"
    assert crew.run(1, joined, tmp_path / "fewer", inputs, 2, memory)[0] == ("OutOfMemoryError", str(memory))
    full = OSError(errno.ENOSPC, "No space left on device")
    kind, said = crew.run(1, joined, tmp_path / "full", inputs, 2, full)[0]
    assert kind == "FinalError"
    assert wording("groups.no_space_left_disk", value=tmp_path / "full") in said


def astray(place: Path) -> tuple[str, str]:
    """What a worker raises on a machine that does not reach the store."""
    apart = importlib.import_module("runners.training.ray_train_worker")
    reach = importlib.import_module("runners.cluster.store_check")
    context: Context[Any] = tiny.context(place)
    node = Node(Task(recorded(), {}), "distill")
    asked = CheckedMachines("marker", frozenset())
    job = Job(node, {}, {}, str(place / "store"), str(place / "store"), Path("runs/x"), "", None, False, asked)
    context.job = job
    here = SimpleNamespace(get_node_id=lambda: "b")
    machine = {"NodeID": "b", "NodeManagerHostname": "node7", "NodeManagerAddress": "10.0.0.7"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reach.ray, "get_runtime_context", lambda: here)
        patch.setattr(reach.ray, "nodes", lambda: [machine])
        patch.setattr(reach, "_MARKER_SECONDS", 0.0)
        with pytest.raises((apart.FinalError, BoomspecError)) as caught:
            apart.run_worker({"context": context})
    return caught.typename, str(caught.value)


def test_a_worker_asks_first_whether_its_machine_reaches_the_store(tmp_path: Path, crew: Crew) -> None:
    kind, said = crew.run(1, astray, tmp_path)[0]
    assert kind == "UnreachedError"
    assert wording("groups.node_does_not_reach") in said


def settled(gpus: float) -> str:
    """What a worker fails of before its group has met; where it does not, its device."""
    apart = importlib.import_module("runners.training.ray_train_worker")
    device = importlib.import_module("runners.runtime.device")
    meeting = apart.GroupConfig(backend="gloo", cpus=1, gpus=gpus)
    group = SimpleNamespace(execute=lambda function, **settings: function(**settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart._Backend.__base__, "on_start", lambda *_: None)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # as Ray leaves it
        patch.setenv("BOOMSPEC_TASK_GPUS", "")
        patch.setattr(torch.cuda, "is_available", lambda: gpus == 0)  # torch sees GPUs that are not the worker's
        try:
            meeting.backend_cls().on_start(group, meeting)
        except BoomspecError as error:
            return str(error)
        return str(device.device())


def test_what_a_worker_has_of_its_machine_is_settled_before_the_group_meets(crew: Crew) -> None:
    assert crew.run(1, settled, 0) == ["cpu"]
    assert "torch" in (said := crew.run(1, settled, 1)[0])
    assert wording("groups.task_claimed_gpu", gethostname=socket.gethostname()) in said


def stopping(place: Path, inputs: dict[str, Path], parallel: str, after: int) -> int:
    """A team is told to stop during a micro batch. Returns how many it made."""
    training = importlib.import_module("runners.training.loop")
    recipe, rank = {"steps": 4, "sequences": 7}, torch.distributed.get_rank()
    context: Context[Any] = tiny.context(place / f"{rank}", recorded(recipe=recipe), **inputs)
    tiny.set_training(context, micro_batch=1, parallel=parallel)
    context.resume, context.path = place / "resume", place / "payload"
    context.path.mkdir(exist_ok=True)
    rounds = 0
    real = training.ParallelModel.accumulating

    def counted(parallel: Any, *, last: bool) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == after:
            (context.resume / WORKERS).mkdir(parents=True, exist_ok=True)
            (context.resume / WORKERS / STOP).touch()
        return real(parallel, last=last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.ParallelModel, "accumulating", counted)
        patch.setattr(training, "_LOOK_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            distill.run(context)
    return rounds


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_an_interrupt_is_seen_between_micro_batches_and_the_step_is_dropped(
    tmp_path: Path, crew: Crew, folder: Path, parallel: str
) -> None:
    inputs = {"teacher": folder / "tied", "tokens": folder / "tokens"}
    assert crew.run(2, stopping, tmp_path, inputs, parallel, 6) == [6, 6]  # of 4 a step: 7 rows for 2 workers
    assert [path.name for path in (tmp_path / "resume").glob("step-*")] == ["step-00000001"]
