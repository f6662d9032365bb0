"""`boomspec runs`: what is in a store's run folders, whatever their state."""

import json
import shutil

import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.core.errors import BoomspecError
from boomspec.store import FolderStore, Store
from boomspec.store.runs import chosen_run, past_runs
from tests.boomspec.past import age, journal_of, past_run, write_results
from tests.messages import wording


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "store")


def call(*arguments: object):
    return CliRunner(env={"COLUMNS": "150"}).invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def states(store: Store) -> dict[str, str]:
    return {run.name: run.state for run in past_runs(store)}


def test_every_way_to_end_has_its_state(specs, store):
    for state in ("finished", "failed", "interrupted", None):
        past_run(store, specs.edited(("name", str(state)), ("seed", len(str(state)))).graph, state=state)
    only_compiled = specs.edited(("name", "compiled"))
    folder = store.run_folder("compiled", only_compiled.graph.id)
    folder.mkdir()
    only_compiled.graph.write(folder / "graph.json")
    running = specs.edited(("name", "running"), ("seed", 9)).graph
    with store.using(run=past_run(store, running, state=None)):
        assert states(store) == {
            "finished": "finished",
            "failed": "failed",
            "interrupted": "interrupted",
            "None": "killed",
            "compiled": "not started",
            "running": "running",
        }
    assert states(store)["running"] == "killed"


def test_the_last_run_of_a_folder_counts(specs, store):
    graph = specs.compiled().graph
    folder = past_run(store, graph, state="failed")
    journal = journal_of(store, graph)
    journal.event("run_started", tasks=1)
    with (folder / "events.jsonl").open("a") as events:
        events.write('{"time": 1, "run": "half a li')
    assert states(store) == {"tiny": "killed"}


def test_tasks_are_counted_by_what_the_store_holds_now(specs, store):
    graph = specs.compiled().graph
    past_run(store, graph)
    (run,) = past_runs(store)
    assert (run.made, len(run.tasks)) == (len(graph.nodes), len(graph.nodes))
    node = next(iter(graph.nodes.values()))
    shutil.rmtree(store.path(node.task.kind, node.id))
    (run,) = past_runs(store)
    assert run.made == len(graph.nodes) - 1


def test_what_was_not_computed_again_is_counted(specs, store):
    graph = specs.compiled().graph
    journal = journal_of(store, graph)
    journal.event("run_started", tasks=3)
    first, second, third, *_ = graph.nodes
    journal.event("task_reused", first, same_as="a" * 64)
    journal.event("task_reused", second)  # another run made it meanwhile
    journal.event("task_finished", third)
    journal.event("run_finished", state="finished")
    (run,) = past_runs(store)
    assert run.same == run.to_json()["same"] == 1
    said = call("runs", "tiny", "--store", store.root).output
    assert wording("history.them_not_computed_again") in said


def test_the_newest_run_comes_first_with_its_headline_numbers(specs, store):
    old = past_run(store, specs.edited(("name", "old")).graph)
    age(old, 3600)
    write_results(past_run(store, specs.edited(("name", "new"), ("seed", 1)).graph), 3.25, 3.125)
    printed = call("runs", "--store", store.root).output
    assert printed.index("new-") < printed.index("old-")
    assert "held_out loss 3.25 -> 3.125" in printed
    listed = json.loads(call("runs", "--store", store.root, "--json").output)
    assert listed["schema"] == 1
    assert [run["name"] for run in listed["runs"]] == ["new", "old"]
    assert listed["runs"][0]["numbers"] == {"held_out loss": {"student": 3.25, "teacher": 3.125}}
    assert listed["runs"][0]["outcome"] == wording("history.all_sizes_beat_naive")


def test_one_run_in_detail_names_what_failed_why_and_where_its_log_is(specs, store):
    graph = specs.compiled().graph
    journal = journal_of(store, graph)
    journal.event("run_started", tasks=len(graph.nodes))
    first, *others = graph.nodes.values()
    journal.log(first.id).write_text("the traceback")
    journal.event("task_failed", first.id, error="out of tokens\nhint: give more")
    for node in others:
        journal.event("task_blocked", node.id, error=f"needs {first.name}, which failed")
    journal.event("run_finished", state="failed", counts={})
    printed = call("runs", "--store", store.root, "tiny").output
    assert wording("history.failed_out_tokens", name=first.name) in printed
    assert "hint: give more" in printed
    assert f"log: {journal.log(first.id)}" in printed
    assert (
        wording("history.blocked_more_needs_failed", name=others[0].name, value=len(others) - 1, name2=first.name)
        in printed
    )
    detail = json.loads(call("runs", "--store", store.root, "--json", journal.folder.name).output)["run"]
    assert [trouble["state"] for trouble in detail["troubles"]] == ["failed"] + ["blocked"] * len(others)
    assert call("runs", journal.folder).output == printed  # a folder says which store it is of


DAMAGE = {
    "no graph": (None, "it holds no graph.json"),
    "half a graph": ('{"boomspec_graph": 2, "na', "its graph.json cannot be read"),
    "another schema": ('{"boomspec_graph": 99, "tasks": {}}', "its graph has version 99"),
    "a list": ("[]", "its graph has version None"),
    "no tasks": ('{"boomspec_graph": %d}', "its graph.json names no tasks"),
    "odd tasks": ('{"boomspec_graph": %d, "tasks": {"x": {"kind": 1}}}', "its graph.json names no tasks"),
    "odd names": ('{"boomspec_graph": %d, "tasks": {}, "name": 1, "experiments": 5}', None),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_that_cannot_be_read_is_listed_with_the_reason(specs, store, kind):
    from boomspec.core.graph import SCHEMA_VERSION

    text, problem = DAMAGE[kind]
    folder = past_run(store, specs.compiled().graph)
    (folder / "graph.json").unlink()
    if text is not None:
        (folder / "graph.json").write_text(text.replace("%d", str(SCHEMA_VERSION)))
    (folder / "report").mkdir()
    (folder / "report" / "results.json").write_text('{"results": 7, "outcome": null}')
    (run,) = past_runs(store)
    assert (run.problem or "").startswith(problem or "")
    assert (run.problem is None) == (problem is None)
    assert run.state == "finished"
    for arguments in ((), (folder.name,), ("--json",)):
        result = call("runs", "--store", store.root, *arguments)
        assert result.exit_code == 0
        assert folder.name in result.output


def test_a_run_took_the_time_of_its_work_and_was_last_seen_when_it_was_looked_at(specs, store):
    graph = specs.compiled().graph
    folder = past_run(store, graph)
    age(folder, 1000)
    (before,) = past_runs(store)
    journal = journal_of(store, graph)
    journal.event("run_started", tasks=0)
    journal.event("run_finished", state="finished", counts={})
    (run,) = past_runs(store)
    assert (run.state, run.started, run.seconds) == ("finished", before.started, before.seconds)
    assert run.last_seen > before.last_seen + 900


def test_a_name_stands_for_one_run_or_is_an_error_that_lists_them(specs, store):
    one = past_run(store, specs.edited(("name", "one")).graph)
    other = past_run(store, specs.edited(("name", "other"), ("seed", 1)).graph)
    runs = past_runs(store)
    assert chosen_run(runs, "on", store).folder == one
    assert chosen_run(runs, str(other), store).folder == other
    with pytest.raises(BoomspecError, match="2 runs are called o") as error:
        chosen_run(runs, "o", store)
    assert one.name in str(error.value)
    for nothing in ("", ".", f"/elsewhere/runs/{one.name}"):
        with pytest.raises(BoomspecError, match="no run"):
            chosen_run(runs[:1], nothing, store)
    result = call("runs", "--store", store.root, "onne-12345678")
    assert result.exit_code == 2
    assert wording("history.no_run", value=store.root / "runs", name="onne-12345678") in result.output


def test_where_there_are_no_runs_it_is_said_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("runs")
    assert result.exit_code == 0
    assert wording("history.there_no_runs", value=tmp_path / "boomspec-store" / "runs") in result.output
    assert json.loads(call("runs", "--json").output)["runs"] == []


def tensorboard(path):
    """Somebody else's runs, and somebody else's cache."""
    for name in ("runs/Nov22", "cache"):
        (path / name).mkdir(parents=True)
        (path / name / "events.out.tfevents").write_text("mine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, wording("history.there_no_store")),
        (lambda path: path.write_text("text"), wording("history.file_not_store")),
        (lambda path: (path / "music").mkdir(parents=True), wording("history.not_store_holds_neither")),
        (tensorboard, wording("history.not_store_holds_neither")),
    ],
)
@pytest.mark.parametrize("command", ["runs", "gc"])
def test_a_store_that_is_none_is_an_error(tmp_path, make, message, command):
    make(tmp_path / "place")
    before = sorted(tmp_path.rglob("*"))
    result = call(command, "--store", tmp_path / "place", *(["--delete", "--cache"] if command == "gc" else []))
    assert result.exit_code == 2
    assert message in result.output
    assert sorted(tmp_path.rglob("*")) == before
