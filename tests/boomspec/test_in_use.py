"""Who works with a store: seen by others while the process lives, and no longer when it is dead."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.store import FolderStore, Store, leases, open_store
from boomspec.store.lock import IN_USE, is_running
from tests.messages import wording
from tests.runners.s3 import s3_server

EXPIRES = 8.0  # seconds

WORKER = """
import sys, time
from pathlib import Path
from boomspec.store import FolderStore
with FolderStore(sys.argv[1]).using(run=Path(sys.argv[2]) if len(sys.argv) > 2 else None):
    print("at work", flush=True)
    time.sleep(600)
"""
CLEANER = """
import sys
from pathlib import Path
from boomspec.store import FolderStore
with FolderStore(sys.argv[1]).alone():
    print("alone", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def process(code: str, *arguments: Path | str) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is where it should be."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        assert started.stdout.readline()
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "tiny-12345678"
    folder.mkdir(parents=True)
    return folder


def test_a_run_is_running_as_long_as_its_process_lives(tmp_path: Path, run: Path) -> None:
    assert not is_running(run)
    with process(WORKER, tmp_path, run) as worker:
        assert is_running(run)
        worker.kill()
        worker.wait()
        assert not is_running(run)


def test_nobody_has_a_store_alone_that_a_run_works_with_and_the_run_is_named(tmp_path: Path, run: Path) -> None:
    (run.parent / "other-87654321").mkdir()
    with process(WORKER, tmp_path, run) as worker:
        with (
            pytest.raises(BoomspecError, match=wording("in_use.use_run_tiny_nothing")),
            FolderStore(tmp_path).alone(),
        ):
            pytest.fail("it was alone")
        worker.kill()
        worker.wait()
    with FolderStore(tmp_path).alone():
        pass


def test_a_process_that_only_reads_keeps_others_from_cleaning_too(tmp_path: Path) -> None:
    with process(WORKER, tmp_path):
        with (
            pytest.raises(BoomspecError, match=wording("in_use.use_another_boomspec_process")),
            FolderStore(tmp_path).alone(),
        ):
            pytest.fail("it was alone")
        with FolderStore(tmp_path).using():
            pass  # readers do not disturb each other


def test_two_runs_of_one_graph_are_both_seen(tmp_path: Path, run: Path) -> None:
    with process(WORKER, tmp_path, run) as first, process(WORKER, tmp_path, run):
        first.kill()
        first.wait()
        assert is_running(run)


def test_a_run_that_starts_during_a_clean_up_says_so_and_waits(tmp_path: Path, run: Path) -> None:
    said = []
    with process(CLEANER, tmp_path) as cleaner:

        def waiting() -> None:
            said.append("waiting")
            assert cleaner.stdin is not None
            cleaner.stdin.write("\n")
            cleaner.stdin.flush()

        with FolderStore(tmp_path).using(run=run, waiting=waiting):
            assert said == ["waiting"]
            assert cleaner.wait() == 0


def test_a_store_that_is_not_there_can_be_asked_for(tmp_path: Path) -> None:
    with FolderStore(tmp_path / "none").using():
        assert not (tmp_path / "none").exists()


DRIVER = """
import os, sys, time
os.environ["BOOMSPEC_CACHE"] = sys.argv[2]
from boomspec.core.errors import BoomspecError
from boomspec.store import leases, open_store
leases.EXPIRES = float(sys.argv[3])
store = open_store(sys.argv[1])
run = store.run_folder("tiny", "1234567890")
run.mkdir(parents=True)
print("here", flush=True)
sys.stdin.readline()
try:
    with store.using(run=run):
        print("at work", flush=True)
        sys.stdin.readline()
except BoomspecError as error:
    print("refused:", error.message, flush=True)
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, str]]:
    """A server of S3: what reaches it."""
    with s3_server() as server:
        server.make_bucket("shared")
        yield server.environment


@pytest.fixture
def remote(
    shared: dict[str, str], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Store:
    for name, value in (shared | {"BOOMSPEC_CACHE": str(tmp_path / "here")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(leases, "EXPIRES", EXPIRES)
    return open_store(f"s3://shared/{request.node.name}")


@contextmanager
def driver(store: Store, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver of the run on another machine, as far as folders go. It begins when it gets a line."""
    with process(DRIVER, store.address, cache, str(EXPIRES)) as started:
        yield started


def goes_on(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("\n")
    started.stdin.flush()


def says(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def made(store: Store) -> Path:
    """The folder of the run on this machine."""
    folder = store.run_folder("tiny", "1234567890")
    folder.mkdir(parents=True)
    return folder


def test_a_run_that_is_at_work_on_another_machine_is_refused_here_and_goes_on_there(
    remote: Store, tmp_path: Path
) -> None:
    folder, said = made(remote), list[str]()
    with driver(remote, tmp_path / "there") as first:
        goes_on(first)
        assert says(first) == "at work"
        with pytest.raises(BoomspecError) as refused, remote.using(run=folder, elsewhere=said.append):
            pytest.fail("it was at work twice")
        assert wording("in_use.tiny_work_process", gethostname=socket.gethostname(), pid=first.pid) in str(
            refused.value
        )
        assert f"boomspec runs tiny-12345678 --store {remote.address} shows how far it is" in str(refused.value)
        assert len(said) == 1
        assert remote.running_elsewhere() == {"tiny-12345678"}
        goes_on(first)
        first.wait(timeout=60)
    with remote.using(run=folder, elsewhere=said.append):
        assert len(said) == 1  # there was nothing to find out


def test_a_driver_that_was_killed_on_another_machine_is_waited_out_and_told_of_once(remote: Store) -> None:
    folder, said = made(remote), list[str]()
    dead = {"token": "t", "machine": "another", "host": "far", "pid": "7", "since": "1", "run": folder.name}
    remote.bucket.write(f"{IN_USE}/dead", json.dumps({**dead, "renewals": 3}).encode())
    began = time.monotonic()
    with remote.using(run=folder, elsewhere=said.append):
        waited = time.monotonic() - began
    assert EXPIRES - 3 < waited < EXPIRES + 4  # S3 tells times in whole seconds
    assert said == [wording("in_use.tiny_work_far_process")]


def test_of_two_that_start_at_once_on_two_machines_one_works(remote: Store, tmp_path: Path) -> None:
    with driver(remote, tmp_path / "one") as one, driver(remote, tmp_path / "two") as two:
        for each in (one, two):
            goes_on(each)
        assert sorted(says(each).partition(":")[0] for each in (one, two)) == ["at work", "refused"]


def test_drivers_that_share_a_folder_work_on_one_run_together(remote: Store) -> None:
    folder, said = made(remote), list[str]()
    with remote.using(run=folder, elsewhere=said.append), remote.using(run=folder, elsewhere=said.append):
        assert said == []
