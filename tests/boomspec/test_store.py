"""The store: what is published is whole, whatever is killed; writers do not disturb each other."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.files import write_atomically
from boomspec.store import RECORD, FolderStore, Store, Workspace
from tests.boomspec.troubled_disk import failing
from tests.messages import wording

KIND, TASK = "tokenize", "ab" * 32
IDENTITY = {"kind": KIND, "version": 1, "params": {}, "inputs": {}}

# A writer in a process of its own: works as far as it is told, says so, and waits to be killed.
WRITER = """
import sys, time
from boomspec.store import RECORD, FolderStore, Store
store, stage = FolderStore(sys.argv[1]), sys.argv[2]
with store.workspace("tokenize", "ab" * 32) as workspace:
    (workspace.path / "train.bin").write_bytes(b"half")
    if stage == "recorded":
        (workspace.path / RECORD).write_text('{"record": 1, "files": []}')
    print(workspace.path, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return FolderStore(tmp_path / "store")


def publish(store: Store, content: bytes = b"tokens", **provenance: str) -> Path:
    with store.workspace(KIND, TASK) as workspace:
        (workspace.path / "train.bin").write_bytes(content)
        return store.publish(workspace, KIND, TASK, IDENTITY, provenance)


@contextmanager
def living_writer(store: Store, stage: str = "payload") -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process at work on the task, and its folder."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, store.root, stage], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def folders(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / KIND).iterdir())


def test_a_published_artifact_has_its_payload_and_a_record_of_what_it_is(store: Store) -> None:
    folder = publish(store, b"tokens", host="here")
    assert folder == store.path(KIND, TASK)
    assert (folder / "train.bin").read_bytes() == b"tokens"
    record = store.record(KIND, TASK)
    assert record is not None
    assert (record["id"], record["task"], record["provenance"]) == (TASK, IDENTITY, {"host": "here"})
    assert [(entry["path"], entry["bytes"]) for entry in record["files"]] == [("train.bin", 6)]
    assert folders(store) == [TASK]
    assert store.damage(KIND, TASK, checksums=True) is None


def test_what_was_never_made_is_absent_and_not_damaged(store: Store) -> None:
    assert not store.has(KIND, TASK)
    assert store.damage(KIND, TASK, checksums=True) is None


def test_a_body_that_raises_publishes_nothing(store: Store) -> None:
    def failing_body(workspace: Workspace) -> None:
        (workspace.path / "train.bin").write_bytes(b"half")
        raise RuntimeError("out of tokens")

    with pytest.raises(RuntimeError, match="out of tokens"), store.workspace(KIND, TASK) as workspace:
        failing_body(workspace)
    assert folders(store) == []


@pytest.mark.parametrize("stage", ["payload", "recorded"])
def test_a_writer_that_is_killed_leaves_nothing_that_counts_as_made(store: Store, stage: str) -> None:
    with living_writer(store, stage) as (process, folder):
        assert folder.is_dir()
        process.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    assert not store.has(KIND, TASK)
    assert not store.path(KIND, TASK).exists()


def test_the_next_writer_sweeps_up_after_a_dead_one_but_keeps_its_checkpoints(store: Store) -> None:
    with living_writer(store) as (_, dead):
        pass
    checkpoints = store.resume(KIND, TASK)
    checkpoints.mkdir()
    (checkpoints / "step-1").write_text("weights")
    with store.workspace(KIND, TASK) as workspace:
        assert not dead.exists()
        assert workspace.resume == checkpoints
        assert (checkpoints / "step-1").exists()
        store.publish(workspace, KIND, TASK, IDENTITY, {})
    assert folders(store) == [TASK]  # what is done needs no checkpoints


def test_a_living_writer_is_not_swept_up(store: Store) -> None:
    with living_writer(store) as (_, alive):
        publish(store)
        assert (alive / "train.bin").read_bytes() == b"half"


def test_the_second_of_two_writers_finds_the_first_ones_artifact_and_drops_its_own(store: Store) -> None:
    with store.workspace(KIND, TASK) as second:
        (second.path / "train.bin").write_bytes(b"second")
        publish(store, b"first")
        store.publish(second, KIND, TASK, IDENTITY, {})
    assert (store.path(KIND, TASK) / "train.bin").read_bytes() == b"first"
    assert folders(store) == [TASK]


def test_publishing_replaces_an_artifact_that_is_damaged(store: Store) -> None:
    (publish(store, b"first") / "train.bin").unlink()
    publish(store, b"second")
    assert (store.path(KIND, TASK) / "train.bin").read_bytes() == b"second"
    assert folders(store) == [TASK]


def test_damage_is_named(store: Store) -> None:
    file = publish(store, b"tokens") / "train.bin"
    file.write_bytes(b"tokenz")
    assert store.damage(KIND, TASK) is None  # sizes only
    assert store.damage(KIND, TASK, checksums=True) == wording("remote_store.train_bin_does_not")
    file.write_bytes(b"token")
    assert store.damage(KIND, TASK) == wording("store.train_bin_bytes_record")
    file.unlink()
    assert store.damage(KIND, TASK) == "train.bin is missing"
    for record in ("{", "[" * 100_000, '{"record": 1}', '{"record": 1, "files": [{}], "id": "", "provenance": {}}'):
        (store.path(KIND, TASK) / RECORD).write_text(record)
        assert store.damage(KIND, TASK) == wording("paths.missing_unreadable", record=RECORD)
        assert not store.has(KIND, TASK)


@pytest.mark.parametrize("reason", [errno.ESTALE, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("name", [RECORD, "train.bin"])
def test_what_cannot_be_read_now_is_an_error_that_names_it_and_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, reason: int
) -> None:
    file = publish(store) / name
    with monkeypatch.context() as patched:
        failing(patched, file, reason)
        with pytest.raises(BoomspecError) as caught:
            store.survey([(KIND, TASK)])
        assert caught.value.message == f"{file}: cannot be read: {os.strerror(reason)}"
        with pytest.raises(BoomspecError, match=f"{file}: cannot be read"):
            publish(store, b"second")  # it does not take its place either
    assert store.damage(KIND, TASK, checksums=True) is None
    assert folders(store) == [TASK]


def test_contents_that_cannot_be_read_now_are_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file = publish(store) / "train.bin"
    failing(monkeypatch, file, errno.EIO, statted=False)
    assert store.damage(KIND, TASK) is None
    with pytest.raises(BoomspecError, match=wording("plan.cannot_read_input_output", file=file)):
        store.damage(KIND, TASK, checksums=True)


def test_where_the_newest_artifacts_serve_one_that_cannot_be_read_is_passed_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "cd" * 32
    folder = publish(store)
    with store.workspace(KIND, other) as workspace:
        store.publish(workspace, KIND, other, IDENTITY, {})
    failing(monkeypatch, folder / RECORD, errno.EACCES)
    assert [record["id"] for record in store.newest(KIND, 5)] == [other]


def test_an_artifact_that_appears_while_it_is_looked_for_is_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FolderStore.record
    found: list[object] = []

    def late(self: Store, kind: str, task_id: str) -> object:
        record = read(self, kind, task_id)
        if not found:
            publish(store)
        found.append(record)
        return record

    monkeypatch.setattr(FolderStore, "record", late)
    assert store.damage(KIND, TASK) is None
    assert found[0] is None


def test_a_discarded_artifact_is_gone_and_discarding_twice_is_harmless(store: Store) -> None:
    publish(store)
    store.discard(KIND, TASK)
    store.discard(KIND, TASK)
    assert folders(store) == []


def test_a_record_holds_no_secrets(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh12345678")
    folder = publish(store, note="logged in with hf_abcdefgh12345678", origin="https://me:secret@host/x")
    text = (folder / RECORD).read_text()
    assert "hf_abcdefgh12345678" not in text
    assert "me:secret" not in text
    assert json.loads(text)["provenance"]["note"] == wording("store.logged_hf_token")


def test_a_record_can_be_read_whatever_the_environment_holds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_TOKENS", "2100000000")
    monkeypatch.setenv("SECRET_NUMBER", "2100000000")
    monkeypatch.setenv("DB_PASSWORD", "train.bin")
    identity = {**IDENTITY, "params": {"tokens": 2100000000, "said": "2100000000"}}
    with store.workspace(KIND, TASK) as workspace:
        (workspace.path / "train.bin").write_bytes(b"tokens")
        store.publish(workspace, KIND, TASK, identity, {"train.bin": "train.bin"})
    record = store.record(KIND, TASK)
    assert record is not None
    assert record["task"] == identity
    assert record["provenance"] == {"<DB_PASSWORD>": "<DB_PASSWORD>"}
    assert store.damage(KIND, TASK, checksums=True) is None


def test_a_record_that_could_not_be_read_back_is_not_published(store: Store) -> None:
    with store.workspace(KIND, TASK) as workspace:
        (workspace.path / "a\\b").write_bytes(b"tokens")
        with pytest.raises(BoomspecError, match=wording("store.could_not_read_back")):
            store.publish(workspace, KIND, TASK, IDENTITY, {})
    assert folders(store) == []


def test_an_artifact_can_be_read_by_others_than_its_maker(store: Store) -> None:
    assert publish(store).stat().st_mode & 0o555 == 0o555


def test_a_store_must_be_a_folder_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(BoomspecError, match=wording("store.url_not_folder")):
        FolderStore("s3://bucket/boomspec")
    (tmp_path / "file").write_text("")
    with pytest.raises(BoomspecError, match="cannot be written"):
        FolderStore(tmp_path / "file" / "store").check_writable()


def test_a_file_that_is_written_atomically_leaves_no_parts(tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    write_atomically(target, "old")
    write_atomically(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "absent" / "status.json", tmp_path / "folder"):
        with pytest.raises((FileNotFoundError, IsADirectoryError)) as error:
            write_atomically(target, "text")
        assert error.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
