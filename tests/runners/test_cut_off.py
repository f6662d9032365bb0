"""A task that was made again and gave the same bytes: nothing behind it is computed again. Real tasks, a real run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boomspec.core.graph import TaskGraph
from boomspec.core.tasks import Tokenize
from boomspec.plan.forecast import MachineSpec, forecast
from boomspec.plan.plan import RunPlan, plan_tasks
from boomspec.plan.reasons import with_reasons
from boomspec.store import FolderStore, Store
from tests.messages import wording
from tests.runners import small
from tests.runners.small import execute_one

pytestmark = pytest.mark.usefixtures("no_figures")


def repackage(folder: Path) -> None:
    """The same documents in the same order, as rows of one file instead of files."""
    texts = sorted((folder / "texts").iterdir())
    rows = [json.dumps({"text": path.read_text()}) + "\n" for path in texts]
    (folder / "rows.jsonl").write_text("".join(rows))


def kinds(graph: TaskGraph, store: Store, plan: RunPlan) -> dict[str, set[str]]:
    """What a plan says of tasks, by kind."""
    found: dict[str, set[str]] = {}
    for i, step in plan.steps.items():
        said = "same" if step.same_as else "if" if step.if_inputs_differ else step.action
        found.setdefault(graph.nodes[i].task.kind, set()).add(said)
    return found


@pytest.fixture(scope="module")
def told(connected: None, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished run, its data packed otherwise, and a run after that: what was planned, and what happened."""
    folder = tmp_path_factory.mktemp("cut-off")
    spec, store = small.copied(finished, folder)
    first = small.compiled(spec, store).graph
    assert small.run(first, store) == 0  # there is nothing to do, and now the store knows the run
    repackage(folder)
    compiled = small.compiled(small.write_spec(folder, data={"files": "rows.jsonl"}), store)
    second = compiled.graph
    plan = with_reasons(plan_tasks(second, store), compiled, store)
    code = small.run(second, store)
    return {"folder": folder, "store": store, "first": first, "second": second, "plan": plan, "code": code}


def test_the_same_documents_in_another_file_train_nothing_again(told) -> None:
    store, first, second = told["store"], told["first"], told["second"]
    assert told["code"] == 0
    assert not set(first.nodes) & set(second.nodes)
    tasks = small.status(second, store)["tasks"]
    assert {task["kind"]: task["state"] for task in tasks.values()} == {
        "tokenize": "made",
        "pretrain": "reused",
        "distill": "reused",
        "interpolate": "reused",
        "evaluate": "reused",
        "report": "made",
    }
    names = {node.name: node.id for node in first.nodes.values()}
    same = {task["name"]: task["same_as"] for task in tasks.values() if task["state"] == "reused"}
    assert same == {name: names[name] for name in same}


def test_events_say_which_artifact_stands_for_each(told, capfd) -> None:
    store, second = told["store"], told["second"]
    reused = [event for event in small.events(second, store) if event["event"] == "task_reused"]
    assert len(reused) == len(second.nodes) - 2
    assert {event["same_as"] for event in reused} <= set(told["first"].nodes)
    capfd.readouterr()
    assert small.run(second, store) == 0
    assert "nothing to do" in capfd.readouterr().out


def test_the_artifact_says_how_its_bytes_came_to_be(told) -> None:
    store, first, second = told["store"], told["first"], told["second"]
    for node in second.nodes.values():
        if node.task.kind not in ("tokenize", "report"):
            record = store.record(node.task.kind, node.id)
            same_as = record["provenance"].pop("same_as")
            assert record["provenance"] == store.record(node.task.kind, same_as["id"])["provenance"]
            assert first.nodes[same_as["id"]].name == node.name
            assert record["task"] == node.task.identity()
            assert store.damage(node.task.kind, node.id, checksums=True) is None


def test_the_plan_says_what_runs_only_if_its_inputs_come_out_otherwise(told) -> None:
    plan, second = told["plan"], told["second"]
    assert kinds(second, told["store"], plan) == {
        "tokenize": {"run"},
        "pretrain": {"if"},
        "distill": {"if"},
        "interpolate": {"if"},
        "evaluate": {"if"},
        "report": {"run"},
    }
    student = next(step for i, step in plan.steps.items() if second.nodes[i].task.kind == "distill")
    said = "its input pretrain teacher runs; it runs only if that comes out otherwise than before"
    assert student.reason == wording("cut_off.not_store", said=said)


def test_a_training_with_other_settings_is_expected_to_come_out_otherwise(told) -> None:
    store = told["store"]
    spec = small.write_spec(told["folder"], distill={"optimizer": {"lr": 0.0123}})
    compiled = small.compiled(spec, store)
    graph = compiled.graph
    found = kinds(graph, store, with_reasons(plan_tasks(graph, store), compiled, store))
    assert found["distill"] == {"run"}
    assert all("if" not in actions for actions in found.values())


def test_once_the_tokens_are_there_the_plan_says_reuse_and_reckons_no_time(told) -> None:
    """As it is after a run that was killed behind `tokenize`."""
    store, second = told["store"], told["second"]
    for node in second.nodes.values():
        if node.task.kind != "tokenize":
            shutil.rmtree(store.path(node.task.kind, node.id))
    plan = plan_tasks(second, store)
    assert kinds(second, store, plan) == {
        "tokenize": {"reuse"},
        "pretrain": {"same"},
        "distill": {"same"},
        "interpolate": {"same"},
        "evaluate": {"same"},
        "report": {"run"},
    }
    assert forecast(second, plan, store, MachineSpec(2, 0)).totals.flops == 0
    assert small.run(second, store) == 0
    assert plan_tasks(second, store).work == []


def test_other_documents_train_everything_again(told) -> None:
    folder, store = told["folder"], told["store"]
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text().replace("line 7", "line seven"))
    graph = small.compiled(small.write_spec(folder, data={"files": "rows.jsonl"}), store).graph
    assert small.run(graph, store) == 0
    assert {task["state"] for task in small.status(graph, store)["tasks"].values()} == {"made"}


# Without Ray, in this process: one task after the other.


def without_report(graph: TaskGraph) -> TaskGraph:
    nodes = {i: node for i, node in graph.nodes.items() if node.task.kind != "report"}
    targets = tuple(i for i, node in nodes.items() if node.task.kind == "evaluate")
    return replace(graph, nodes=nodes, targets=targets)


@pytest.fixture(scope="module")
def made(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec's texts and a store in which all of it was made, but for the report."""
    folder = tmp_path_factory.mktemp("made")
    small.copied(finished, folder, without=["report"])
    return folder


def test_a_raised_version_makes_its_kind_again_and_nothing_behind_it(made, tmp_path, monkeypatch) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    store = FolderStore(folder / "store")
    monkeypatch.setattr(Tokenize, "version", Tokenize.version + 1)
    graph = without_report(small.compiled(small.write_spec(folder), store).graph)
    outcomes = small.execute(graph, store)
    assert outcomes.pop("tokenize").state == "made"
    assert {(outcome.state, bool(outcome.same_as)) for outcome in outcomes.values()} == {("reused", True)}


def test_what_is_to_be_made_anew_is_computed(made, tmp_path, monkeypatch) -> None:
    """As `verify --end-to-end` does, which may not compare an artifact with itself."""
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    store = FolderStore(folder / "store")
    monkeypatch.setattr(Tokenize, "version", Tokenize.version + 1)
    graph = without_report(small.compiled(small.write_spec(folder), store).graph)
    assert {outcome.state for outcome in small.execute(graph, store, anew=True).values()} == {"made"}


def test_what_goes_between_plan_and_run_is_an_error_and_no_training(made, tmp_path, monkeypatch) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    store = FolderStore(folder / "store")
    old = small.compiled(small.write_spec(folder), store).graph
    monkeypatch.setattr(Tokenize, "version", Tokenize.version + 1)
    graph = without_report(small.compiled(small.write_spec(folder), store).graph)
    tokenize, pretrain, *_ = small.jobs(graph, store, tmp_path / "run")
    assert (tokenize.node.task.kind, pretrain.node.task.kind) == ("tokenize", "pretrain")
    assert execute_one(tokenize).state == "made"
    same_as = plan_tasks(graph, store).steps[pretrain.node.id].same_as
    assert same_as in old.nodes
    store.discard("pretrain", same_as)
    outcome = execute_one(replace(pretrain, same_as=same_as))
    assert outcome.state == "failed"
    assert wording("cut_off.gone_damaged_since_plan") in outcome.error
    assert execute_one(pretrain).state == "made"  # planned as one that runs, it does


@pytest.mark.parametrize("checksums", [True, False])
def test_with_checksums_a_damaged_artifact_stands_for_nothing(made, tmp_path, monkeypatch, checksums) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    store = FolderStore(folder / "store")
    old = next(
        n for n in small.compiled(small.write_spec(folder), store).graph.nodes.values() if n.task.kind == "pretrain"
    )
    monkeypatch.setattr(Tokenize, "version", Tokenize.version + 1)
    graph = without_report(small.compiled(small.write_spec(folder), store).graph)
    tokenize, pretrain, *_ = small.jobs(graph, store, tmp_path / "run")
    execute_one(tokenize)
    weights = small.weights(store, "pretrain", old.id)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert execute_one(replace(pretrain, checksums=checksums)).state == ("made" if checksums else "reused")


@pytest.mark.parametrize("kind", ["pretrain", "distill", "interpolate", "evaluate"])
def test_payloads_are_the_same_bytes_when_they_are_made_again(made, tmp_path, kind) -> None:
    """No time, no path and no id in them, in none of their files: else nothing behind them would ever be the same."""
    folder = Path(shutil.copytree(made, tmp_path / "elsewhere" / "copy"))
    store = FolderStore(folder / "store")
    graph = without_report(small.compiled(small.write_spec(folder), store).graph)
    own = {i for i, node in graph.nodes.items() if node.task.kind == kind}
    before = {i: store.record(kind, i)["files"] for i in own}
    for i in own:
        store.discard(kind, i)
    assert len(small.execute(replace(graph, targets=tuple(own)), store)) == len(own)
    assert {i: store.record(kind, i)["files"] for i in own} == before
