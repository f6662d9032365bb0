"""A store at a URL, on a real S3 server: what is published is whole, whoever is killed and whatever wire is cut."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.core.errors import BoomspecError
from boomspec.store import RECORD, Store, open_store, store_of_run
from boomspec.store.folder import FolderStore
from boomspec.store.gc import garbage
from boomspec.store.leases import held
from boomspec.store.made_of import publish_equal
from boomspec.store.opening import answering_at_once
from boomspec.store.remote import RemoteStore
from tests.boomspec.troubled_disk import failing
from tests.messages import wording
from tests.runners.ports import free_ports
from tests.runners.s3 import S3, s3_server

KIND, TASK = "tokenize", "ab" * 32
IDENTITY = {"kind": KIND, "version": 1, "params": {}, "inputs": {}}
PART = 16 << 20  # bytes of one request

# A process of its own; URL and content on the command line.
PUBLISH = """
import sys
from boomspec.store import open_store
store = open_store(sys.argv[1])
with store.workspace("tokenize", "ab" * 32) as workspace:
    for name in ("one.bin", "two.bin"):
        (workspace.path / name).write_bytes(sys.argv[2].encode() * 1000)
    print("ready", flush=True)
    sys.stdin.readline()
    folder = store.publish(workspace, "tokenize", "ab" * 32, {}, {})
    print(*[(folder / name).read_bytes()[:1].decode() for name in ("one.bin", "two.bin")], flush=True)
"""
FETCH = """
import sys
from boomspec.store import open_store
store = open_store(sys.argv[1])
store.bucket.names()  # connected
print("ready", flush=True)
sys.stdin.readline()
print((store.fetch("tokenize", "ab" * 32) / "train.bin").stat().st_size, flush=True)
"""
CLAIM = """
import sys, time
from boomspec.store import open_store
with open_store(sys.argv[1]).claimed("distill", "ab" * 32, waiting=lambda: print("waiting", flush=True)):
    print("mine", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as s3:
        yield s3


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BOOMSPEC_CACHE", str(tmp_path / "here"))
    server.wire.forget()
    yield server
    server.mend()
    server.let_go()
    server.slow(0)


@pytest.fixture
def url(s3: S3, request: pytest.FixtureRequest) -> str:
    name = "b-" + format(abs(hash(request.node.name)), "x")[:12]
    return s3.make_bucket(name)


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def bucket_of(store: Store) -> str:
    return store.address.split("/")[2]


def publish(store: Store, content: bytes = b"tokens", task: str = TASK) -> Path:
    with store.workspace(KIND, task) as workspace:
        (workspace.path / "train.bin").write_bytes(content)
        (workspace.path / "tokenizer").mkdir()
        (workspace.path / "tokenizer" / "odd name [1].json").write_text("{}")
        (workspace.path / "empty").touch()
        return store.publish(workspace, KIND, task, IDENTITY, {"by": "a test"})


def elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "elsewhere") -> Store:
    """The same store on another machine, where nothing is yet."""
    monkeypatch.setenv("BOOMSPEC_CACHE", str(tmp_path / name))
    return open_store(store.address)


def started(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_what_one_machine_publishes_another_one_fetches(store, s3, monkeypatch, tmp_path) -> None:
    content = os.urandom(2 * PART + 5)  # more than one part, up and down
    here = publish(store, content)
    assert s3.wire.counted("PUT", "train.bin?partNumber=") == 3
    assert here == store.fetch(KIND, TASK)
    assert store.root == tmp_path / "here" / "stores" / store.root.name

    other = elsewhere(store, monkeypatch, tmp_path)
    assert other.ids(KIND) == {TASK}
    assert other.damage(KIND, TASK, checksums=True) is None
    s3.wire.forget()
    folder = other.fetch(KIND, TASK)
    assert s3.wire.counted("GET", "train.bin") == 3
    assert (folder / "train.bin").read_bytes() == content
    assert sorted(p.name for p in folder.rglob("*")) == [RECORD, "empty", "odd name [1].json", "tokenizer", "train.bin"]
    assert other.read(KIND, TASK, "train.bin", most=4) == content[:4]
    record = other.record(KIND, TASK)
    assert record is not None
    assert record["provenance"] == {"by": "a test"}
    assert other.records([(KIND, TASK), (KIND, "cd" * 32)]) == {(KIND, TASK): record}
    assert other.newest(KIND, 5) == [record]


def test_what_was_never_made_is_absent_and_not_damaged(store) -> None:
    assert not store.has(KIND, TASK)
    assert store.damage(KIND, TASK, checksums=True) is None
    assert store.survey([(KIND, TASK)]) == {}
    assert store.ids(KIND) == set()
    with pytest.raises(BoomspecError, match=wording("remote_store.tokenize_not_store", task=TASK[:12])):
        store.fetch(KIND, TASK)
    with pytest.raises(FileNotFoundError):
        store.read(KIND, TASK, "train.bin")


def test_of_two_writers_with_different_bytes_one_is_published_whole_and_both_have_it(store, s3) -> None:
    writers = [started(PUBLISH, store.address, letter) for letter in "xy"]
    try:
        assert [said(writer) for writer in writers] == ["ready", "ready"]
        for writer in writers:
            go_on(writer)
        have = [said(writer) for writer in writers]
    finally:
        for writer in writers:
            ended(writer)
    assert have[0] == have[1]
    assert have[0] in ("x x", "y y")  # and no mixture
    assert store.damage(KIND, TASK, checksums=True) is None
    assert (store.fetch(KIND, TASK) / "one.bin").read_bytes() == have[0][:1].encode() * 1000
    assert len(s3.objects(bucket_of(store), f"boomspec/{KIND}/{TASK}")) == 3  # the other one has dropped its own


@pytest.mark.parametrize("at", ["two.bin", RECORD], ids=["in the payload", "between payload and record"])
def test_a_writer_that_is_killed_leaves_nothing_that_can_be_read(store, s3, at) -> None:
    holding = s3.hold(at)
    writer = started(PUBLISH, store.address, "x")
    try:
        assert said(writer) == "ready"
        go_on(writer)
        assert holding.wait(60)
        while "one.bin" not in str(s3.objects(bucket_of(store))):
            time.sleep(0.05)  # it is sent beside the other one
        writer.send_signal(signal.SIGKILL)
    finally:
        ended(writer)
        s3.let_go()
    orphans = s3.objects(bucket_of(store), f"boomspec/{KIND}/{TASK}")
    assert [name.rpartition("/")[2] for name in orphans][:1] == ["one.bin"]
    assert RECORD not in str(orphans)
    assert not store.has(KIND, TASK)
    assert store.survey([(KIND, TASK)]) == {}
    publish(store)
    assert store.damage(KIND, TASK, checksums=True) is None
    assert orphans.items() <= s3.objects(bucket_of(store)).items()  # gc's, not the next writer's: it may be alive


def test_a_flipped_byte_in_the_bucket_is_found_on_fetch_and_named(store, s3, monkeypatch, tmp_path) -> None:
    publish(store, b"tokens of a text")
    (name,) = (n for n in s3.objects(bucket_of(store)) if n.endswith("train.bin"))
    s3.client().put_object(Bucket=bucket_of(store), Key=name, Body=b"tokenS of a text")
    other = elsewhere(store, monkeypatch, tmp_path)
    with pytest.raises(BoomspecError, match=wording("remote_store.damaged_train_bin_does")) as caught:
        other.fetch(KIND, TASK)
    assert "run SPEC --verify" in str(caught.value)
    assert not other.path(KIND, TASK).exists()
    assert list((other.root / KIND).iterdir()) == []  # nor a part of it
    with pytest.raises(BoomspecError, match="checksum"):
        other.read(KIND, TASK, "train.bin")
    assert other.damage(KIND, TASK) is None  # sizes only
    assert other.survey([(KIND, TASK)]) == {(KIND, TASK): None}
    assert other.survey([(KIND, TASK)], checksums=True) == {(KIND, TASK): wording("remote_store.train_bin_does_not")}


def test_damage_is_named_and_publishing_again_replaces_it_everywhere(store, s3, monkeypatch, tmp_path) -> None:
    publish(store)
    other = elsewhere(store, monkeypatch, tmp_path)
    other.fetch(KIND, TASK)
    (name,) = (n for n in s3.objects(bucket_of(store)) if n.endswith("train.bin"))
    s3.client().put_object(Bucket=bucket_of(store), Key=name, Body=b"tok")
    assert store.damage(KIND, TASK) == wording("remote_store.train_bin_bytes_record")
    s3.client().delete_object(Bucket=bucket_of(store), Key=name)
    assert store.survey([(KIND, TASK)]) == {(KIND, TASK): "train.bin is missing"}
    s3.client().put_object(Bucket=bucket_of(store), Key=f"boomspec/{KIND}/{TASK}/{RECORD}", Body=b"{}")
    assert store.damage(KIND, TASK) == wording("paths.missing_unreadable", record=RECORD)
    assert not store.has(KIND, TASK)

    publish(store, b"again!")
    assert store.damage(KIND, TASK, checksums=True) is None
    assert (other.fetch(KIND, TASK) / "train.bin").read_bytes() == b"again!"  # what it had is not valid any more
    store.discard(KIND, TASK)
    store.discard(KIND, TASK)
    assert not other.has(KIND, TASK)
    with pytest.raises(BoomspecError, match=wording("remote_store.not_store")):
        other.fetch(KIND, TASK)


def downloads(s3: S3) -> int:
    return s3.wire.counted("GET", "train.bin")


@pytest.mark.parametrize("by", ["publishing", "fetching"])
def test_a_copy_that_was_changed_here_is_read_again_and_fetched_where_it_is_damaged(
    store, s3, monkeypatch, tmp_path, by
) -> None:
    folder = publish(store)
    if by == "fetching":
        store = elsewhere(store, monkeypatch, tmp_path)
        folder = store.fetch(KIND, TASK)
    file = folder / "train.bin"
    s3.wire.forget()
    os.utime(file, ns=(1, 1))  # touched, and yet right
    assert store.fetch(KIND, TASK) == folder
    file.write_bytes(b"tokens")
    store.fetch(KIND, TASK)
    assert downloads(s3) == 0
    file.write_bytes(b"tokenS")
    assert (store.fetch(KIND, TASK) / "train.bin").read_bytes() == b"tokens"
    assert downloads(s3) == 1
    other = file.with_name("other")
    other.write_bytes(b"TOKENS")
    os.utime(other, ns=(file.stat().st_mtime_ns,) * 2)
    other.replace(file)  # of the same size and time
    assert (store.fetch(KIND, TASK) / "train.bin").read_bytes() == b"tokens"
    assert downloads(s3) == 2
    store.fetch(KIND, TASK)
    assert downloads(s3) == 2


def test_a_copy_of_an_older_boomspec_is_read_once_and_not_fetched(store, s3) -> None:
    publish(store)
    (noted,) = (store.root / "records").rglob("*.files")
    noted.unlink()
    s3.wire.forget()
    store.fetch(KIND, TASK)
    assert downloads(s3) == 0
    assert noted.exists()


def test_checksums_are_those_of_the_copy_here_too_and_only_it_is_given_up(store, s3, monkeypatch) -> None:
    file = publish(store) / "train.bin"
    looked = file.stat()
    file.write_bytes(b"tokenS")
    os.utime(file, ns=(looked.st_atime_ns, looked.st_mtime_ns))  # as a disk that fails
    assert store.survey([(KIND, TASK)]) == {(KIND, TASK): None}
    assert file.exists()
    assert store.survey([(KIND, TASK)], checksums=True) == {(KIND, TASK): None}  # at the URL it is right
    assert (store.fetch(KIND, TASK) / "train.bin").read_bytes() == b"tokens"


@pytest.mark.parametrize("name", [RECORD, "train.bin"])
def test_a_copy_that_cannot_be_read_now_is_an_error_and_stays(store, monkeypatch, name) -> None:
    file = publish(store) / name
    with monkeypatch.context() as patched:
        failing(patched, file, errno.ESTALE)
        with pytest.raises(BoomspecError, match=wording("remote_store.cannot_read_stale_file", file=file)):
            store.fetch(KIND, TASK)
    assert file.exists()


def test_what_a_run_has_told_here_stays_where_it_cannot_be_looked_at_now(store, monkeypatch) -> None:
    run = store.run_folder("tiny", "1234567890")
    run.mkdir(parents=True)
    (run / "status.json").write_text("the newest")
    store.bucket.write(f"runs/{run.name}/status.json", b"what was sent")
    with monkeypatch.context() as patched:
        failing(patched, run / "status.json", errno.EIO)
        with pytest.raises(BoomspecError, match=wording("remote_store.status_json_cannot_read")):
            store.run_called(run.name)
    assert (run / "status.json").read_text() == "the newest"


def test_a_run_is_of_its_url_even_if_that_cannot_be_read_now(store, monkeypatch) -> None:
    run = store.run_folder("tiny", "1234567890")
    run.mkdir(parents=True)
    store.check_writable()
    assert store_of_run(run).address == store.address
    failing(monkeypatch, store.root / ".url", errno.EIO)
    with pytest.raises(BoomspecError, match=wording("remote_store.url_cannot_read_input")):
        store_of_run(run)


@pytest.mark.parametrize("path", ["../../../../evil", "/evil", "a/../../evil", "a\\..\\evil", ""])
def test_a_record_cannot_name_files_outside_of_its_folder(store, s3, path) -> None:
    publish(store)
    name = f"boomspec/{KIND}/{TASK}/{RECORD}"
    record = json.loads(s3.client().get_object(Bucket=bucket_of(store), Key=name)["Body"].read())
    record["files"][0]["path"] = path
    s3.client().put_object(Bucket=bucket_of(store), Key=name, Body=json.dumps(record).encode())
    with pytest.raises(BoomspecError, match="unreadable"):
        store.fetch(KIND, TASK)


def test_several_processes_of_one_machine_fetch_an_artifact_once(store, s3, monkeypatch, tmp_path) -> None:
    publish(store, os.urandom(1 << 20))
    elsewhere(store, monkeypatch, tmp_path)
    readers = [started(FETCH, store.address) for _ in range(4)]
    try:
        assert [said(reader) for reader in readers] == ["ready"] * 4
        s3.wire.forget()
        for reader in readers:
            go_on(reader)
        assert [said(reader) for reader in readers] == [str(1 << 20)] * 4
    finally:
        for reader in readers:
            ended(reader)
    assert s3.wire.counted("GET", "train.bin") == 1
    assert s3.wire.counted("GET", RECORD) == 4


def test_a_store_that_is_down_for_a_while_is_waited_for_and_told_of_once(url, s3) -> None:
    told: list[str] = []
    store = open_store(url, report=told.append)
    publish(store)
    s3.cut()
    mended = threading.Timer(3, s3.mend)
    mended.start()
    try:
        assert store.survey([(KIND, TASK), ("distill", TASK)]) == {(KIND, TASK): None}
        publish(store, task="cd" * 32)
    finally:
        mended.join()
    assert store.has(KIND, "cd" * 32)
    assert len(told) == 2
    assert told[0].startswith(wording("remote_store.store_does_not_answer", url=url))
    assert told[0].endswith("; trying for 10 minutes")
    assert told[1] == wording("remote_store.store_answers_again", url=url)


def test_patience_ends(url, s3, monkeypatch) -> None:
    monkeypatch.setenv("BOOMSPEC_STORE_PATIENCE", "1.5")
    store = open_store(url, report=lambda _: None)
    s3.cut()
    with pytest.raises(BoomspecError, match=wording("remote_store.not_answered_seconds_boomspec")):
        store.has(KIND, TASK)
    monkeypatch.setenv("BOOMSPEC_STORE_PATIENCE", "soon")
    with pytest.raises(BoomspecError, match="BOOMSPEC_STORE_PATIENCE=soon: not a number of seconds"):
        open_store(url)


def test_a_connection_that_breaks_within_a_copy_is_made_again(store, s3, monkeypatch, tmp_path) -> None:
    content = os.urandom(3 * PART)
    holding = s3.hold("partNumber=2")

    def break_it() -> None:
        assert holding.wait(60)
        s3.cut()
        s3.let_go()
        s3.mend()

    breaking = threading.Thread(target=break_it)
    breaking.start()
    publish(store, content)
    breaking.join()
    assert (elsewhere(store, monkeypatch, tmp_path).fetch(KIND, TASK) / "train.bin").read_bytes() == content


def test_what_is_not_permitted_is_said_at_once(url, s3, monkeypatch) -> None:
    store = open_store(url)
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{url[5:]}/*"}
    s3.client().put_bucket_policy(
        Bucket=bucket_of(store), Policy=json.dumps({"Version": "2012-10-17", "Statement": [denied]})
    )
    since = time.monotonic()
    with pytest.raises(BoomspecError, match=wording("remote_store.store_access_denied_hint", url=url)):
        store.check_writable()
    with pytest.raises(BoomspecError, match="access denied"):
        publish(store)
    with pytest.raises(BoomspecError, match=wording("remote_store.there_no_such_bucket")):
        open_store("s3://no-such-bucket/boomspec").check_writable()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(BoomspecError, match=wording("remote_store.access_denied_unable_locate")):
        open_store(url).check_writable()
    assert time.monotonic() - since < 10


OPERATIONS = {
    "s3:GetObject": ("read", "GetObject", lambda store: store.record(KIND, TASK)),
    "s3:PutObject": ("write", "PutObject", lambda store: store.bucket.write("x", b"x")),
    "s3:DeleteObject": ("delete", "DeleteObject", lambda store: store.bucket.delete([f"{KIND}/{TASK}/{RECORD}"])),
}


@pytest.mark.parametrize("permission", OPERATIONS)
def test_what_is_denied_is_named_with_the_permission_that_it_needs(store, s3, permission) -> None:
    publish(store)
    bucket = bucket_of(store)
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    denied = {"Effect": "Deny", "Principal": "*", "Action": permission, "Resource": resources}
    policy = {"Version": "2012-10-17", "Statement": [denied]}
    s3.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    what, called, act = OPERATIONS[permission]
    since = time.monotonic()
    with pytest.raises(BoomspecError) as caught:
        act(store)
    assert time.monotonic() - since < 5
    assert wording("remote_store.store_access_denied_these", address=store.address, what=what) in caught.value.message
    assert called in caught.value.message
    hint = caught.value.hint or ""
    assert hint.startswith(wording("remote_store.needs_arn_aws_boomspec", permission=permission, bucket=bucket))
    assert all(needed in hint for needed in ("s3:ListBucket", *OPERATIONS))


def test_a_listing_that_is_denied_is_named_with_the_permission_that_it_needs(monkeypatch, tmp_path, specs) -> None:
    """As people meet it: `plan` may read every object, and may not list the bucket."""
    policy = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": "*"}
    with s3_server(more={"INITIAL_NO_AUTH_ACTION_COUNT": "4"}) as s3:  # behind these it asks who may do what
        url = s3.make_bucket("no-listing")
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing-secret"}
        people = boto3.client("iam", endpoint_url=s3.direct, region_name="us-east-1", **keys)
        people.create_user(UserName="me")
        people.put_user_policy(
            UserName="me", PolicyName="x", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [policy]})
        )
        key = people.create_access_key(UserName="me")["AccessKey"]
        environment = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        for name, value in (s3.environment | environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("BOOMSPEC_CACHE", str(tmp_path / "here"))
        planned = CliRunner().invoke(main, ["plan", str(specs.text(specs.SPEC)), "--store", url])
    assert planned.exit_code == 2
    assert wording("remote_store.store_access_denied_these_credentials", url=url) in planned.output
    assert "ListObjectsV2" in planned.output
    assert wording("remote_store.needs_listbucket_arn_aws") in planned.output


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:{port}", "Connection refused"),
        ("http://no-such-host.invalid:9000", wording("remote_store.name_not_known")),
    ],
)
def test_plan_does_not_wait_for_a_store_that_nobody_listens_for(
    s3, monkeypatch, tmp_path, specs, endpoint, reason
) -> None:
    """Ten minutes are for runs, whose store has worked; a person at a prompt has most likely mistyped the address."""
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.format(port=port))
    since = time.monotonic()
    planned = CliRunner().invoke(main, ["plan", str(specs.text(specs.SPEC)), "--store", "s3://bucket/boomspec"])
    assert time.monotonic() - since < 30
    assert planned.exit_code == 2
    assert planned.output.startswith(wording("remote_store.error_store_bucket_boomspec"))
    assert reason in planned.output
    assert "AWS_ENDPOINT_URL" in planned.output
    assert "10 minutes" not in planned.output


def test_a_store_that_has_answered_once_is_waited_for(url, s3) -> None:
    told: list[str] = []
    with answering_at_once(1.0):
        store = open_store(url, report=told.append)
    assert store.record(KIND, TASK) is None
    s3.cut()
    mended = threading.Timer(4, s3.mend)
    mended.start()
    try:
        assert store.record(KIND, TASK) is None
    finally:
        mended.join()
    assert told[0].endswith("; trying for 10 minutes")


def test_many_artifacts_take_few_requests_and_none_is_missed(store, s3) -> None:
    publish(store)
    record = s3.client().get_object(Bucket=bucket_of(store), Key=f"boomspec/{KIND}/{TASK}/{RECORD}")["Body"].read()
    bare = json.dumps({**json.loads(record), "files": []}).encode()
    tasks = [(KIND, f"{i:064x}") for i in range(1_010)]
    s3.put_many(bucket_of(store), {f"boomspec/{kind}/{task}/{RECORD}": bare for kind, task in tasks})
    s3.wire.forget()
    assert store.ids(KIND) == {TASK, *(task for _, task in tasks)}
    assert s3.wire.counted("GET") == 2  # pages of a thousand
    wanted = [*tasks[::21], (KIND, TASK)]
    assert store.survey([*wanted, (KIND, "cd" * 32)]) == dict.fromkeys(wanted)
    s3.wire.forget()
    assert store.survey(wanted) == dict.fromkeys(wanted)  # their records are known here now
    assert s3.wire.counted("GET") == 2
    publish(store, task="cd" * 32)
    assert (KIND, "cd" * 32) in store.survey([(KIND, "cd" * 32)])  # no listing is remembered


def test_of_two_that_claim_a_task_the_second_waits_even_on_another_machine(store, monkeypatch, tmp_path) -> None:
    first = started(CLAIM, store.address)
    assert said(first) == "mine"
    elsewhere(store, monkeypatch, tmp_path)
    second = started(CLAIM, store.address)
    try:
        assert said(second) == "waiting"
        go_on(first)
        assert said(second) == "mine"
        second.send_signal(signal.SIGKILL)
        second.wait()
        since = time.monotonic()
        with store.claimed("distill", TASK):  # dead on this machine: not waited for
            assert time.monotonic() - since < 10
    finally:
        ended(first)
        ended(second)
    assert list(store.bucket.entries("distill")) == []


def test_a_lease_lasts_as_long_as_it_is_renewed_and_is_its_runs_own(store, monkeypatch) -> None:
    monkeypatch.setattr("boomspec.store.leases.EXPIRES", 8.0)
    bucket, name = store.bucket, "distill/.x.lease"
    strange = {"token": "t", "owner": "run 1", "machine": "another one", "pid": "1", "since": "1", "renewals": 1}
    bucket.write(name, json.dumps(strange).encode())
    waited: list[float] = []
    since = time.monotonic()
    with held(bucket, name, waiting=lambda: waited.append(time.monotonic())):
        assert time.monotonic() - since >= 8  # nobody renews it
        assert len(waited) == 1
        got: list[float] = []

        def other() -> None:
            with held(bucket, name):
                got.append(time.monotonic())

        waiting = threading.Thread(target=other)
        waiting.start()
        time.sleep(10)  # this process lives, and renews it
        assert not got
    waiting.join(timeout=60)
    assert got
    bucket.write(name, json.dumps(strange).encode())
    since = time.monotonic()
    with held(bucket, name, owner="run 1"):  # its run has started the task anew
        assert time.monotonic() - since < 5


def _read_in_child(address: str, found: "multiprocessing.Queue[object]") -> None:
    found.put(sorted(open_store(address).ids(KIND)))


def test_a_forked_process_works_with_the_store(store) -> None:
    publish(store)
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    child = context.Process(target=_read_in_child, args=(store.address, found))
    child.start()
    assert found.get(timeout=60) == [TASK]
    child.join()
    assert store.has(KIND, TASK)


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("s3://key:secret@bucket/boomspec", wording("remote_commands.credentials")),
        ("ftp://host/boomspec", wording("remote_store.there_no_stores_ftp")),
        (Path("s3://bucket/boomspec"), wording("remote_store.url_made_path")),
        ("abfs://key:secret@account.dfs.core.windows.net/boomspec", wording("remote_commands.credentials")),
        ("gsc://bucket", wording("remote_store.did_you_mean", name="gs")),
        ("s3:///boomspec", "names no bucket"),
        ("s3://bucket/boomspec?versions", "names no bucket"),
        ("file://host/boomspec", wording("remote_store.no_absolute_path")),
        ("gs://bucket/boomspec", wording("remote_store.not_installed_here_gcsfs")),
    ],
)
def test_a_url_that_names_no_store_is_an_error_that_shows_no_secret(where, complaint) -> None:
    with pytest.raises(BoomspecError, match=complaint) as caught:
        open_store(where)
    assert "secret" not in str(caught.value)


MISSPELT = {
    "s3//bucket/x": "s3://bucket/x",
    "s3:/bucket/x": "s3://bucket/x",
    "s3:bucket/x": "s3://bucket/x",
    "S3//bucket": "s3://bucket",
    "s3;//bucket/x": "s3://bucket/x",
    "s3:\\\\bucket": "s3://bucket",
    "s3 ://bucket": "s3://bucket",
    "s3/:/bucket": "s3://bucket",
    "gs:/bucket/x": "gs://bucket/x",
    "gs//bucket": "gs://bucket",
    "az:container/x": "az://container/x",
    "abfss:/c@account/x": "abfss://c@account/x",
    "file:/tmp/x": "file:///tmp/x",
    "file//tmp/x": "file:///tmp/x",
}


@pytest.mark.parametrize("where", MISSPELT)
@pytest.mark.parametrize("given", ["--store", "execution.store"])
def test_a_url_that_is_misspelt_is_no_folder(specs, monkeypatch, where, given) -> None:
    monkeypatch.chdir(specs.folder)
    if given == "--store":
        path, options = specs.text(specs.SPEC), ["--store", where]
    else:
        path, options = specs.text(specs.SPEC.replace("store: store", f"store: {json.dumps(where)}")), []
    for command in ("plan",) if options else ("plan", "validate"):
        said = CliRunner().invoke(main, [command, str(path), *options])
        assert said.exit_code == 2
        assert wording("remote_store.did_you_mean_folder", misspelt=MISSPELT[where], where=where) in said.output
        assert options or "spec.yaml:31" in said.output
    assert sorted(path.name for path in specs.folder.iterdir()) == [*(f"{i}.txt" for i in range(8)), "spec.yaml"]


@pytest.mark.parametrize(
    "where", ["store", "s3", "s3/bucket", "./s3:/bucket", "gs-backup//x", "/s3://x", "files:x", "a/s3:x"]
)
def test_a_folder_whose_name_is_like_a_urls_is_one(where, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store(where).root == tmp_path / where


def test_a_path_and_a_file_url_are_a_folder(tmp_path) -> None:
    for where in (tmp_path / "a b", str(tmp_path / "a b"), f"file://{tmp_path}/a%20b"):
        found = open_store(where)
        assert not isinstance(found, RemoteStore)
        assert found.address == str(tmp_path / "a b")


def test_a_folder_needs_no_library_for_urls(tmp_path) -> None:
    code = "import sys; from boomspec.store import open_store; import boomspec.commands.cli\n"
    code += "open_store(sys.argv[1]).survey([('tokenize', 'ab' * 32)])\n"
    code += "assert not {'fsspec', 's3fs', 'tenacity', 'asyncio'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_what_was_made_of_the_same_is_copied_at_the_url_and_nothing_is_transferred(store, s3, monkeypatch, tmp_path):
    content, other = os.urandom(2 * PART + 5), "cd" * 32
    store.note_key(KIND, "k" * 64, TASK)
    publish(store, content)
    elsewhere(store, monkeypatch, tmp_path)
    there = open_store(store.address)
    s3.wire.forget()
    assert there.ids_by_key(KIND, ["k" * 64, "l" * 64]) == {"k" * 64: [TASK]}
    assert publish_equal(there, KIND, other, TASK, IDENTITY, {"same_as": {"id": TASK}}, checksums=False)
    assert s3.wire.counted("GET", "train.bin") == 0  # only records and listings are read
    assert not there.path(KIND, other).exists()
    record = there.record(KIND, other)
    assert record["provenance"] == {"by": "a test", "same_as": {"id": TASK}}
    assert record["attempt"] != there.record(KIND, TASK)["attempt"]
    assert there.damage(KIND, other, checksums=True) is None
    there.discard(KIND, TASK)
    assert (there.fetch(KIND, other) / "train.bin").read_bytes() == content
    assert (there.fetch(KIND, other) / "tokenizer" / "odd name [1].json").read_text() == "{}"


@pytest.mark.parametrize("harm", ["gone", "lost a file"])
def test_what_is_gone_or_damaged_at_the_url_stands_for_nothing(store, harm) -> None:
    publish(store)
    if harm == "gone":
        store.discard(KIND, TASK)
    else:
        store.bucket.delete(name for name in store.bucket.entries(f"{KIND}/{TASK}") if name.endswith("train.bin"))
    assert not publish_equal(store, KIND, "cd" * 32, TASK, IDENTITY, {}, checksums=False)
    assert store.bucket.entries(f"{KIND}/{'cd' * 32}") == {}


def test_many_keys_are_looked_up_in_one_listing(store, s3) -> None:
    for number in range(12):
        store.note_key(KIND, f"{number:064}", TASK)
    s3.wire.forget()
    wanted = [f"{number:064}" for number in range(6, 40)]
    assert store.ids_by_key(KIND, wanted) == {f"{number:064}": [TASK] for number in range(6, 12)}
    assert s3.wire.counted("GET") <= 2


def test_gc_at_a_url_deletes_entries_of_what_is_gone(store) -> None:
    store.note_key(KIND, "a" * 64, TASK)
    store.note_key(KIND, "b" * 64, "cd" * 32)
    publish(store)
    items, _ = garbage(store, [], forget=[], cache=False)
    assert {item.reason for item in items} == {"of no run", wording("made_of.artifact_gone")}
    for item in items:
        store.remove(item)
    assert store.bucket.entries("made_of") == {}
    assert store.ids(KIND) == set()


def test_what_a_store_at_a_url_does_as_a_folder_does_is_written_down() -> None:
    """A method that it inherits sees this machine's copies alone: each of these may, or calls others that do not."""
    names = {name for name in dir(FolderStore) if not name.startswith("_")}
    inherited = {name for name in names if getattr(RemoteStore, name) is getattr(FolderStore, name)}
    assert inherited == {
        "check_is_no_file",
        "damage",
        "fetch_all",
        "has",
        "is_whole",
        "path",
        "place",
        "resume",
        "run_folder",
        "workspace",
    }
