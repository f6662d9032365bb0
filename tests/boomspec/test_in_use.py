"""Who works with a store: seen by others while the process lives, and no longer when it is dead."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boomspec.errors import BoomspecError
from boomspec.in_use import alone, is_running, using

WORKER = """
import sys, time
from pathlib import Path
from boomspec.in_use import using
with using(Path(sys.argv[1]), run=Path(sys.argv[2]) if len(sys.argv) > 2 else None):
    print("at work", flush=True)
    time.sleep(600)
"""
CLEANER = """
import sys
from pathlib import Path
from boomspec.in_use import alone
with alone(Path(sys.argv[1])):
    print("alone", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def process(code: str, *arguments: Path) -> Iterator[subprocess.Popen[str]]:
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
            pytest.raises(BoomspecError, match=r"is in use by run tiny-12345678: nothing was changed"),
            alone(tmp_path),
        ):
            pytest.fail("it was alone")
        worker.kill()
        worker.wait()
    with alone(tmp_path):
        pass


def test_a_process_that_only_reads_keeps_others_from_cleaning_too(tmp_path: Path) -> None:
    with process(WORKER, tmp_path):
        with pytest.raises(BoomspecError, match="in use by another boomspec process"), alone(tmp_path):
            pytest.fail("it was alone")
        with using(tmp_path):
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

        with using(tmp_path, run=run, waiting=waiting):
            assert said == ["waiting"]
            assert cleaner.wait() == 0


def test_a_store_that_is_not_there_can_be_asked_for(tmp_path: Path) -> None:
    with using(tmp_path / "none"):
        assert not (tmp_path / "none").exists()
