"""Early cut-off, without running anything: what was made of the same inputs byte for byte is found again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from boomspec.core.graph import Node, Source, Task, TaskGraph
from boomspec.core.identity import text_digest
from boomspec.core.tasks import Evaluate, HeldOut, Interpolate, Tokenize
from boomspec.plan.plan import RunPlan, SavedPlan, Step, check_saved, plan_tasks, read_plan
from boomspec.store import RECORD, FolderStore, Store
from boomspec.store.gc import garbage
from boomspec.store.made_of import content_key, contents_of, key_of, publish_equal
from boomspec.store.record import MADE_OF
from tests.messages import wording

CHAIN = ("tokens", "model", "score")


class Chain:
    """text -> tokens -> model -> score, in one store; several of them, from texts that differ."""

    def __init__(self, store: Store, text: str, *, layers: int = 2) -> None:
        self.store = store
        folder = store.root.parent / text
        folder.mkdir(exist_ok=True)
        (folder / "text.txt").write_text(text)
        file = {"sha256": text_digest(text), "bytes": len(text)}
        source = Source("text", {"files": [file]}, {"files": [str(folder / "text.txt")]})
        tokenize = Tokenize(text_field="text", skip=0, held_out_every=0, held_out_offset=0)
        tokens = Task(tokenize, {"text": source.id})
        model = Task(Interpolate(plan=("t0",) * layers, tied=True), {"teacher": tokens.id})
        score = Task(
            Evaluate(measure=HeldOut(sequence_length=8), precision="fp32"), {"model": model.id, "tokens": tokens.id}
        )
        self.tasks = {"tokens": tokens, "model": model, "score": score}
        nodes = {task.id: Node(task, name) for name, task in self.tasks.items()}
        self.graph = TaskGraph("chain", nodes, {source.id: source}, (score.id,))
        self.kinds = {task.id: task.kind for task in self.tasks.values()}

    def make(self, *names: str, payload: str = "") -> None:
        """As a worker does it: listed, then published."""
        for name in names:
            task = self.tasks[name]
            with self.store.workspace(task.kind, task.id) as workspace:
                (workspace.path / "folder").mkdir()
                (workspace.path / "folder" / "payload").write_text(payload or name)
                if (key := content_key(self.store, task, self.kinds)) is not None:
                    self.store.note_key(task.kind, key, task.id)
                self.store.publish(workspace, task.kind, task.id, task.identity(), {"seconds": 7})

    def plan(self, *, checksums: bool = False) -> RunPlan:
        return plan_tasks(self.graph, self.store, checksums=checksums)

    def steps(self, *, checksums: bool = False) -> dict[str, Step]:
        return {name: self.plan(checksums=checksums).steps[task.id] for name, task in self.tasks.items()}

    def reused_as(self, **options: bool) -> dict[str, str]:
        return {name: step.same_as for name, step in self.steps(**options).items() if step.same_as}

    def payload(self, name: str) -> Path:
        task = self.tasks[name]
        return self.store.path(task.kind, task.id) / "folder" / "payload"

    def id(self, name: str) -> str:
        return self.tasks[name].id

    def twin(self, name: str, of: "Chain", *, checksums: bool = False) -> bool:
        task = self.tasks[name]
        more = {"same_as": {"id": of.id(name)}}
        return publish_equal(self.store, task.kind, task.id, of.id(name), task.identity(), more, checksums=checksums)


@pytest.fixture
def store(tmp_path) -> Store:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def before(store) -> Chain:
    chain = Chain(store, "as it was")
    chain.make(*CHAIN)
    return chain


@pytest.fixture
def after(before) -> Chain:
    """The same from another text, whose tokens come out the same."""
    chain = Chain(before.store, "packed otherwise")
    assert not set(chain.graph.nodes) & set(before.graph.nodes)
    return chain


def test_what_is_made_of_the_same_is_reused_down_the_whole_chain(before, after):
    assert {name: step.action for name, step in after.steps().items()} == dict.fromkeys(CHAIN, "run")
    after.make("tokens", payload="tokens")
    assert after.reused_as() == {name: before.id(name) for name in ("model", "score")}
    assert {name: step.action for name, step in after.steps().items()} == dict.fromkeys(CHAIN, "reuse")
    plan = after.plan()
    assert plan.ids("run") == []
    assert plan.work == [after.id("model"), after.id("score")]
    assert after.steps()["score"].reason == wording("made_of.made_same_inputs_byte", id=before.id("score")[:12])


def test_what_comes_out_otherwise_makes_everything_behind_it_run(before, after):
    after.make("tokens", payload="other tokens")
    assert after.reused_as() == {}
    assert after.plan().ids("run") == [after.id("model"), after.id("score")]


def test_other_params_are_never_the_same(before, store):
    other = Chain(store, "packed otherwise", layers=3)
    other.make("tokens", payload="tokens")
    assert other.reused_as() == {}


def test_a_raised_version_is_never_the_same_but_what_is_behind_it_may_be(before, store, monkeypatch):
    monkeypatch.setattr(Interpolate, "version", Interpolate.version + 1)
    raised = Chain(store, "as it was")
    assert raised.id("tokens") == before.id("tokens")
    assert raised.reused_as() == {}
    raised.make("model", payload="model")
    assert raised.reused_as() == {"score": before.id("score")}


@pytest.mark.parametrize("field", ["path", "sha256"])
def test_contents_are_the_names_and_digests_of_files_in_any_order(before, field):
    record = before.store.record("interpolate", before.id("model"))
    record["files"].append({**record["files"][0], "path": "another"})
    same = {**record, "files": record["files"][::-1], "provenance": {}}
    assert contents_of(record) == contents_of(same)
    changed = json.loads(json.dumps(record))
    changed["files"][0][field] = "c" * 64
    assert contents_of(record) != contents_of(changed)


def test_a_role_is_part_of_what_something_is_made_of():
    identity = {"kind": "evaluate", "version": 1, "params": {}, "inputs": {"a": "1", "b": "2"}}
    contents = {"1": "x", "2": "y"}
    assert key_of(identity, contents) != key_of({**identity, "inputs": {"a": "2", "b": "1"}}, contents)
    assert key_of(identity, contents) == key_of({**identity, "inputs": {"a": "3", "b": "2"}}, {"3": "x", "2": "y"})


def test_a_task_that_reads_no_artifact_takes_no_part(before):
    assert content_key(before.store, before.tasks["tokens"], before.kinds) is None
    assert sorted(path.name for path in (before.store.root / MADE_OF).iterdir()) == ["evaluate", "interpolate"]


def test_an_artifact_without_an_entry_as_older_versions_made_it_is_not_found(before, after):
    shutil.rmtree(before.store.root / MADE_OF)
    after.make("tokens", payload="tokens")
    assert after.plan().ids("run") == [after.id("model"), after.id("score")]


def test_the_twin_is_an_artifact_of_its_own(before, after):
    after.make("tokens", payload="tokens")
    assert after.twin("model", before)
    record = after.store.record("interpolate", after.id("model"))
    assert record["task"] == after.tasks["model"].identity()
    assert record["provenance"] == {"seconds": 7, "same_as": {"id": before.id("model")}}
    assert after.store.damage("interpolate", after.id("model"), checksums=True) is None
    assert after.payload("model").stat().st_ino == before.payload("model").stat().st_ino  # no byte is written twice
    before.store.discard("interpolate", before.id("model"))
    assert after.payload("model").read_text() == "model"
    assert after.store.damage("interpolate", after.id("model"), checksums=True) is None


def test_where_a_file_cannot_have_two_names_it_is_copied(before, after, monkeypatch):
    def refused(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    after.make("tokens", payload="tokens")
    assert after.twin("model", before)
    assert after.payload("model").stat().st_ino != before.payload("model").stat().st_ino
    assert after.store.damage("interpolate", after.id("model"), checksums=True) is None


@pytest.mark.parametrize("harm", ["gone", "no record", "no payload", "cut", "changed"])
def test_what_is_gone_or_damaged_is_never_served(before, after, harm):
    after.make("tokens", payload="tokens")
    folder, payload = before.store.path("interpolate", before.id("model")), before.payload("model")
    match harm:
        case "gone":
            before.store.discard("interpolate", before.id("model"))
        case "no record":
            (folder / RECORD).unlink()
        case "no payload":
            payload.unlink()
        case "cut":
            payload.write_text("mod")
        case "changed":  # as large as before: only its checksum tells
            payload.write_text("medol")
    through = harm == "changed"
    assert "model" not in after.reused_as(checksums=through)
    assert not after.twin("model", before, checksums=through)
    assert after.store.record("interpolate", after.id("model")) is None
    assert [path for path in (after.store.root / "interpolate").iterdir() if path.name.startswith(".")] == []


KILLED = """
import os, sys
from boomspec.store import FolderStore
store, (kind, task, key) = FolderStore(sys.argv[1]), sys.argv[2:5]
with store.workspace(kind, task) as workspace:
    (workspace.path / "payload").write_text("model")
    store.note_key(kind, key, task)
    os._exit(1)
"""


def test_a_writer_that_is_killed_behind_its_entry_leaves_nothing_that_is_served(store, before, after):
    before.store.discard("interpolate", before.id("model"))
    after.make("tokens", payload="tokens")
    key = content_key(store, after.tasks["model"], after.kinds)
    killed = [sys.executable, "-c", KILLED, str(store.root), "interpolate", before.id("model"), key]
    assert subprocess.run(killed, check=False).returncode == 1
    assert store.ids_by_key("interpolate", [key]) == {key: [before.id("model")]}
    assert after.reused_as() == {}
    before.make("model", payload="model")
    assert after.reused_as()["model"] == before.id("model")


def test_gc_deletes_the_entries_of_what_it_deletes_and_no_others(store, before, after):
    after.make("tokens", payload="tokens")
    assert after.twin("model", before)
    store.note_key("interpolate", content_key(store, after.tasks["model"], after.kinds), after.id("model"))
    from boomspec.store.runs import past_runs
    from tests.boomspec.past import past_run

    past_run(store, after.graph, made=False)
    items, _ = garbage(store, past_runs(store), forget=[], cache=False)
    for item in items:
        store.remove(item)
    left = sorted(path.name for path in (store.root / MADE_OF).glob("*/*/*"))
    assert left == [after.id("model")]
    assert after.payload("model").read_text() == "model"
    assert store.damage("interpolate", after.id("model"), checksums=True) is None
    again, _ = garbage(store, past_runs(store), forget=[], cache=False)
    assert again == []


def test_gc_leaves_the_entry_of_a_task_at_work(store, before):
    chain = Chain(store, "at work")
    with store.claimed("interpolate", chain.id("model")):
        store.note_key("interpolate", "a" * 64, chain.id("model"))
        items, _ = garbage(store, [], forget=[], cache=False)
        assert not [item for item in items if str(item.path).endswith("a" * 64)]
    items, _ = garbage(store, [], forget=[], cache=False)
    assert [item.reason for item in items if str(item.path).endswith("a" * 64)] == [wording("made_of.artifact_gone")]


def test_a_saved_plan_holds_until_what_it_reuses_goes(store, before, after, tmp_path):
    after.make("tokens", payload="tokens")
    SavedPlan(after.graph, after.plan(), store.address).save(tmp_path / "plan.json")
    saved = read_plan(tmp_path / "plan.json")
    assert saved.plan == after.plan()
    check_saved(saved, tmp_path / "plan.json")
    before.store.discard("interpolate", before.id("model"))
    with pytest.raises(Exception, match="model: planned was reuse"):
        check_saved(saved, tmp_path / "plan.json")


def test_a_source_that_is_gone_does_not_block_what_is_the_same(store, before, after):
    after.make("tokens", payload="tokens")
    (store.root.parent / "packed otherwise" / "text.txt").unlink()
    assert {name: step.action for name, step in after.steps().items()} == dict.fromkeys(CHAIN, "reuse")


def test_many_tasks_are_looked_up_in_one_listing_each(store):
    """The index is asked by key: however many artifacts there are, nothing is read of those that are not asked for."""
    for number in range(30):
        store.note_key("evaluate", f"{number:064}", "b" * 64)
    wanted = [f"{number:064}" for number in range(0, 60, 2)]
    assert set(store.ids_by_key("evaluate", wanted)) == {f"{number:064}" for number in range(0, 30, 2)}
    assert store.ids_by_key("distill", wanted) == {}
