"""What a run leaves at the store's URL for other machines, checkpoints and its folder, on a real S3 server."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from boomspec.core.graph import Node, Task, TaskGraph
from boomspec.core.work_sizes import KEPT_CHECKPOINTS
from boomspec.store import FolderStore, open_store
from boomspec.store.bucket import Bucket
from boomspec.store.leases import hold_own_lease
from boomspec.store.lock import IN_USE
from runners.cli.run import main
from runners.executor.remote_run import RunCopy, affordable, copied
from runners.runtime.context import Context
from runners.runtime.relay import Relay
from runners.tasks import distill
from runners.training.process_group import STOP, WORKERS
from runners.training.remote_checkpoint import STATE, RemoteCheckpoints
from tests.messages import wording
from tests.runners import tiny
from tests.runners.corpora import record as record_of_tokens
from tests.runners.corpora import write_texts
from tests.runners.crew import Crew
from tests.runners.s3 import S3, s3_server
from tests.runners.test_distill import record as recorded
from tests.runners.test_distill import teacher_artifact
from tests.runners.test_many_workers import UNEVEN, same
from tests.runners.test_training import RECIPE, assert_same, interrupted_at, run

PREFIX = "pretrain/.0123.resume"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(s3: S3, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    made = s3.make_bucket(f"b{abs(hash(request.node.name))}")
    yield Bucket(made, retry_seconds=30)
    s3.mend()


def machine(folder: Path, bucket: Bucket) -> Context[Any]:
    """A training's context on a machine with folders of its own."""
    context = tiny.context(folder)
    tiny.set_training(context, checkpoint_seconds=0.0)
    context.remote = RemoteCheckpoints(bucket.below(PREFIX), context.progress.note)
    return context


def checkpoints(bucket: Bucket) -> set[str]:
    return {name.split("/")[2] for name in bucket.entries(PREFIX)}


def test_a_training_goes_on_on_another_machine_from_the_newest_checkpoint_in_the_store(
    tmp_path: Path, bucket: Bucket
) -> None:
    expected = run(tiny.context(tmp_path / "undisturbed"))
    with pytest.raises(KeyboardInterrupt):
        run(machine(tmp_path / "first", bucket), batches=interrupted_at(4))
    assert len(checkpoints(bucket)) == KEPT_CHECKPOINTS
    second = machine(tmp_path / "second", bucket)
    assert_same(run(second), expected)
    assert tiny.notes(second) == [
        wording("mirror.fetched_checkpoint_step_store"),
        wording("mirror.continues_after_step", steps=RECIPE.steps),
    ]


def test_what_is_newer_here_is_not_fetched(tmp_path: Path, bucket: Bucket, s3: S3) -> None:
    first = machine(tmp_path / "first", bucket)
    with pytest.raises(KeyboardInterrupt):
        run(first, batches=interrupted_at(4))
    again = replace(machine(tmp_path / "again", bucket), resume=first.resume)
    with pytest.raises(KeyboardInterrupt):
        run(again, batches=interrupted_at(5))
    assert tiny.notes(again) == [wording("mirror.continues_after_step", steps=RECIPE.steps)]


def test_a_checkpoint_in_the_store_that_is_broken_or_not_whole_is_passed_over(tmp_path: Path, bucket: Bucket) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(machine(tmp_path / "first", bucket), batches=interrupted_at(4))
    good = checkpoints(bucket)
    newest = max(good)
    name = f"{PREFIX}/{newest}/weights.safetensors"
    bucket.write(name, bucket.read(name)[:-4] + b"\0\1\2\3")
    bucket.write(f"{PREFIX}/step-00000009.unended/weights.safetensors", b"its machine was lost before the end")
    second = machine(tmp_path / "second", bucket)
    with pytest.raises(KeyboardInterrupt):
        run(second, batches=interrupted_at(4))
    fetched, told, again, continues = tiny.notes(second)
    older = int(min(good)[5:13])
    assert fetched == wording("mirror.fetched_checkpoint_step_store")
    assert wording("mirror.checkpoint_store_broken_passed", newest=newest) in told
    assert again == wording("mirror.fetched_checkpoint_step_store_2", older=older)
    assert continues == wording("mirror.continues_after_step_2", older=older, steps=RECIPE.steps)
    assert all(f"{PREFIX}/{name}/{STATE}" in bucket.entries(PREFIX) for name in checkpoints(bucket))


def test_a_store_that_takes_no_checkpoint_is_told_of_once_and_the_training_ends(
    tmp_path: Path, bucket: Bucket, s3: S3
) -> None:
    expected = run(tiny.context(tmp_path / "undisturbed"))
    first = machine(tmp_path / "first", bucket.without_retries())
    assert first.remote is not None
    batches = interrupted_at(RECIPE.steps)  # never

    def cut(step: int) -> Any:
        if step == 0:  # the first checkpoint comes behind it
            s3.cut()
        return batches(step)

    assert_same(run(first, batches=cut), expected)
    first.remote.wait()
    (told,) = tiny.notes(first)
    assert told.startswith(wording("mirror.checkpoint_could_not_sent"))


def apart(folder: Path, url: str, record: Any, inputs: dict[str, Path], settings: dict[str, str]) -> list[str]:
    """One worker of a team on machines that share nothing. Returns its notes."""
    os.environ.update(settings)
    rank = torch.distributed.get_rank()
    own = tiny.context(folder / f"machine-{rank}", record, **inputs)
    tiny.set_training(own, parallel="fsdp", micro_batch=2)
    own.local_leader = True
    own.remote = RemoteCheckpoints(Bucket(url, retry_seconds=30).below(PREFIX), own.progress.note)
    stops = (folder / STOP).exists()
    if stops and rank == 0:
        (own.resume / WORKERS).mkdir(parents=True)
        (own.resume / WORKERS / STOP).touch()
    try:
        distill.run(own)
    except KeyboardInterrupt:
        assert stops
    own.remote.wait()
    torch.distributed.barrier()
    if rank == 0 and not stops:
        own.remote.deliver(own.path)
    return tiny.notes(own)


def test_sharded_checkpoints_of_machines_that_share_nothing_are_whole_in_the_store(
    tmp_path: Path, bucket: Bucket, s3: S3
) -> None:
    tokens, teacher = tiny.token_artifact(tmp_path / "tokens"), tmp_path / "teacher"
    teacher_artifact(teacher, tie_word_embeddings=False)
    inputs, record = {"teacher": teacher, "tokens": tokens}, recorded(recipe=UNEVEN)
    one = tiny.context(tmp_path / "one", record, **inputs)
    distill.run(one)
    many = tmp_path / "many"
    many.mkdir()
    (many / STOP).touch()  # each group makes one step, saves itself and stops
    crew = Crew(2)
    try:
        crew.run(2, apart, many, bucket.url, record, inputs, s3.environment)
        (first,) = checkpoints(bucket)
        files = {name.rpartition("/")[2] for name in bucket.entries(f"{PREFIX}/{first}")}
        kinds = ("weights", "moments")
        assert files == {STATE, *(f"{kind}-{rank:05}-of-00002.safetensors" for kind in kinds for rank in (1, 2))}
        assert not list(many.glob("machine-1/resume/.part-*"))  # what was sent is not kept
        for path in many.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        leader, other = crew.run(2, apart, many, bucket.url, record, inputs, s3.environment)
    finally:
        crew.close()
    fetched = "fetched the checkpoint of step 1 from the store"
    assert [note for note in leader if not note.startswith("warning")] == [
        fetched,
        wording("many_workers.continues_after_step"),
    ]
    assert fetched in other
    received = tmp_path / "received"
    received.mkdir()
    RemoteCheckpoints(bucket.below(PREFIX), print).receive(received)
    same(received, one.path)


def test_a_runs_folder_is_sent_and_brought_to_the_machine_that_goes_on(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for name in ("first", "second"):
        monkeypatch.setenv("BOOMSPEC_CACHE", str(tmp_path / name))
        store = open_store(bucket.url)
        folder = store.run_folder("small", "0123456789")
        folders.append(folder)
        folder.mkdir(parents=True)
        with copied(store, folder) as mirror:
            assert mirror is not None
            if name == "second":
                assert (folder / "logs" / "a.log").read_text() == "said on first"
            with (folder / "events.jsonl").open("a") as events:
                events.write(f"{name}\n")
            (folder / "logs").mkdir(exist_ok=True)
            (folder / "logs" / f"{'ab'[name == 'second']}.log").write_text(f"said on {name}")
            (folder / ".running").touch()
            assert mirror.failures.empty()
    assert {name.partition("0123")[2] for name in bucket.entries("runs")} == {
        "4567/events.jsonl",
        "4567/logs/a.log",
        "4567/logs/b.log",
    }
    assert bucket.read("runs/small-01234567/events.jsonl") == b"first\nsecond\n"
    with copied(FolderStore(tmp_path / "folder"), tmp_path) as mirror:
        assert mirror is None


def test_a_runs_folder_that_cannot_be_sent_is_told_of_and_ends_nothing(tmp_path: Path, bucket: Bucket, s3: S3) -> None:
    mirror = RunCopy(tmp_path, bucket.below(f"runs/{tmp_path.name}").without_retries())
    mirror.begin()
    (tmp_path / "events.jsonl").write_text("one\n")
    s3.cut()
    assert mirror.end()
    told = mirror.failures.get(timeout=1)
    assert mirror.failures.empty()
    assert told.startswith(wording("mirror.what_known_run_not", url=bucket.url, name=tmp_path.name))


def test_a_large_file_that_grows_is_sent_seldom_the_events_often_and_all_of_both_at_the_end(
    tmp_path: Path, bucket: Bucket, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.executor.remote_run._EVERY_SECONDS", 0.2)
    mirror = RunCopy(tmp_path, bucket.below(f"runs/{tmp_path.name}"))
    mirror.begin()
    s3.wire.forget()
    until = time.monotonic() + 120
    with (
        (tmp_path / "progress.jsonl").open("wb", buffering=0) as progress,
        (tmp_path / "events.jsonl").open("a") as events,
    ):
        progress.write(b"x" * (1 << 20))  # twenty shares
        while s3.wire.counted("PUT", "progress.jsonl") < 2 and time.monotonic() < until:
            progress.write(b"x")
            events.write("one\n")
            events.flush()
            time.sleep(0.05)
    assert s3.wire.counted("PUT", "progress.jsonl") == 2
    assert s3.wire.counted("PUT", "events.jsonl") > 20
    assert mirror.end() == ""
    for name in ("progress.jsonl", "events.jsonl"):
        assert bucket.read(f"runs/{tmp_path.name}/{name}") == (tmp_path / name).read_bytes()


def test_files_share_the_rate_and_what_small_ones_do_not_need_large_ones_have() -> None:
    sizes = {"status.json": 1_000, "events.jsonl": 90_000, "one": 400_000, "other": 4_000_000}
    shares: dict[str, int] = {}
    sent = Counter[str]()
    for _ in range(100):
        sent.update(affordable({name: (0, size) for name, size in sizes.items()}, shares, 200_000).keys())
        for name in [name for name, share in shares.items() if share >= sizes[name]]:
            del shares[name]
    assert sum(sent[name] * size for name, size in sizes.items()) <= 100 * 200_000
    assert sent["status.json"] == sent["events.jsonl"] == 100
    assert sent["one"] == 100 // 8  # half of what the first two leave
    assert sent["other"] == 1


def test_what_is_at_the_url_already_is_not_sent_again(tmp_path: Path, bucket: Bucket, s3: S3) -> None:
    for content in ("first", "other"):
        mirror = RunCopy(tmp_path, bucket.below(f"runs/{tmp_path.name}"))
        mirror.begin()
        (tmp_path / "task.log").write_text("said once")
        (tmp_path / "status.json").write_text(content)
        assert mirror.end() == ""
    for file in tmp_path.iterdir():
        os.utime(file, (0, 0))  # S3 tells times in whole seconds
    assert bucket.read(f"runs/{tmp_path.name}/status.json") == b"other"
    s3.wire.forget()
    mirror = RunCopy(tmp_path, bucket.below(f"runs/{tmp_path.name}"))
    mirror.begin()
    assert mirror.end() == ""
    assert s3.wire.counted("PUT") == 0


def test_a_second_driver_on_another_machine_overwrites_nothing_of_the_run(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("boomspec.store.leases.EXPIRES", 4.0)
    monkeypatch.setenv("BOOMSPEC_CACHE", str(tmp_path / "second"))
    text = write_texts(tmp_path / "texts", ["a document"])
    task = Task(record_of_tokens(), {"text": text.id})
    graph = TaskGraph("small", {task.id: Node(task, "tokens")}, {text.id: text}, (task.id,))
    graph.write(tmp_path / "graph.json")
    name = open_store(bucket.url).run_folder(graph.name, graph.id).name
    bucket.write(f"runs/{name}/events.jsonl", b"of the first one\n")
    with hold_own_lease(bucket, f"{IN_USE}/0", run=name, folder="there", host="far"):
        assert main([str(tmp_path / "graph.json"), "--store", bucket.url, "--plain"]) == 2
    assert wording("mirror.error_work_far", name=name) in capsys.readouterr().err
    assert bucket.read(f"runs/{name}/events.jsonl") == b"of the first one\n"
    assert list(bucket.entries("runs")) == [f"runs/{name}/events.jsonl"]


def test_a_piece_that_is_told_twice_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    relay = Relay(tmp_path)
    for source, offset, data in (("a", 0, b"one\n"), ("a", 0, b"one\n"), ("b", 0, b"other\n"), ("a", 2, b"e\ntwo\n")):
        relay.append("log", "task", source, offset, data)
    assert (tmp_path / "logs" / "task.log").read_bytes() == b"one\nother\ntwo\n"
