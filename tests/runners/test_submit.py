"""Runs on a cluster through Ray's job server: the same artifacts as here, only for who has the token."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import TaskGraph
from boomspec.store import RECORD
from runners.cluster.bundle import package_files, write_bundle
from tests.messages import wording
from tests.runners import small
from tests.runners.grid import Grid, grid

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def there() -> Iterator[Grid]:
    folder = Path(tempfile.mkdtemp(prefix="bs", dir="/tmp"))
    try:
        with grid(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder)


def checksums(store: Path) -> dict[str, object]:
    """What every artifact says of its files, by kind and id."""
    records = sorted(store.glob(f"*/*/{RECORD}"))
    return {str(record.parent.relative_to(store)): json.loads(record.read_text())["files"] for record in records}


def test_a_submitted_run_makes_the_artifacts_of_a_local_one_and_leaves_no_token(
    there: Grid, finished: Path, tmp_path: Path
) -> None:
    to_make = ("evaluate student", "interpolate", "evaluate interpolated", "report")  # two of them beside each other
    spec, made = small.copied(finished, tmp_path, without=to_make)
    (tmp_path / "secret.py").write_text("of the working folder")
    store = made.root
    secret = {"HF_TOKEN": "hf_0123456789abcdef"}
    done = there.boomspec("submit", spec, "--address", there.address, "--store", store, "--wait", **secret)
    assert done.returncode == 0, done.stdout + done.stderr
    assert wording("submit.tasks_run_artifacts_reused") in done.stdout
    assert wording("submit.reused_made_failed_blocked") in done.stdout
    assert checksums(store) == checksums(finished)
    assert len(checksums(store)) == 8

    listed = json.loads(there.boomspec("status", "--json", "--address", there.address).stdout)["jobs"]
    job = next(job for job in listed if job["store"] == str(store))
    assert (job["state"], job["exit_code"]) == ("succeeded", 0)
    assert job["id"] == f"small-{job['graph'][:8]}-1"
    logs = there.boomspec("logs", job["id"], "--address", there.address)
    assert logs.stdout.rstrip().endswith("report.html")
    stopped = there.boomspec("stop", job["id"], "--address", there.address)
    assert wording("submit.had_ended_already_succeeded") in stopped.stdout

    seen = [path for root in (store, there.folder / "ray") for path in root.rglob("*") if path.is_file()]
    assert len(seen) > 50
    for path in seen:
        content = path.read_bytes()
        assert there.token.encode() not in content, path
        assert secret["HF_TOKEN"].encode() not in content, path
        assert b"of the working folder" not in content, path


@pytest.mark.chaos
def test_a_job_that_is_at_work_is_not_submitted_twice_and_stops_in_good_order(there: Grid, tmp_path: Path) -> None:
    spec = small.write_spec(tmp_path, name="long", teacher={"pretrain": {"tokens": "1G"}})
    store = tmp_path / "store"
    submit = ("submit", spec, "--address", there.address, "--store", store)
    done = there.boomspec(*submit, "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)["id"]
    until = time.monotonic() + 180
    while "start    pretrain" not in (log := there.boomspec("logs", job, "--address", there.address).stdout):
        assert time.monotonic() < until, log
    while not any('"unit": "tokens"' in path.read_text() for path in store.glob("runs/*/progress/*.jsonl")):
        assert time.monotonic() < until, "no step was made"  # before the first there is nothing to save
        time.sleep(0.2)
    again = there.boomspec(*submit)
    assert wording("submit.work_already_nothing_submitted", job=job) in again.stdout
    assert f"boomspec logs {job} --follow" in again.stdout
    stopped = there.boomspec("stop", job, "--address", there.address)
    assert stopped.stdout.startswith(f"{job}: stopped")
    followed = there.boomspec("logs", job, "--follow", "--address", there.address)
    assert followed.returncode == 130
    assert wording("submit.interrupted_same_command_continues") in followed.stdout
    assert list((store / "pretrain").glob(".*.resume/*")), "its checkpoint"


def test_a_run_uses_a_cluster_that_exists_and_leaves_it_alone(there: Grid, finished: Path, tmp_path: Path) -> None:
    spec, store = small.copied(finished, tmp_path, without=["tokenize"])
    whole = small.compiled(spec, store).graph
    tokens = next(node for node in whole.nodes.values() if node.task.kind == "tokenize")
    TaskGraph("tokens", {tokens.id: tokens}, whole.sources, (tokens.id,)).write(tmp_path / "graph.json")
    command = [sys.executable, "-m", "runners", tmp_path / "graph.json", "--store", store.root]
    ran = subprocess.run(
        [*command, "--address", there.gcs], env=there.environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert wording("slurm.reused_made_failed_blocked") in ran.stdout
    assert checksums(store.root) == checksums(finished)
    assert all(machine.works for machine in there.machines)


def test_who_has_no_token_or_a_wrong_one_is_told_so(there: Grid, tmp_path: Path) -> None:
    wrong = "0" * 64
    where = ("--address", there.address)
    asked = there.boomspec("status", *where, RAY_AUTH_TOKEN="")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert wording("submit.cluster_asks_token_hint", address=there.address) in asked.stderr
    refused = there.boomspec("status", *where, "--json", RAY_AUTH_TOKEN=wrong)
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["error"]["message"] == wording(
        "submit.cluster_does_not_take", address=there.address
    )
    run = there.boomspec(
        "run", small.write_spec(tmp_path), "--store", tmp_path / "store", "--address", there.gcs, RAY_AUTH_TOKEN=wrong
    )
    assert run.returncode == 2
    assert wording("submit.cluster_does_not_take_token", gcs=there.gcs) in run.stderr
    for done in (asked, refused, run):
        assert wrong not in done.stdout + done.stderr
    unknown = there.boomspec("stop", "nothing", *where)
    assert wording("submit.cluster_no_job_boomspec", name="nothing") in unknown.stderr


def test_a_variable_travels_only_by_its_name_and_never_the_clusters_token(there: Grid, tmp_path: Path) -> None:
    submit = ("submit", small.write_spec(tmp_path), "--address", there.address, "--store", tmp_path / "store")
    missing = there.boomspec(*submit, "--env", "NOT_SET_ANYWHERE")
    assert wording("submit.there_no_such_variable") in missing.stderr
    own = there.boomspec(*submit, "--env", "RAY_AUTH_TOKEN")
    assert (own.returncode, wording("submit.cluster_already") in own.stderr) == (2, True)
    assert not (tmp_path / "store").exists()
    quoting = tmp_path / "store-of-hunter2hunter2"
    quoted = there.boomspec(*submit[:-1], quoting, "--env", "MY_TOKEN", MY_TOKEN="pretrain teacher")
    assert wording("kuberay.spec_quotes_secret") in quoted.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_code_and_data_of_the_packages_are_in_a_bundle_and_twice_the_same(tmp_path: Path) -> None:
    graph, lock = tmp_path / "graph.json", tmp_path / "lock.json"
    graph.write_text("{}")
    lock.write_text("{}")
    folders = [tmp_path / "one", tmp_path / "two"]
    one, two = [write_bundle(folder, graph=graph, lock=lock) for folder in folders]
    assert contents(folders[0]) == contents(folders[1])
    assert one.size == two.size == sum(map(len, contents(folders[0]).values())) < 3_000_000
    names = contents(folders[0]).keys()
    assert {Path(name).suffix for name in names} == {".py", ".jinja", ".css", ".js", ".yaml", ".json", ".typed"}
    assert {name for name in names if not name.startswith(("boomspec/", "runners/"))} == {
        "job/graph.json",
        "job/lock.json",
    }
    assert {path.name for path in (*one.packages, one.job)} == {"boomspec", "runners", "job"}
    with pytest.raises(BoomspecError, match=wording("submit.what_would_sent_cluster")):
        write_bundle(tmp_path / "large", graph=graph, lock=lock, most=1024)


def test_all_files_that_an_installation_has_are_in_a_bundle() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {name for name, _ in package_files()}
    for package, patterns in declared.items():
        folder = ROOT / package.replace(".", "/")
        found = {str(path.relative_to(ROOT)) for pattern in patterns for path in folder.glob(pattern)}
        assert found
        assert found <= shipped
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code = {
        name for name in tracked.splitlines() if name.startswith(("boomspec/", "runners/")) and (ROOT / name).exists()
    }
    assert code <= shipped
