"""`boomspec gc`: what no run needs can go, what any run could need stays, and nothing goes without being told to."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.plan.plan import plan_tasks
from boomspec.store import RECORD, FolderStore, Store
from boomspec.store.gc import garbage
from boomspec.store.runs import past_runs
from tests.boomspec.past import age, past_run, publish
from tests.boomspec.troubled_disk import failing
from tests.messages import wording

DEAD_WRITER = """
import os, sys
from boomspec.store import FolderStore
with FolderStore(sys.argv[1]).workspace(sys.argv[2], sys.argv[3]) as workspace:
    (workspace.path / "half").write_bytes(b"x" * 100)
    os._exit(1)
"""


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "store")


@pytest.fixture
def graph(specs, store):
    """The graph of a finished run."""
    graph = specs.compiled().graph
    past_run(store, graph)
    return graph


def call(*arguments: object):
    return CliRunner(env={"COLUMNS": "150"}).invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def gc(store: Store, *arguments: object) -> dict:
    result = call("gc", "--store", store.root, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def found(store: Store, *arguments: object) -> list[tuple[str, str]]:
    return [(item["what"], item["path"]) for item in gc(store, *arguments)["items"]]


def everything(store: Store) -> set[Path]:
    return {path for path in store.root.rglob("*") if path.name != ".in-use"}


def is_whole(store: Store, graph) -> bool:
    return set(plan_tasks(graph, store, checksums=True).ids("reuse")) == set(graph.nodes)


def checkpoints(store: Store, kind: str, task: str) -> Path:
    folder = store.resume(kind, task)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 1000)
    return folder


def test_a_store_of_finished_runs_has_nothing_to_spare(store, graph):
    assert found(store) == []
    assert "nothing can go" in call("gc", "--store", store.root).output


def test_what_can_go_is_shown_by_kind_and_nothing_is_deleted_unless_asked_for(specs, store, graph):
    other = specs.edited(("seed", 5)).graph
    gone = [node for node in other.nodes.values() if node.id not in graph.nodes]
    places = {str(publish(store, node.task)) for node in gone}
    before = everything(store)
    assert {path for _, path in found(store)} == places
    printed = call("gc", "--store", store.root).output
    assert wording("gc.artifact_distill_no_run") in printed
    assert wording("gc.nothing_deleted_delete_does") in printed
    assert everything(store) == before
    answer = gc(store, "--delete")
    assert answer["deleted"]
    assert answer["bytes"] == sum(item["bytes"] for item in answer["items"]) > 0
    assert {path for path in before if not any(str(path).startswith(place) for place in places)} == everything(store)
    assert is_whole(store, graph)


def test_runs_are_forgotten_by_name_with_what_only_they_need(specs, store, graph):
    other = specs.edited(("name", "other"), ("evaluate.precision", "fp32")).graph
    folder = past_run(store, other)
    assert found(store) == []
    gc(store, "--forget", "other", "--delete")
    assert not folder.exists()
    assert is_whole(store, graph)
    alone = [node for node in other.nodes.values() if node.id not in graph.nodes]
    assert alone
    assert not any(store.path(node.task.kind, node.id).exists() for node in alone)


def test_old_runs_are_forgotten_and_the_newest_of_each_name_are_kept(specs, store):
    days = {0: 1, 1: 10, 2: 40, 3: 50}
    for seed, ago in days.items():
        age(past_run(store, specs.edited(("seed", seed)).graph, made=False), ago * 86400)
    age(past_run(store, specs.edited(("name", "other"), ("seed", 4)).graph, made=False), 100 * 86400)

    def forgotten(*arguments: object) -> list[int]:
        seeds = {
            run.folder: json.loads((run.folder / "graph.json").read_text())["experiments"][0]["meaning"]["seed"]
            for run in past_runs(store)
        }
        return sorted(seeds[Path(path)] for what, path in found(store, *arguments) if what == "run")

    assert forgotten() == []
    assert forgotten("--older-than", "30d") == [2, 3, 4]
    assert forgotten("--keep-last", "1") == [1, 2, 3]
    assert forgotten("--older-than", "30d", "--keep-last", "1") == [2, 3]
    assert forgotten("--older-than", "2w", "--keep-last", "3") == [3]


def test_checkpoints_stay_where_a_run_may_continue_from_them(specs, store):
    graph = specs.compiled().graph
    past_run(store, graph, state=None, made=False)
    teacher, student = (node for node in graph.nodes.values() if node.name in ("pretrain teacher", "distill student"))
    stays = checkpoints(store, "distill", student.id)
    finished = checkpoints(store, "pretrain", teacher.id)
    with store.workspace("pretrain", teacher.id) as workspace:
        (workspace.path / "model").write_text("weights")
        moved = finished.rename(finished.with_name("aside"))
        store.publish(workspace, "pretrain", teacher.id, teacher.task.identity(), {})
    moved.rename(finished)
    of_no_run = checkpoints(store, "distill", "ab" * 32)
    assert found(store) == [("checkpoints", str(of_no_run)), ("checkpoints", str(finished))]
    gc(store, "--delete")
    assert (stays / "weights").exists()
    assert not finished.exists()
    assert not of_no_run.exists()


def test_what_killed_processes_left_can_go_and_what_living_ones_work_in_stays(store, graph):
    task = "cd" * 32
    subprocess.run([sys.executable, "-c", DEAD_WRITER, store.root, "distill", task], check=False)
    dead = list((store.root / "distill").glob(f".{task}.*"))
    assert len(dead) == 2  # a folder and its lock
    grave = store.root / "distill" / f".{'ef' * 32}.discarded-1"
    grave.mkdir()
    half_deleted_run = store.root / "runs" / ".tiny-00000000.discarded-7"
    half_deleted_run.mkdir()
    with store.workspace("distill", "12" * 32) as alive:
        expected = {("leftover", str(path)) for path in (*dead, grave, half_deleted_run)}
        assert set(found(store)) == expected
        gc(store, "--delete")
        assert alive.path.is_dir()
    assert found(store) == []
    assert is_whole(store, graph)


def test_a_broken_artifact_can_go_even_if_a_run_needs_it(store, graph):
    node = next(node for node in graph.nodes.values() if node.task.kind == "distill")
    (store.path("distill", node.id) / "payload").write_text("shorter")
    (item,) = gc(store, "--delete")["items"]
    assert (item["what"], item["reason"]) == ("broken artifact", wording("gc.payload_bytes_record_says"))
    assert plan_tasks(graph, store).steps[node.id].reason.startswith(wording("gc.not_store"))


def test_the_cache_goes_only_when_it_is_named(store, graph):
    (store.root / "cache" / "huggingface").mkdir(parents=True)
    (store.root / "cache" / "huggingface" / "blob").write_bytes(b"b" * 500)
    assert found(store) == []
    (item,) = gc(store, "--cache", "--delete")["items"]
    assert (item["what"], item["bytes"]) == ("cache", 500)
    assert not (store.root / "cache").exists()


@pytest.mark.parametrize("text", ['{"boomspec_graph": 99, "tasks": {}}', '{"boomspec_', None])
def test_beside_a_run_that_cannot_be_read_no_artifact_and_no_checkpoint_is_called_unneeded(specs, store, graph, text):
    unreadable = past_run(store, specs.edited(("name", "other"), ("seed", 5)).graph, made=False)
    (unreadable / "graph.json").unlink() if text is None else (unreadable / "graph.json").write_text(text)
    others = specs.edited(("seed", 7)).graph
    for node in others.nodes.values():
        publish(store, node.task)
    checkpoints(store, "distill", "ab" * 32)
    broken = store.path("distill", "cd" * 32)
    broken.mkdir()
    (broken / RECORD).write_text('{"record": ')
    age(unreadable, 400 * 86400)
    before = everything(store)
    answer = gc(store, "--delete", "--older-than", "30d", "--keep-last", "0")
    assert [item for item in answer["items"] if item["what"] != "run"] == []
    assert unreadable.name in answer["unjudged"]
    assert {path for path in before if "runs" not in path.parts} <= everything(store)
    assert unreadable.is_dir()
    printed = call("gc", "--store", store.root).output
    assert f"run {unreadable.name}: " in printed
    assert wording("gc.every_artifact_kept") in printed
    gc(store, "--forget", unreadable.name, "--delete")  # it is given up by name
    assert not store.path("distill", "ab" * 32).exists()


def test_what_boomspec_did_not_make_is_left_alone(store, graph):
    newer = store.path("distill", "ab" * 32)
    newer.mkdir(parents=True)
    (newer / RECORD).write_text('{"record": 99}')
    strange = [store.root / "distill" / "notes.txt", store.root / "distill" / ".hidden", store.root / "new_kind" / "x"]
    strange[2].parent.mkdir()
    for path in strange:
        path.write_text("mine")
    gc(store, "--delete", "--cache", "--keep-last", "0")
    assert all(path.exists() for path in [newer, *strange])


@pytest.mark.parametrize("reason", [errno.ESTALE, errno.EACCES, errno.EIO])
def test_what_cannot_be_read_may_be_whole_and_stays_and_the_rest_goes(specs, store, graph, monkeypatch, reason):
    teacher, student = (node for node in graph.nodes.values() if node.name in ("pretrain teacher", "distill student"))
    of_no_run = [node for node in specs.edited(("seed", 5)).graph.nodes.values() if node.id not in graph.nodes]
    unreadable, *others = [publish(store, node.task) for node in of_no_run]
    kept = checkpoints(store, "pretrain", teacher.id)
    failing(monkeypatch, store.path("pretrain", teacher.id) / RECORD, reason)
    failing(monkeypatch, store.path("distill", student.id) / "payload", reason)
    failing(monkeypatch, unreadable / RECORD, reason)
    assert {path for _, path in found(store)} == {str(path) for path in others}
    gc(store, "--delete")
    assert not any(path.exists() for path in others)
    assert unreadable.is_dir()
    assert kept.is_dir()
    monkeypatch.undo()
    assert is_whole(store, graph)


def test_a_link_is_removed_and_not_what_it_leads_to(store, graph, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep me")
    link = store.path("distill", "ab" * 32)
    link.symlink_to(precious, target_is_directory=True)
    gc(store, "--delete")
    assert not link.is_symlink()
    assert (precious / "file").read_text() == "keep me"


def test_a_deletion_that_is_killed_leaves_nothing_that_can_be_read_and_the_next_one_ends_it(store, graph, monkeypatch):
    node = next(node for node in graph.nodes.values() if node.task.kind == "distill")
    forget = past_runs(store)
    items, _ = garbage(store, forget, forget=forget, cache=False)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    for item in items:
        with pytest.raises(KeyboardInterrupt):
            store.remove(item)
    monkeypatch.undo()
    assert past_runs(store) == []
    assert not store.path("distill", node.id).exists()
    assert {what for what, _ in found(store, "--delete")} == {"leftover"}
    assert [path for path in everything(store) if path.is_file()] == []


def test_a_store_in_use_is_not_touched_and_the_run_is_named(store, graph):
    folder = store.run_folder(graph.name, graph.id)
    publish(store, next(iter(graph.nodes.values())).task)
    before = everything(store)
    with store.using(run=folder):
        result = call("gc", "--store", store.root, "--delete", "--forget", folder.name)
        assert result.exit_code == 2
        assert wording("gc.use_run_nothing_changed", name=folder.name) in result.output
        assert call("gc", "--store", store.root).exit_code == 0  # looking is always possible
        assert wording("gc.running_not_forgotten") in call("gc", "--store", store.root, "--forget", folder.name).output
        assert found(store, "--keep-last", "0") == []
    assert everything(store) - {folder / ".running"} == before


def test_a_folder_that_cannot_be_written_is_an_error_and_not_a_traceback(store, graph, monkeypatch):
    node = next(node for node in graph.nodes.values() if node.task.kind == "distill")

    def refused(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(store.root))

    monkeypatch.setattr(os, "open", refused)
    result = call("gc", "--store", store.root, "--delete", "--keep-last", "0")
    assert result.exit_code == 2
    assert "Permission denied" in result.output
    assert store.path("distill", node.id).is_dir()


def test_where_runs_cannot_be_listed_nothing_is_called_unneeded(store, graph):
    runs = store.root / "runs"
    runs.rename(store.root / "elsewhere")
    runs.write_text("")
    before = everything(store)
    result = call("gc", "--store", store.root, "--delete")
    assert result.exit_code == 2
    assert f"{runs}: Not a directory" in result.output
    assert everything(store) == before


def test_a_run_whose_folder_is_on_a_disk_that_is_not_here_keeps_every_artifact(store, graph):
    (folder,) = (store.root / "runs").iterdir()
    folder.rename(store.root / "elsewhere")
    folder.symlink_to("/nowhere/at/all")
    answer = gc(store, "--delete")
    assert answer["items"] == []
    assert list(answer["unjudged"]) == [folder.name]


@pytest.mark.parametrize("value", ["30", "d", "3x", "-1d", ""])
def test_an_age_that_is_none_is_an_error(store, graph, value):
    result = call("gc", "--store", store.root, "--older-than", value)
    assert result.exit_code == 2
    assert "such as 12h, 30d or 4w" in result.output
