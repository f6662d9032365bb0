"""Containers on one volume, where everybody has the same process number and host name, and volumes without locks."""

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.core.errors import BoomspecError
from boomspec.core.files import check_locks, exclusive_lock
from boomspec.store import FolderStore
from boomspec.store.gc import garbage
from boomspec.store.lock import is_running
from tests.boomspec.conftest import Writer
from tests.messages import wording

KIND, TASK = "tokenize", "ab" * 32
ROOMS = [Path(__file__).parents[2] / room for room in ("boomspec", "runners")]

# Processes of their own: store and rounds on the command line. They begin together, and say which number they have.
WRITER = """
import os, sys
from contextlib import suppress
from boomspec.core.files import write_atomically
from boomspec.store import FolderStore
store = FolderStore(sys.argv[1])
if sys.argv[2:]:
    os.getpid = lambda: 7
store.root.mkdir(parents=True, exist_ok=True)
print(os.getpid(), flush=True)
sys.stdin.readline()
kind, task = "tokenize", "ab" * 32
for i in range(60):
    write_atomically(store.root / "status.json", '{"state": "running"}' * 400)
    with store.workspace(kind, task) as workspace:
        (workspace.path / "train.bin").write_bytes(b"t" * 100)
        (workspace.path / "broken").write_bytes(b"b")
        store.publish(workspace, kind, task, {}, {})
    store.discard(kind, task)
    with suppress(FileExistsError):  # `exist_ok` raises where the other one has taken it away in between
        store.root.joinpath(kind, task).mkdir()  # a broken one: no record
    store.discard(kind, task)
with store.workspace(kind, task) as workspace:
    (workspace.path / "train.bin").write_bytes(b"t" * 100)
    print("at work", flush=True)
    sys.stdin.readline()
    store.publish(workspace, kind, task, {}, {})
print("done", flush=True)
"""


def _unshare() -> list[str]:
    """Into a namespace where one is process 1; nothing where nobody may make one: then the number is set."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--uts"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    return command if allowed else []


def test_two_containers_with_one_process_number_write_the_same_things_into_one_store(tmp_path: Path) -> None:
    store, way = FolderStore(tmp_path / "store"), _unshare()
    number = "1" if way else "7"
    command = [*way, sys.executable, "-c", WRITER, str(store.root), *([] if way else ["7"])]
    pods = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for word in (number, "at work"):
            for pod in pods:
                assert pod.stdout is not None
                assert pod.stderr is not None
                line = pod.stdout.readline().strip()
                assert line == word, pod.stderr.read()
            if word == "at work":  # neither has swept away what the other one works in
                folders = [path for path in (store.root / KIND).iterdir() if (path / "train.bin").exists()]
                assert len(folders) == 2
                assert garbage(store, [], forget=[], cache=False)[0] == []
            for pod in pods:
                assert pod.stdin is not None
                pod.stdin.write("\n")
                pod.stdin.flush()
        for pod in pods:
            output, complaint = pod.communicate(timeout=60)
            assert output == "done\n", complaint
    finally:
        for pod in pods:
            pod.kill()
            pod.communicate()
    assert store.damage(KIND, TASK, checksums=True) is None
    assert [path.name for path in (store.root / KIND).iterdir()] == [TASK]
    assert sorted(path.name for path in store.root.iterdir()) == ["status.json", KIND]


def test_no_name_of_a_file_is_made_of_a_process_number() -> None:
    """`getpid` is for people, for the lease that also names boot and namespace, and nowhere else."""
    found = {
        f"{path.parent.name}/{path.name}"
        for room in ROOMS
        for path in room.rglob("*.py")
        if re.search(r"\bgetpid\b|\bgethostname\(\)\}?[-_.]", path.read_text(encoding="utf-8"))
    }
    assert found == {"store/leases.py", "runtime/context.py", "training/ray_train_worker.py"}


def test_what_gc_renames_twice_at_once_is_deleted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    folder = store.path(KIND, TASK)
    leftover = folder.with_name(f".{TASK}.discarded-7")  # of a container that was killed in the middle
    for path in (folder, leftover):
        path.mkdir(parents=True)
        (path / "train.bin").write_bytes(b"t")
    monkeypatch.setattr(os, "getpid", lambda: 7)
    store.discard(KIND, TASK)
    assert [path.name for path in folder.parent.iterdir()] == [leftover.name]
    (item,) = garbage(store, [], forget=[], cache=False)[0]
    assert (item.path, item.what) == (leftover, "leftover")
    store.remove(item)
    assert list(folder.parent.iterdir()) == []


WITHOUT = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS]


@pytest.fixture(params=WITHOUT, ids=[errno.errorcode[number] for number in WITHOUT])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel's answer where a file system has no locks; what it says."""

    def refuse(handle: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return os.strerror(request.param)


def test_a_file_system_without_locks_is_an_error_with_advice_wherever_a_lock_is_asked_for(
    tmp_path: Path, without_locks: str
) -> None:
    store = FolderStore(tmp_path / "store")
    (store.root / KIND).mkdir(parents=True)
    (run := store.root / "runs" / "tiny-12345678").mkdir(parents=True)
    (run / ".running").touch()
    uses = {
        "check_writable": store.check_writable,
        "check_locks": lambda: check_locks(store.root / "absent"),
        "workspace": lambda: store.workspace(KIND, TASK).__enter__(),
        "claimed": lambda: store.claimed(KIND, TASK).__enter__(),
        "using": lambda: store.using(run=run).__enter__(),
        "alone": lambda: store.alone().__enter__(),
        "is_running": lambda: is_running(run),
        "exclusive_lock": lambda: exclusive_lock(store.root / "lock").__enter__(),
    }
    for name, use in uses.items():
        with pytest.raises(BoomspecError, match=wording("shared_volume.file_system_cannot_lock")) as caught:
            use()
        assert f"{store.root}" in caught.value.message, name
        assert caught.value.message.endswith(without_locks), name
        assert wording("shared_volume.lustre_where_mounted_flock") in (caught.value.hint or ""), name
    assert not list((store.root / KIND).glob(f".{TASK}.*[!e]/*"))  # nothing was begun


def test_plan_says_it_before_anything_is_spent(specs: Writer, without_locks: str) -> None:
    planned = CliRunner().invoke(main, ["plan", str(specs.text(specs.SPEC))])
    assert planned.exit_code == 2
    assert (
        wording(
            "shared_volume.file_system_cannot_lock_files", value=specs.folder / "store", without_locks=without_locks
        )
        in planned.output
    )
    assert not (specs.folder / "store").exists()


def test_flock_is_called_in_one_place() -> None:
    found = [path.name for room in ROOMS for path in room.rglob("*.py") if "fcntl.flock(" in path.read_text()]
    assert found == ["files.py"]
