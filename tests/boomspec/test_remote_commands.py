"""The commands with `--store s3://...`, typed on a machine that did not make what is in the store."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.core.graph import TaskGraph
from boomspec.store import RECORD, Store, open_store
from boomspec.store.runs import past_runs
from tests.boomspec.conftest import Writer, write_texts
from tests.boomspec.past import past_run, publish, write_results
from tests.messages import wording
from tests.runners.s3 import S3, s3_server

# Works with the store until it is killed.
WORKER = """
import sys, time
from pathlib import Path
from boomspec.store import open_store
with open_store(sys.argv[1]).using(run=Path(sys.argv[2])):
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as s3:
        yield s3


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BOOMSPEC_CACHE", str(tmp_path / "reader"))
    monkeypatch.chdir(tmp_path)
    server.wire.forget()
    return server


@pytest.fixture
def store(s3: S3, request: pytest.FixtureRequest) -> Store:
    return open_store(s3.make_bucket("b-" + format(abs(hash(request.node.name)), "x")[:12]))


@pytest.fixture(scope="module")
def objects(server: S3, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a finished run has left in its bucket, which another machine has made."""
    folder = tmp_path_factory.mktemp("maker")
    write_texts(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**server.environment, "BOOMSPEC_CACHE": str(folder / "cache")}.items():
            monkeypatch.setenv(name, value)
        store = open_store(server.make_bucket("maker"))
        send(store, past_run(store, Writer(folder).compiled().graph))
        return store.bucket.read_all(store.bucket.entries())


@pytest.fixture
def graph(specs: Writer, store: Store, s3: S3, objects: dict[str, bytes]) -> TaskGraph:
    """The graph of a finished run, which is in the bucket."""
    s3.put_many(bucket_of(store), {f"boomspec/{name}": data for name, data in objects.items()})
    return specs.compiled().graph


def send(store: Store, run: Path) -> None:
    """A run's folder as its driver sends it."""
    files = [file for file in run.rglob("*") if file.is_file() and not file.name.startswith(".")]
    store.bucket.upload_all((file, f"runs/{run.name}/{file.relative_to(run).as_posix()}") for file in files)


def call(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "150"}).invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "150"}).invoke(main, [str(a) for a in arguments])
    assert result.exit_code != 0
    return str(result.exception) + result.output


def bucket_of(store: Store) -> str:
    return store.address.split("/")[2]


def gc(store: Store, *arguments: object) -> list[tuple[str, str, str]]:
    answer = json.loads(call("gc", "--store", store.address, "--json", *arguments))
    assert answer["store"] == store.address
    assert answer["bytes"] == sum(item["bytes"] for item in answer["items"])
    return sorted((i["what"], i["path"].removeprefix(f"{store.address}/"), i["reason"]) for i in answer["items"])


def test_plan_reuses_what_the_bucket_has_and_says_what_is_damaged(specs, store, s3, graph) -> None:
    s3.wire.forget()
    found = json.loads(call("plan", specs.folder / "spec.yaml", "--store", store.address, "--json"))
    assert found["store"] == store.address
    assert {task["action"] for task in found["tasks"]} == {"reuse"}
    kinds = {node.task.kind for node in graph.nodes.values()}
    assert s3.wire.counted("GET") <= len(graph.nodes) + 6 * len(kinds)
    s3.wire.forget()
    assert f"Tasks (store: {store.address})" in call("plan", specs.folder / "spec.yaml", "--store", store.address)
    assert s3.wire.counted("GET") <= 6 * len(kinds)  # the records are known here

    node = next(node for node in graph.nodes.values() if node.name == "distill student")
    (name,) = (n for n in s3.objects(bucket_of(store)) if node.id in n and n.endswith("payload"))
    s3.client().put_object(Bucket=bucket_of(store), Key=name, Body=b"shorter")
    text = specs.SPEC.replace("store: store", f"store: {store.address}")
    spec = specs.text(text, "remote.yaml")
    printed = call("plan", spec)
    assert wording("remote_commands.damaged_payload_bytes_record") in printed


def test_a_saved_plan_is_for_its_store(specs, store, graph, tmp_path) -> None:
    spec = specs.folder / "spec.yaml"
    call("plan", spec, "--store", store.address, "--output", tmp_path / "plan.json")
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved["store"] == store.address
    store.discard("evaluate", next(n.id for n in graph.nodes.values() if n.task.kind == "evaluate"))
    assert wording("remote_commands.plan_no_longer_holds") in refused("run", tmp_path / "plan.json")
    other = f"the plan is for the store {store.address}"
    assert other in refused("run", tmp_path / "plan.json", "--store", "s3://another/boomspec")


def test_runs_show_and_diff_know_a_run_by_its_name(specs, store, s3, graph) -> None:
    name, there = store.run_folder(graph.name, graph.id).name, ("--store", store.address)
    elsewhere = specs.folder / "elsewhere" / name
    elsewhere.mkdir(parents=True)
    write_results(elsewhere, 3.5, 3.25)
    send(store, elsewhere)
    store.bucket.write(f"runs/{name}/logs/{next(iter(graph.nodes))}.log", b"what a task has said\n")

    printed = call("runs", *there)
    assert f"Runs in {store.address}/runs" in printed
    assert f"{len(graph.nodes)}/{len(graph.nodes)}" in printed
    assert "held_out loss 3.5 -> 3.25" in printed
    here = open_store(store.address)
    assert not (here.root / "runs" / name / "logs").exists()  # a list needs no logs
    found = json.loads(call("runs", name[:6], *there, "--json"))["run"]
    assert found["state"] == "finished"
    (log,) = found["logs"].values()
    assert Path(log).read_text() == wording("remote_commands.what_task_said")
    assert Path(log).is_relative_to(here.root)

    assert "name: tiny" in call("show", name, *there)
    compared = call("diff", name, specs.folder / "spec.yaml", *there)
    assert f"{store.address}/runs/{name}" in compared
    assert wording("remote_commands.they_mean_same") in compared
    brought = here.root / "runs" / name  # as `runs` shows it: its store is the one at the URL
    assert json.loads(call("runs", brought, "--json"))["store"] == store.address
    assert wording("remote_commands.they_mean_same") in call("diff", brought, name, *there)
    assert wording("remote_commands.no_run_runs", address=store.address, name="other-12345678") in refused(
        "runs", "other-12345678", *there
    )
    assert "is not a store" in refused("runs", "--store", other_place(store, s3))


def other_place(store: Store, s3: S3) -> str:
    """A place of the bucket where somebody keeps other things."""
    s3.client().put_object(Bucket=bucket_of(store), Key="photos/cat.png", Body=b"cat")
    return store.address.replace("/boomspec", "/photos")


def test_what_another_machine_has_written_since_is_brought_and_what_runs_here_is_not_replaced(store, graph) -> None:
    (run,) = past_runs(store)
    here = open_store(store.address)
    assert [run.state for run in past_runs(here)] == ["finished"]
    events = f"runs/{run.folder.name}/events.jsonl"
    grown = store.bucket.read(events) + b'{"time": 1, "run": "later", "event": "run_started", "tasks": 1}\n'
    store.bucket.write(events, grown)
    assert [run.state for run in past_runs(here)] == ["killed"]  # it has started, and nobody works on it

    mine = here.root / events
    mine.write_bytes(grown + b"and one line more\n")
    os.utime(mine, (mine.stat().st_mtime + 60,) * 2)
    past_runs(here)
    assert mine.read_bytes().endswith(b"one line more\n")


def test_gc_deletes_what_no_run_needs_and_nothing_else(specs, store, s3, graph) -> None:
    assert gc(store) == []
    other = specs.edited(("seed", 5)).graph
    unneeded = [node for node in other.nodes.values() if node.id not in graph.nodes]
    for node in unneeded:
        publish(store, node.task)
    needed = next(node for node in graph.nodes.values() if node.task.kind == "distill")
    place = f"{needed.task.kind}/{needed.id}"
    store.bucket.write(f"{place}/{'0f' * 8}/model", b"of a writer that was killed")
    store.bucket.write(f"tokenize/{'ee' * 32}/{'0f' * 8}/model", b"of another one")
    store.bucket.write(f"distill/.{'dd' * 32}.resume/step-00000001.x/state.json", b"{}")
    store.bucket.write(f"distill/.{needed.id}.lease", b"{}")
    store.bucket.write("notes/of-somebody.txt", b"not ours")
    foreign = f"distill/{'cc' * 32}"
    store.bucket.write(f"{foreign}/{RECORD}", b'{"record": 2}')
    store.bucket.write(f"{foreign}/{'0f' * 8}/model", b"newer")
    part = f"distill/{'bb' * 32}/{'0f' * 8}/model"
    s3.client().create_multipart_upload(Bucket=bucket_of(store), Key=f"boomspec/{part}")
    s3.client().create_multipart_upload(Bucket=bucket_of(store), Key="somebody/else")
    expected = [("artifact", f"{node.task.kind}/{node.id}", "of no run") for node in unneeded]
    expected += [
        ("leftover", place, "its process is dead"),
        ("leftover", f"tokenize/{'ee' * 32}", "its process is dead"),
        ("leftover", f"distill/.{needed.id}.lease", "its process is dead"),
        ("checkpoints", f"distill/.{'dd' * 32}.resume", "of no run"),
        ("leftover", part, "an upload that never ended"),
    ]
    assert gc(store) == sorted(expected)
    before = s3.objects(bucket_of(store))
    assert gc(store, "--delete") == sorted(expected)
    assert gc(store) == []
    gone = before.keys() - s3.objects(bucket_of(store)).keys()
    begun = s3.client().list_multipart_uploads(Bucket=bucket_of(store))["Uploads"]
    assert [upload["Key"] for upload in begun] == ["somebody/else"]
    assert len(gone) == 4 + 2 * len(unneeded)
    assert not any("notes" in name or "cc" * 32 in name for name in gone)
    assert set(store.survey((n.task.kind, n.id) for n in graph.nodes.values()).values()) == {None}


def test_gc_forgets_a_run_and_what_was_fetched_to_this_machine(store, s3, graph) -> None:
    here = open_store(store.address)
    node = next(node for node in graph.nodes.values() if node.task.kind == "distill")
    here.fetch("distill", node.id)
    found = gc(store, "--cache", "--delete")
    assert ("cache", str(here.path("distill", node.id)), wording("remote_commands.fetched_again")) in found
    assert not here.path("distill", node.id).exists()
    assert (here.fetch("distill", node.id) / "payload").read_text() == "the payload"
    gc(store, "--forget", "tiny", "--delete")
    assert not any("/.in-use/" not in name for name in s3.objects(bucket_of(store)))
    assert wording("remote_commands.there_no_runs_runs", address=store.address) in call(
        "runs", "--store", store.address
    )


def test_a_store_that_another_machine_works_with_is_not_cleaned(store, graph, tmp_path) -> None:
    (run,) = past_runs(store)
    environment = {**os.environ, "BOOMSPEC_CACHE": str(tmp_path / "third")}
    command = [sys.executable, "-c", WORKER, store.address, str(run.folder)]
    worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    store.bucket.write(f"tokenize/{'ee' * 32}/{'0f' * 8}/model", b"being written")
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline()
        told = refused("gc", "--store", store.address, "--delete")
        assert wording("remote_commands.store_use_run_nothing", address=store.address, name=run.folder.name) in told
        assert gc(store) == []  # it may be his
        assert [run.state for run in past_runs(store)] == ["running"]
    finally:
        worker.kill()
        worker.communicate()
    assert [run.state for run in past_runs(store)] == ["finished"]
    assert [what for what, _, _ in gc(store, "--delete")] == ["leftover", "leftover"]
    with store.using():
        assert wording("remote_commands.use_another_boomspec_process") in refused(
            "gc", "--store", store.address, "--delete"
        )


def test_lock_reads_the_rows_from_the_bucket_alone(specs, store, s3, graph) -> None:
    task = next(node.task for node in graph.nodes.values() if node.task.kind == "tokenize")
    store.discard("tokenize", task.id)
    rows = {"sha256": "ab" * 32, "documents": 6}
    with store.workspace("tokenize", task.id) as workspace:
        (workspace.path / "train.bin").write_bytes(b"t" * 1000)
        meta = {"rows": {"train": rows, "held_out": {**rows, "documents": 2}}}
        (workspace.path / "meta.json").write_text(json.dumps(meta))
        store.publish(workspace, "tokenize", task.id, task.identity(), {})
    s3.wire.forget()
    printed = call("lock", specs.folder / "spec.yaml", "--store", store.address)
    assert "rows: 6 to train on" in printed
    assert s3.wire.counted("GET", "train.bin") == 0
    assert "holds" in call("lock", specs.folder / "spec.yaml", "--store", store.address, "--check")


def test_graph_and_validate_take_a_spec_whose_store_is_a_url(specs, s3, store) -> None:
    spec = specs.text(specs.SPEC.replace("store: store", f"store: {store.address}"))
    s3.wire.forget()
    assert "valid" in call("validate", spec)
    assert s3.wire.counted("GET") == 0
    assert json.loads(call("graph", spec))["name"] == "tiny"
    wrong = specs.text(specs.SPEC.replace("store: store", "store: s3://key:secret@bucket/x"))
    told = refused("validate", wrong)
    assert wording("remote_commands.credentials") in told
    shutil.rmtree(specs.folder / "store", ignore_errors=True)
