"""A machine that joins during a run and does not reach the store: its tasks go elsewhere, and it is named once.

The story has a head without CPUs and one machine, which is kept busy by a task that waits for what another run makes.
Then a machine joins that does not see the store's folder, and everything else that is ready comes there first.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from boomspec.core.execution import Execution
from boomspec.core.graph import Cost, Node, Task, TaskGraph
from boomspec.core.tasks import Evaluate, HeldOut
from boomspec.store import FolderStore
from runners.cluster.store_check import ExcludedMachines, NodeCheck, UnreachedError, _patience, _wait, _without_lost
from tests.messages import wording
from tests.runners.corpora import record, wait_until, write_texts
from tests.runners.grid import grid, without

TASKS = 4


@dataclass(frozen=True)
class Story:
    """How the run ended."""

    code: int
    output: str
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    folder = Path(tempfile.mkdtemp(prefix="br", dir="/tmp"))
    try:
        yield _told(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _told(folder: Path) -> Story:
    text = write_texts(folder / "texts")
    tasks = [Task(record(held_out_offset=i), {"text": text.id}) for i in range(TASKS)]
    # The first one has the longest way to go, and is started first.
    nodes = {task.id: Node(task, f"task {i}", cost=Cost(flops=10**9 // (i + 1))) for i, task in enumerate(tasks)}
    graph = TaskGraph("reach", nodes, {text.id: text}, tuple(nodes))
    graph.write(folder / "graph.json")
    store = FolderStore(folder / "store")
    run = store.run_folder(graph.name, graph.id)
    store.root.mkdir()
    astray = without(store.root)

    def said(words: str, file: Path) -> bool:
        return file.exists() and words in file.read_text()

    with grid(folder, cpus=(0, 1)) as made:
        command = [sys.executable, "-m", "runners", str(folder / "graph.json"), "--plain", "--store", store.address]
        with store.claimed("tokenize", tasks[0].id):
            driver = subprocess.Popen(
                [*command, "--address", made.gcs],
                env=made.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            progress, events = run / "progress" / f"{tasks[0].id}.jsonl", run / "events.jsonl"
            wait_until(lambda: said("another run is at work", progress) or driver.poll() is not None)
            made.add(within=astray)
            wait_until(lambda: said("does not reach the store", events) or driver.poll() is not None)
            time.sleep(3)  # for what comes there as well
        try:
            output, _ = driver.communicate(timeout=240)
        finally:
            driver.kill()
    return Story(driver.returncode, output, [json.loads(line) for line in events.read_text().splitlines()])


@pytest.mark.chaos
def test_every_task_is_made_where_the_store_is(story: Story) -> None:
    assert story.code == 0, story.output
    ended = [event["name"] for event in story.events if event["event"] == "task_finished"]
    assert sorted(ended) == [f"task {i}" for i in range(TASKS)]


@pytest.mark.chaos
def test_the_machine_is_named_once(story: Story) -> None:
    notes = [event["message"] for event in story.events if event["event"] == "note"]
    (told,) = (note for note in notes if "does not reach the store" in note)
    assert wording("reach.store_another_folder_tasks") in told


def node(**execution: Any) -> Node:
    return Node(Task(Evaluate(measure=HeldOut(sequence_length=8), precision="fp32"), {}), "n", Execution(**execution))


def test_a_machine_is_left_out_for_a_while_and_where_another_one_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [
        {"NodeID": name, "Alive": name != "gone", "Resources": {"CPU": cpus, "GPU": gpus}}
        for name, cpus, gpus in (("good", 1.0, 0.0), ("astray", 2.0, 1.0), ("gone", 9.0, 9.0))
    ]
    clock = [0.0]
    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr("runners.cluster.store_check.time", SimpleNamespace(monotonic=lambda: clock[0]))
    astray = ExcludedMachines()
    assert astray.options(node()) == {}
    error = UnreachedError("it is nowhere", machine="astray", hint="mount it")
    assert astray.add(pickle.loads(pickle.dumps(error))) == wording("reach.nowhere_tasks_go_other")
    assert astray.add(error) == ""
    assert astray.options(node()) == {"label_selector": {"ray.io/node-id": "!in(astray)"}}
    assert astray.options(node(gpus=1)) == {}  # it would wait for ever
    clock[0] = 601
    assert astray.options(node()) == {}


def asleep(seconds: float) -> None:
    time.sleep(seconds)


def test_who_is_waited_for_is_told_once_and_what_is_not_answered_is_given_back(
    connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.cluster.store_check._SAY_SECONDS", 1.0)
    sleep = ray.remote(num_cpus=0)(asleep)
    names = {sleep.remote(0): "quick", sleep.remote(600): "slow"}
    ray.wait(list(names))
    told: list[str] = []
    (slow,) = _wait(names, 4, told.append, lambda: False)
    assert (names[slow], told) == ("slow", ["slow"])
    ray.cancel(slow, force=True)


def test_machines_that_have_packages_to_install_get_much_longer() -> None:
    seconds, what_for = _patience({"env_vars": {"A": "1"}})
    assert (seconds, what_for) == (180, "to answer")
    seconds, what_for = _patience({"pip": {"packages": ["torch"]}})
    assert seconds > 600  # after which Ray gives up installing
    assert what_for == wording("reach.install_job_packages_minutes")


def test_a_machine_that_is_lost_while_it_is_asked_is_no_reason_to_refuse_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where its agent was killed Ray says that the job's environment cannot be made, and loses it seconds later."""
    looks = [[{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": alive}] for alive in (True, False)]
    monkeypatch.setattr("ray.nodes", lambda: looks.pop(0) if len(looks) > 1 else looks[0])
    monkeypatch.setattr("runners.cluster.store_check._POLL_SECONDS", 0.01)
    denied = NodeCheck(False, "access denied")
    assert _without_lost({"a": denied, "b": NodeCheck(False, "no environment", unprepared=True)}) == {"a": denied}
