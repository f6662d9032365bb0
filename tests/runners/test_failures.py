"""Workers, machines, drivers, disks and whole clusters that fail in the middle of a training, on a real cluster.

The runs make up one story on clusters whose machines are raylets (`grid.py`), told by fixtures:

    1. a run that nobody disturbs: what the others must come to
    2. one whose worker is killed, and which may be retried once; then its machine is lost; the same command again,
       whose driver is killed; the same command again
    3. a job whose cluster is lost as a whole, head and all; submitted again to a new one, on the same store
    4. one whose disk is full; the same command again, when there is room
    5. one whose store is at a URL, and does not answer for a while; then its machine is cut off without a word, and
       comes back when another one is at work on its task
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from boomspec.store import RECORD, FolderStore, Store, open_store
from tests.messages import wording
from tests.runners.corpora import wait_until
from tests.runners.grid import Grid, grid
from tests.runners.link import Link, NoLinkError, linked
from tests.runners.s3 import S3, s3_server
from tests.runners.trouble import STEPS, Trouble, broken, checksums, full, machine_of, unfinished

pytestmark = pytest.mark.chaos

_DISK = 6 << 20  # bytes
_UNREACHABLE_SECONDS = 4.0
# With Ray's own settings it takes seven minutes until a task is tried again whose machine was cut off without a word.
# All processes of a cluster must have the same ones: a server breaks connections on which it is asked too often.
_NOTICED = {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "5000"}


@dataclass
class Told:
    """What runs of one store left, and what they said."""

    store: Store
    outputs: list[str]
    codes: list[int]
    events: list[list[dict[str, Any]]]
    saved: list[int] = field(default_factory=list)  # steps that were safe when something happened
    broken: list[str] = field(default_factory=list)  # artifacts that could be read and were not whole, at any moment


@pytest.fixture(scope="module")
def places() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bf", dir="/tmp"))  # Ray's sockets want a short path
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Trouble:
    return Trouble(tmp_path_factory.mktemp("trouble"), retries=1)


@pytest.fixture(scope="module")
def first(places: Path) -> Iterator[Grid]:
    (places / "1").mkdir()
    with grid(places / "1", cpus=(0, 1, 1)) as there:
        yield there


@pytest.fixture(scope="module")
def undisturbed(trouble: Trouble, first: Grid) -> Store:
    store = FolderStore(trouble.folder / "undisturbed")
    trouble.run(first, store)
    return store


@pytest.fixture(scope="module")
def disturbed(trouble: Trouble, first: Grid, undisturbed: Store) -> Told:
    store = trouble.with_teacher(undisturbed, trouble.folder / "disturbed")
    told = Told(store, [], [], [])
    process = trouble.start(first, store)
    told.saved.append(trouble.wait_for_a_checkpoint(store, process, attempt=1))
    os.kill(trouble.attempts(store)[-1], signal.SIGKILL)
    told.broken += broken(store)
    told.saved.append(trouble.wait_for_a_checkpoint(store, process, attempt=2))
    lost = machine_of(first, trouble.attempts(store)[-1])
    lost.lose()
    told.broken += broken(store)
    _ended(told, trouble, process)
    process = trouble.start(first, store)
    told.saved.append(trouble.wait_for_a_checkpoint(store, process, attempt=3))
    process.kill()
    told.broken += broken(store)
    _ended(told, trouble, process)
    _ended(told, trouble, trouble.start(first, store))
    return told


def _ended(told: Told, trouble: Trouble, process: subprocess.Popen[str]) -> None:
    told.outputs.append(process.communicate(timeout=240)[0])
    told.codes.append(process.returncode)
    told.events.append(trouble.events(told.store))


def _went_on(trouble: Trouble, store: Store) -> list[int]:
    """The steps behind which attempts went on, in all runs: a driver that is killed has not told of the last one."""
    return [int(step) for step in re.findall(rf"continues after step (\d+) of {STEPS}", trouble.progress(store))]


def test_a_worker_that_is_killed_is_replaced_and_a_machine_that_is_lost_counts_as_a_retry_too(disturbed: Told) -> None:
    events = [event for event in disturbed.events[0] if event.get("name") == "distill student"]
    assert [event["event"] for event in events if event["event"] != "note"] == [
        "task_started",
        "task_retried",
        "task_failed",
    ]
    assert disturbed.codes[0] == 1
    assert wording("failures.retry_distill_student_worker") in disturbed.outputs[0]
    assert wording("failures.failed_distill_student_worker") in disturbed.outputs[0]
    assert "(raylet)" not in disturbed.outputs[0], "what Ray prints of its machines is for their logs"


def test_a_driver_that_is_killed_is_followed_by_the_same_command_which_goes_on(disturbed: Told) -> None:
    assert disturbed.codes[1:] == [-signal.SIGKILL, 0], disturbed.outputs[-1]
    assert wording("failures.reused_made_failed_blocked") in disturbed.outputs[2]


def test_each_attempt_goes_on_behind_what_was_safe(trouble: Trouble, disturbed: Told) -> None:
    behind = _went_on(trouble, disturbed.store)
    assert len(behind) == len(disturbed.saved) == 3
    assert [step >= saved for step, saved in zip(behind, disturbed.saved, strict=True)] == [True] * 3, behind


def test_what_a_disturbed_run_makes_is_what_an_undisturbed_one_makes(disturbed: Told, undisturbed: Store) -> None:
    assert checksums(disturbed.store) == checksums(undisturbed)
    assert disturbed.broken == broken(disturbed.store) == []
    assert unfinished(disturbed.store) == []


@pytest.fixture(scope="module")
def far() -> Iterator[Link | NoLinkError]:
    """The network of a machine that can be cut off."""
    try:
        with linked() as link:
            yield link
    except NoLinkError as error:
        yield error


@pytest.fixture(scope="module")
def s3(far: Link | NoLinkError) -> Iterator[S3]:
    with s3_server(host=_host(far)) as server:
        yield server


def _host(far: Link | NoLinkError) -> str:
    return far.near if isinstance(far, Link) else "127.0.0.1"


@pytest.fixture(scope="module")
def second(places: Path, far: Link | NoLinkError, s3: S3) -> Iterator[Grid]:
    """The cluster after the first one."""
    (places / "2").mkdir()
    with grid(places / "2", cpus=(1,), host=_host(far), variables=s3.environment | _NOTICED) as there:
        yield there


@pytest.fixture(scope="module")
def resubmitted(trouble: Trouble, first: Grid, disturbed: Told, undisturbed: Store) -> Told:
    del disturbed
    store = trouble.with_teacher(undisturbed, trouble.folder / "resubmitted")
    submit = ("submit", trouble.file, "--store", store.root, "--address")
    done = first.boomspec(*submit, first.address)
    assert done.returncode == 0, done.stderr
    told = Told(store, [done.stdout], [0], [], [trouble.wait_for_a_checkpoint(store, attempt=1)])
    for machine in reversed(first.machines):
        machine.lose()
    told.broken += broken(store)
    return told


def test_a_job_whose_whole_cluster_is_lost_goes_on_when_it_is_submitted_to_another_one(
    trouble: Trouble, resubmitted: Told, second: Grid, undisturbed: Store
) -> None:
    store = resubmitted.store
    done = second.boomspec("submit", trouble.file, "--store", store.root, "--address", second.address, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    (behind,) = re.findall(rf"continues after step (\d+) of {STEPS}", done.stdout)
    assert int(behind) >= resubmitted.saved[-1]
    assert checksums(store) == checksums(undisturbed)
    assert resubmitted.broken == broken(store) == unfinished(store) == []


@pytest.fixture(scope="module")
def small_disk(trouble: Trouble) -> Iterator[Path]:
    folder = trouble.folder / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system of its own can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_ends_the_run_which_says_so_and_goes_on_when_there_is_room(
    trouble: Trouble, second: Grid, undisturbed: Store, small_disk: Path
) -> None:
    store = trouble.with_teacher(undisturbed, small_disk / "store")
    process = trouble.start(second, store)
    saved = trouble.wait_for_a_checkpoint(store, process, attempt=1)
    with full(small_disk):
        output, _ = process.communicate(timeout=240)
        assert broken(store) == []
    assert process.returncode == 1, output
    assert re.search(wording("failures.failed_distill_student_no", small_disk=small_disk), output)
    assert "hint: make room" in output
    assert wording("failures.status_json_could_not") in output
    assert "Traceback" not in output
    assert unfinished(store) == []
    again = trouble.start(second, store)
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    (behind,) = re.findall(rf"continues after step (\d+) of {STEPS}", output)
    assert int(behind) >= saved
    assert checksums(store) == checksums(undisturbed)
    assert broken(store) == unfinished(store) == []
    status = json.loads((store.run_folder("trouble", trouble.graph.id) / "status.json").read_text())
    assert status["state"] == "finished"


@pytest.fixture(scope="module")
def cut_off(trouble: Trouble, second: Grid, s3: S3, far: Link | NoLinkError, places: Path) -> Told:
    if isinstance(far, NoLinkError):
        pytest.skip(f"no network of its own for a machine: {far}")
    where = trouble.for_machines_with("spot")
    caches = {name: {"BOOMSPEC_CACHE": str(places / name)} for name in ("near", "far")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, **caches["near"]}.items():
            patch.setenv(name, value)
        store = open_store(s3.make_bucket("trouble"))
        other = second.add(
            f"--node-ip-address={far.far}",
            '--resources={"spot": 1}',
            within=[*far.within, "env", *(f"{name}={value}" for name, value in caches["far"].items())],
        )
        process = where.start(second, store, **caches["near"])
        told = Told(store, [], [], [])

        def sent() -> int:
            return sum(name.endswith("state.json") for name in s3.objects("trouble", "boomspec/distill/"))

        def wait_for(condition: Callable[[], bool]) -> None:
            wait_until(lambda: condition() or process.poll() is not None, seconds=240)
            assert process.poll() is None, process.communicate()[0]

        wait_for(lambda: sent() > 0)
        s3.cut()
        time.sleep(_UNREACHABLE_SECONDS)
        s3.mend()
        stopped = where.attempts(store)[-1]
        os.kill(stopped, signal.SIGSTOP)  # else it would be done before anybody has noticed
        far.cut()
        second.add(f"--node-ip-address={far.near}", '--resources={"spot": 1}')
        wait_for(lambda: len(where.attempts(store)) > 1)
        far.mend()
        os.kill(stopped, signal.SIGCONT)
        _ended(told, where, process)
        other.lose()
        return told


def test_a_store_that_does_not_answer_for_a_while_is_waited_for_and_the_user_is_told(cut_off: Told) -> None:
    assert cut_off.codes == [0], cut_off.outputs[-1]
    assert wording("failures.store_does_not_answer", address=cut_off.store.address) in cut_off.outputs[-1]


def test_a_machine_that_is_cut_off_is_replaced_and_does_no_harm_when_it_comes_back(
    cut_off: Told, trouble: Trouble, s3: S3, undisturbed: Store
) -> None:
    output = cut_off.outputs[-1]
    assert wording("failures.retry_distill_student_worker_lost") in output
    assert re.search(wording("failures.continues_after_step", steps=STEPS), output)
    client, made = s3.client(), {}
    for name in s3.objects("trouble"):
        if name.endswith(f"/{RECORD}") and "/source/" not in name:
            record = json.loads(client.get_object(Bucket="trouble", Key=name)["Body"].read())
            made["/".join(name.split("/")[1:3])] = record["files"]
    assert made == checksums(undisturbed)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        found = cut_off.store.survey([tuple(name.split("/")) for name in made], checksums=True)
    assert set(found.values()) == {None}
