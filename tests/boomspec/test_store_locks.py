"""Who is at work in a store: living processes keep what is theirs, on whichever machine; dead ones hold nothing."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boomspec.core.files import locked_folder
from boomspec.store import FolderStore, Store
from boomspec.store.gc import garbage
from tests.boomspec.troubled_disk import another_machine

KIND, TASK = "distill", "ab" * 32

# Processes of their own: store on the command line; they say that they have begun, and wait for a line.
WRITER = """
import sys
from boomspec.store import FolderStore
with FolderStore(sys.argv[1]).workspace("distill", "ab" * 32) as workspace:
    (workspace.path / "half").write_bytes(b"x" * 100)
    print(workspace.path, flush=True)
    sys.stdin.readline()
"""
TRAINER = """
import sys
from boomspec.store import FolderStore
store = FolderStore(sys.argv[1])
with store.claimed("distill", "ab" * 32):
    (store.resume("distill", "ab" * 32) / ".part-x").mkdir(exist_ok=True)
    print("mine", flush=True)
    sys.stdin.readline()
    (store.resume("distill", "ab" * 32) / ".part-x").rmdir()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = FolderStore(tmp_path / "store")
    (store.root / KIND).mkdir(parents=True)
    return store


@contextmanager
def process(code: str, store: Store) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process at work, and the line that it has said."""
    command = [sys.executable, "-c", code, str(store.root)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    try:
        yield started, started.stdout.readline().strip()
    finally:
        started.kill()
        started.communicate()


def ends(started: subprocess.Popen[str]) -> None:
    started.communicate("\n", timeout=60)


def there(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / KIND).iterdir())


def leftovers(store: Store) -> list[Path]:
    items, _ = garbage(store, [], forget=[], cache=False)
    return [Path(item.path) for item in items]


def test_a_writer_on_another_machine_is_not_swept_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with process(WRITER, store) as (alive, folder):
        another_machine(monkeypatch)
        with store.workspace(KIND, TASK) as own:
            assert (Path(folder) / "half").exists()
            assert own.path != Path(folder)
        assert leftovers(store) == []
        ends(alive)
    assert there(store) == []


def test_checkpoints_that_another_machine_writes_are_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    half = store.resume(KIND, TASK) / ".part-x"
    with process(TRAINER, store) as (alive, _):
        another_machine(monkeypatch)
        assert leftovers(store) == []
        with store.claimed(KIND, TASK, waiting=lambda: ends(alive)):
            assert alive.poll() == 0
            assert not half.exists()
    assert there(store) == []


def test_a_process_that_is_killed_holds_nothing_and_leaves_nothing_for_ever(store: Store) -> None:
    with process(WRITER, store) as (writer, _), process(TRAINER, store) as (trainer, _):
        for each in (writer, trainer):
            each.send_signal(signal.SIGKILL)
            each.wait()
    assert [name.partition(".")[2][64:] for name in there(store)][-1] == ".resume"
    assert len(there(store)) == 3  # and a folder with its lock
    (workspace, lock, resume) = (store.root / KIND / name for name in there(store))
    assert leftovers(store) == [workspace, lock, resume]
    with store.claimed(KIND, TASK, waiting=lambda: pytest.fail("a dead one was waited for")):
        with store.workspace(KIND, TASK):
            assert not workspace.exists()
            assert not lock.exists()
        (resume / ".part-x").rmdir()
    assert there(store) == []


def test_what_is_let_go_is_left_without_locks(store: Store) -> None:
    with store.claimed(KIND, TASK):
        assert [path.name for path in store.resume(KIND, TASK).iterdir()] == [".lock"]
        (store.resume(KIND, TASK) / "step-00000001").mkdir()
        with store.workspace(KIND, TASK) as workspace:
            assert list(workspace.path.iterdir()) == []
            assert len(there(store)) == 3
    assert [path.name for path in store.resume(KIND, TASK).iterdir()] == ["step-00000001"]
    assert there(store) == [f".{TASK}.resume"]
    with store.claimed(KIND, TASK), store.workspace(KIND, TASK) as workspace:
        store.publish(workspace, KIND, TASK, {}, {})
    assert there(store) == [TASK]


def test_a_folder_without_a_lock_may_be_an_older_boomspecs_and_is_left_to_gc(store: Store) -> None:
    folder = store.root / KIND / f".{TASK}.abcdefgh"
    folder.mkdir()
    with store.workspace(KIND, TASK):
        assert folder.exists()
    assert leftovers(store) == [folder]


def test_many_at_once_have_a_folder_each_and_one_the_checkpoints(store: Store) -> None:
    inside: list[str] = []
    most: list[int] = []
    meeting = threading.Barrier(8)

    def work() -> None:
        meeting.wait()
        with store.workspace(KIND, TASK) as workspace, store.claimed(KIND, TASK):
            inside.append(workspace.path.name)
            most.append(len(inside))
            assert workspace.path.is_dir()
            inside.remove(workspace.path.name)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert most == [1] * 8
    assert there(store) == []


def test_what_belongs_to_a_dead_ones_folder_goes_with_it(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked_folder(tmp_path, "model-") as folder:
            folder.with_name(f"{folder.name}-old").mkdir()
            os._exit(0)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 3
    with locked_folder(tmp_path, "model-") as folder:
        folder.rename(tmp_path / "done")
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_where_nothing_can_be_made_that_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked_folder(tmp_path / "absent", "x-"):
        pytest.fail("it was made")
