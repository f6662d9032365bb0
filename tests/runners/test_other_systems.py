"""Where a call of Linux is missing, or a file system refuses it, the same bytes come out."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import read_layers
from boomspec.models.checkpoint import TensorEntry, read_checkpoint
from runners.assembly.assemble import assemble
from runners.assembly.checkpoint_writer import write_checkpoints
from tests.runners.test_assembly import make_pair

ROOT = Path(__file__).parents[2]
ROOMS = ("boomspec", "runners")
PLAN = read_layers("s0 t2 t3 t4 t5")

# Linux's alone, as Python's documentation says under "Availability"; or not on every other Unix.
LINUX = (
    "copy_file_range", "sendfile", "splice", "preadv", "pwritev", "posix_fallocate", "posix_fadvise", "fdatasync",
    "memfd_create", "eventfd", "pidfd_open", "sched_getaffinity", "sched_setaffinity", "sched_getscheduler",
    "getrandom", "getxattr", "setxattr", "listxattr", "removexattr", "setns", "unshare", "O_DIRECT", "O_TMPFILE",
    "O_NOATIME", "O_PATH", "MFD_CLOEXEC",
)  # fmt: skip

# A process without them, and without /proc. Names of modules to import before, a script behind.
WITHOUT = f"""
import importlib, os, pathlib, sys
for name in {LINUX!r}:
    if hasattr(os, name):
        delattr(os, name)
opened, linked = pathlib.Path.open, pathlib.Path.readlink
def refusing(method):
    def called(self, *arguments, **options):
        if str(self).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return method(self, *arguments, **options)
    return called
pathlib.Path.open, pathlib.Path.readlink = refusing(opened), refusing(linked)
"""


def without(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", WITHOUT + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_assembled_without_the_calls_of_linux_has_the_same_bytes(tmp_path: Path) -> None:
    teacher, student = make_pair(tmp_path, tied=False)
    assemble({"t": teacher, "s": student}, PLAN, tmp_path / "here", tied=False)
    script = """
from pathlib import Path
from boomspec.core.layers import read_layers
from runners.assembly.assemble import assemble
assert not hasattr(os, "copy_file_range")
assemble({"t": Path(sys.argv[1]), "s": Path(sys.argv[2])}, read_layers(sys.argv[4:]), Path(sys.argv[3]), tied=False)
"""
    without(script, teacher, student, tmp_path / "there", *PLAN)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def test_a_store_a_plan_and_every_module_do_without_them(tmp_path: Path) -> None:
    """Every module of both rooms is imported; an artifact is published, leases are judged, memory is reckoned with."""
    script = """
from boomspec.commands.cli import main
from boomspec.core import machine
from boomspec.store import FolderStore, Store, leases
for room in ("boomspec", "runners"):
    for path in sorted(pathlib.Path(room).rglob("*.py")):
        if path.name not in ("__main__.py", "__init__.py"):
            importlib.import_module(".".join(path.with_suffix("").parts))
store = FolderStore(sys.argv[1])
store.check_writable()
with store.claimed("tokenize", "ab" * 32), store.workspace("tokenize", "ab" * 32) as workspace:
    (workspace.path / "train.bin").write_bytes(b"tokens")
    store.publish(workspace, "tokenize", "ab" * 32, {}, {})
assert store.damage("tokenize", "ab" * 32, checksums=True) is None
assert leases._this_process()["machine"] == ""
assert not leases._is_dead({**leases._this_process(), "pid": "1"})
assert machine.cpus() >= 1
main(["plan", "specs/quickstart.yaml", "--store", sys.argv[2]])
"""
    assert "to run" in without(script, tmp_path / "store", tmp_path / "other")


NUMBERS = [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM]


@pytest.mark.parametrize("whole", [0, 4096], ids=["at once", "after a block"])
@pytest.mark.parametrize("answer", [*NUMBERS, 0], ids=[*(errno.errorcode[n] for n in NUMBERS), "nothing is copied"])
def test_where_a_file_system_does_not_copy_it_is_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int, whole: int
) -> None:
    content = os.urandom(5 * 4096)
    (source := tmp_path / "source").write_bytes(content)
    entry = TensorEntry("w", "U8", (len(content),), source, 0, len(content))
    real, calls = os.copy_file_range, []

    def refusing(read: int, write: int, count: int, start: int, place: int) -> int:
        calls.append(count)
        if whole and len(calls) == 1:
            return real(read, write, whole, start, place)
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0

    monkeypatch.setattr(os, "copy_file_range", refusing)
    targets = {tmp_path / name: [(entry, entry)] for name in ("one", "two")}
    for folder in targets:
        folder.mkdir()
    write_checkpoints(targets)
    assert calls
    for folder in targets:
        (written,) = read_checkpoint(folder).values()
        assert (folder / "model.safetensors").read_bytes()[written.start : written.end] == content


def test_a_source_that_became_shorter_is_an_error_however_it_is_copied(tmp_path: Path) -> None:
    (source := tmp_path / "source").write_bytes(bytes(4096))
    entry = TensorEntry("w", "U8", (8192,), source, 0, 8192)
    (tmp_path / "one").mkdir()
    with pytest.raises(BoomspecError, match="became shorter"):
        write_checkpoints({tmp_path / "one": [(entry, entry)]})


def test_no_call_of_linux_is_made_without_a_look_whether_it_is_there() -> None:
    calls = re.compile(rf"\bos\.({'|'.join(LINUX)})\b")
    texts = {path.name: path.read_text(encoding="utf-8") for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    found = {
        (name, call)
        for name, text in texts.items()
        for call in calls.findall(text)
        if f'hasattr(os, "{call}")' not in text
    }
    assert found == set()
