"""What works with a store keeps `boomspec gc` from deleting in it, and waits for one that does."""

import subprocess
import sys
from pathlib import Path

import pytest

from boomspec.core.graph import Node, Task, TaskGraph
from boomspec.store import FolderStore, Store
from tests.boomspec.past import publish
from tests.messages import wording
from tests.runners.corpora import wait_until, write_texts
from tests.runners.story import pretraining


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def graph(tmp_path: Path, store: Store) -> Path:
    """A graph whose only artifact is in the store."""
    text = write_texts(tmp_path / "texts", ["one document", "and another one"])
    task = Task(pretraining(), {"tokens": text.id})
    publish(store, task)
    path = tmp_path / "graph.json"
    TaskGraph("small", {task.id: Node(task, "teacher")}, {text.id: text}, (task.id,)).write(path)
    return path


def test_a_run_waits_for_the_end_of_a_clean_up_and_says_so(store: Store, graph: Path) -> None:
    command = [sys.executable, "-m", "runners", str(graph), "--store", str(store.root)]
    with store.alone():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == wording("store_in_use.store_being_cleaned_up")
        assert process.poll() is None
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "nothing to do" in output


def test_an_export_waits_too_so_that_what_it_reads_stays(store: Store, graph: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runners.cli.export", str(graph), "--store", str(store.root), "--folder"]
    with store.alone():
        process = subprocess.Popen([*command, str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
        wait_until(lambda: waits_for_a_lock(process.pid))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said  # this graph has no family; but it has waited before it looked


def waits_for_a_lock(process: int) -> bool:
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any("->" in row and str(process) in row for row in rows)
