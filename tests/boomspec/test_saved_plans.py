"""Saved plans: what is executed is what was planned, or nothing."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Node, Source, Task, TaskGraph
from boomspec.core.identity import file_digest, folder_digest
from boomspec.core.tasks import Evaluate, HeldOut
from boomspec.plan.plan import SavedPlan, check_saved, is_plan, plan_tasks, read_plan
from boomspec.store import FolderStore
from tests.boomspec.test_cli import call
from tests.boomspec.test_plan import Chain
from tests.messages import wording

EVALUATE = Evaluate(measure=HeldOut(sequence_length=8), precision="fp32")


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def saved(chain: Chain, *, checksums: bool = False) -> SavedPlan:
    plan = plan_tasks(chain.graph, chain.store, checksums=checksums)
    return SavedPlan(chain.graph, plan, chain.store.address, checksums=checksums)


def written(chain: Chain, folder: Path) -> Path:
    file = folder / "plan.json"
    saved(chain).save(file)
    return file


def difference(plan: SavedPlan) -> str:
    with pytest.raises(BoomspecError, match=wording("saved_plans.no_longer_holds_nothing")) as caught:
        check_saved(plan, Path("plan.json"))
    return caught.value.message


def test_a_plan_that_is_read_is_the_plan_that_was_saved(chain: Chain, tmp_path: Path) -> None:
    chain.make("tokens")
    plan = read_plan(written(chain, tmp_path))
    assert plan == saved(chain)
    assert list(plan.graph.nodes) == list(chain.graph.nodes)
    check_saved(plan, tmp_path / "plan.json")


def test_a_saved_plan_is_told_from_a_compiled_graph(chain: Chain, tmp_path: Path) -> None:
    chain.graph.write(tmp_path / "graph.json")
    (tmp_path / "nonsense.json").write_text("{")
    assert is_plan(written(chain, tmp_path))
    assert not any(is_plan(tmp_path / name) for name in ("graph.json", "nonsense.json", "none.json"))


def test_an_altered_plan_is_refused(chain: Chain, tmp_path: Path) -> None:
    file = written(chain, tmp_path)
    data = json.loads(file.read_text())
    data["steps"][chain.tasks["score"].id]["action"] = "reuse"
    file.write_text(json.dumps(data))
    with pytest.raises(BoomspecError, match=wording("saved_plans.altered_after_made")):
        read_plan(file)


def test_a_plan_of_another_version_is_refused(chain: Chain, tmp_path: Path) -> None:
    file = written(chain, tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), "boomspec_plan": 99}))
    with pytest.raises(BoomspecError, match=wording("saved_plans.plan_version_but_boomspec")):
        read_plan(file)


def test_an_unreadable_plan_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(BoomspecError) as caught:
        read_plan(tmp_path / "plan.json")
    assert "boomspec plan SPEC --output" in (caught.value.hint or "")


def test_an_artifact_that_came_makes_a_plan_stale(chain: Chain) -> None:
    plan = saved(chain)
    chain.make("tokens")
    assert wording("saved_plans.tokens_planned_run_not") in difference(plan)


def test_an_artifact_that_went_makes_a_plan_stale(chain: Chain) -> None:
    chain.make("tokens", "model")
    plan = saved(chain)
    chain.store.discard("evaluate", chain.tasks["model"].id)
    assert wording("saved_plans.model_planned_reuse_store") in difference(plan)


def test_contents_that_changed_make_a_plan_stale_that_compared_contents(chain: Chain) -> None:
    chain.make("tokens")
    plain, careful = saved(chain), saved(chain, checksums=True)
    chain.payload("tokens").write_text("TOKENS")
    check_saved(plain, Path("plan.json"))
    assert wording("saved_plans.does_not_match_checksum") in difference(careful)


def test_a_text_that_was_edited_makes_a_plan_stale(chain: Chain) -> None:
    plan = saved(chain)
    chain.text.write_text("sword")  # as long as before
    assert wording("saved_plans.changed_since_plan_made", text=chain.text) in difference(plan)


def test_a_text_that_nothing_reads_any_more_may_change(chain: Chain) -> None:
    chain.make("tokens", "other")
    plan = saved(chain)
    chain.text.write_text("sword")
    check_saved(plan, Path("plan.json"))


def test_a_text_that_is_gone_makes_a_plan_stale(chain: Chain) -> None:
    plan = saved(chain)
    chain.text.unlink()
    assert wording("saved_plans.now_blocked_text_gone") in difference(plan)


@pytest.mark.parametrize("kind", ["model", "lm_eval_tasks"])
def test_a_folder_that_was_edited_makes_a_plan_stale(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text("{}")
    identity = {"sha256": {"config.json": file_digest(file)}} if kind == "model" else {"folder": folder_digest(folder)}
    source = Source(kind, identity, {"folder": str(folder)})
    task = Task(EVALUATE, {"model": source.id})
    graph = TaskGraph("one", {task.id: Node(task, "score")}, {source.id: source}, (task.id,))
    store = FolderStore(tmp_path / "store")
    plan = SavedPlan(graph, plan_tasks(graph, store), store.address)
    check_saved(plan, Path("plan.json"))
    file.write_text("{ }")
    assert wording("saved_plans.changed_since_plan_made_2") in difference(plan)
    file.unlink()
    assert str(folder) in difference(plan)


def test_another_lm_eval_makes_a_plan_stale_that_was_made_with_its_stock_tasks(tmp_path: Path) -> None:
    def plan_with(version: str) -> SavedPlan:
        source = Source("lm_eval_tasks", {"lm_eval": version}, {})
        task = Task(EVALUATE, {"tasks": source.id})
        graph = TaskGraph("one", {task.id: Node(task, "score")}, {source.id: source}, (task.id,))
        store = FolderStore(tmp_path / "store")
        return SavedPlan(graph, plan_tasks(graph, store), store.address)

    check_saved(plan_with(metadata.version("lm-eval")), Path("plan.json"))
    assert wording("saved_plans.installed_plan_made") in difference(plan_with("0.0.1"))


def test_a_plan_replaces_an_older_plan_and_nothing_else(specs, tmp_path: Path) -> None:
    path, file = specs.text(specs.SPEC), tmp_path / "plan.json"
    for _ in range(2):
        assert call("plan", path, "--output", file).exit_code == 0
    before = path.read_text()
    result = call("plan", path, "--output", path)
    assert result.exit_code == 2
    assert wording("saved_plans.no_saved_plan") in result.output
    assert path.read_text() == before


def test_a_saved_plan_given_for_a_graph_is_called_by_its_name(specs, tmp_path: Path) -> None:
    path, file = specs.text(specs.SPEC), tmp_path / "plan.json"
    call("plan", path, "--output", file)
    result = call("show", file)
    assert result.exit_code == 2
    assert wording("saved_plans.saved_plan_not_compiled", file=file) in result.output


def test_run_refuses_a_stale_plan_and_runs_nothing(specs, tmp_path: Path) -> None:
    path, file = specs.text(specs.SPEC), tmp_path / "plan.json"
    assert call("plan", path, "--output", file).exit_code == 0
    (specs.folder / "0.txt").write_text("another document")
    result = call("run", file)
    assert result.exit_code == 2
    assert wording("saved_plans.plan_no_longer_holds") in result.output
    assert "0.txt: has changed" in result.output
    assert not (specs.folder / "store").exists()


def test_run_refuses_a_plan_for_another_store(specs, tmp_path: Path) -> None:
    path, file = specs.text(specs.SPEC), tmp_path / "plan.json"
    call("plan", path, "--output", file)
    result = call("run", file, "--store", tmp_path / "elsewhere")
    assert result.exit_code == 2
    assert wording("saved_plans.plan_store") in result.output


def test_another_spec_does_not_change_a_plan(specs, tmp_path: Path) -> None:
    path, file = specs.text(specs.SPEC), tmp_path / "plan.json"
    call("plan", path, "--output", file)
    specs.text(specs.SPEC.replace("seed: 0", "seed: 1"))
    check_saved(read_plan(file), file)


def test_a_saved_plan_cannot_be_combined_with_a_lock(specs, tmp_path: Path) -> None:
    path, file = specs.text(specs.SPEC), tmp_path / "plan.json"
    call("plan", path, "--output", file)
    assert wording("saved_plans.locked_goes_spec") in call("run", file, "--locked").output
