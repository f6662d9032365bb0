"""Tasks that stand still are told of; disks that are full are named."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors import SafetensorError

from boomspec.core.errors import EXIT_RUN_FAILED
from boomspec.core.graph import TaskGraph
from runners.cluster.ray_cluster import LostMachines
from runners.executor.heartbeat import ALIVE, Heartbeats
from runners.runtime import journal as journals
from runners.runtime.journal import Event, Follower, Journal
from runners.runtime.task_errors import FullDiskError, detect_full_disk, is_full, survived
from tests.messages import wording
from tests.runners.corpora import wait_until

_BEATING = """
import sys, time
from pathlib import Path
from runners.runtime.context import Progress
from runners.executor.heartbeat import beating
with beating(Progress(Path(sys.argv[1])), every=0.05):
    time.sleep(600)
"""


def test_a_process_that_was_stopped_is_silent_until_it_goes_on(tmp_path: Path) -> None:
    """A body that says nothing at all is alive as long as its process is."""
    file, silence = tmp_path / "progress.jsonl", Heartbeats(seconds=1.0)
    follower = Follower(file)
    process = subprocess.Popen([sys.executable, "-c", _BEATING, file])

    def heard() -> bool:
        lines = follower.lines()
        for line in lines:
            silence.received("task", line)
        return any(ALIVE in line for line in lines)

    def told() -> list[str]:
        heard()
        return [note for _, note in silence.notes()]

    try:
        wait_until(heard)
        silence.received("task", {"started": {"host": "node7", "pid": process.pid}})
        assert told() == []
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: bool(told()))
        assert told() == [], "it is told of once, and again when it is silent twice as long"
        process.send_signal(signal.SIGCONT)
        wait_until(heard)
        assert told() == []
    finally:
        process.kill()
        process.wait()


def test_who_is_silent_is_told_with_its_machine_and_process_and_less_and_less_often() -> None:
    now = [0.0]
    silence = Heartbeats(seconds=600, progress_seconds=36_000, now=lambda: now[0])
    silence.received("a", {"started": {"host": "node7", "pid": 123}})
    silence.received("b", {ALIVE: True})
    said = []
    for minute in range(60):
        now[0] = minute * 60.0
        silence.received("b", {ALIVE: True})
        said += [(minute, task, note) for task, note in silence.notes()]
    assert [(minute, task) for minute, task, _ in said] == [(10, "a"), (20, "a"), (40, "a")]
    assert said[0][2].startswith(wording("silence.no_word_minutes_node"))
    silence.ended("a")
    now[0] = 10_000.0
    assert [task for task, _ in silence.notes()] == ["b"]


def test_a_body_that_says_nothing_while_its_process_lives_is_told_of_later_and_otherwise() -> None:
    """As one does that hangs in a download, or waits for another worker that never comes."""
    now = [0.0]
    silence = Heartbeats(seconds=600, progress_seconds=1800, now=lambda: now[0])
    silence.received("a", {"started": {"host": "node7", "pid": 123}})
    said = []
    for minute in range(70):
        now[0] = minute * 60.0
        silence.received("a", {ALIVE: True})
        if minute == 5:
            silence.received("a", {"done": 1, "total": 2})
        said += [(minute, note) for _, note in silence.notes()]
    assert [minute for minute, _ in said] == [35, 65]
    assert said[0][1].startswith(wording("silence.no_progress_minutes_node"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path_factory.mktemp("disk")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no file system of its own can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    assert os.statvfs(disk).f_bavail == 0
    return filler


def test_a_full_disk_is_named_with_what_is_free_whatever_its_error_looks_like(disk: Path, tmp_path: Path) -> None:
    filler = fill(disk)
    try:
        errors = [
            OSError(errno.ENOSPC, "No space left on device"),
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        ]
        for error in errors:
            with pytest.raises(FullDiskError) as caught, detect_full_disk(tmp_path, disk / "not" / "there yet"):
                raise error
            assert wording("silence.no_space_left_disk", disk=disk) in str(caught.value)
            assert "0.0 B of 1.0 MiB free" in str(caught.value)
            assert caught.value.exit_code == EXIT_RUN_FAILED
        with pytest.raises(FileNotFoundError), detect_full_disk(disk):
            raise FileNotFoundError(errno.ENOENT, "another error stays what it is")
        said: list[str] = []
        with survived("a file", said.append, disk):
            (disk / "file").write_bytes(b"0" * 10_000)
        assert said[0].startswith(wording("silence.file_could_not_written", disk=disk))
        assert not is_full(ValueError("no"))
    finally:
        filler.unlink()
        (disk / "file").unlink(missing_ok=True)


def test_events_that_a_full_disk_does_not_take_are_written_when_there_is_room(disk: Path) -> None:
    said: list[Event] = []
    journal = Journal(disk / "run", TaskGraph("nothing", {}, {}, ()), said.append)
    journal.event("run_started", tasks=0)
    filler = fill(disk)
    for number in range(300):
        journal.event("note", message=f"note {number} of a run whose disk is full")
    journal.status({"state": "failed"})
    filler.unlink()
    journal.event("run_finished", state="failed")
    lines = (disk / "run" / "events.jsonl").read_text().splitlines()
    assert len(lines) == 302
    assert "note 299" in lines[-2]
    notes = [event["message"] for event in said if "could not be written" in event.get("message", "")]
    assert [note.partition(" ")[0] for note in notes] == ["events.jsonl", "status.json"]
    assert not list((disk / "run").glob(".status*"))


def test_events_reach_the_disk_in_groups_and_the_last_ones_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(journals, "flush", lambda path: flushed.append(path.read_text()))
    written = Journal(tmp_path / "run", TaskGraph("graph", {}, {}, ()), lambda event: None)
    for i in range(50):
        written.event("note", message=f"{i}")
    assert len(flushed) < 10
    written.event("run_finished", state="finished")
    assert flushed[-1].count("\n") == 51


def test_a_machine_that_a_cluster_has_no_longer_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def there(*names: str, dead: str = "") -> list[dict[str, object]]:
        address = {"NodeManagerAddress": "10.0.0.1"}
        return [{"NodeID": i, "NodeManagerHostname": i, "Alive": i != dead, **address} for i in names]

    looks = iter([there("a", "b"), there("a", "b", dead="b"), there("a"), there("a", "c"), there("c")])
    monkeypatch.setattr("ray.nodes", lambda: next(looks))
    monkeypatch.setattr("runners.cluster.ray_cluster._LOOK_SECONDS", 0.0)
    lost = LostMachines()
    assert [lost.names() for _ in range(5)] == [[], ["b (10.0.0.1)"], [], [], ["a (10.0.0.1)"]]
