"""Runs by their spec, their graph, their folder; and the sizes that a compiled graph knows."""

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.graph_file import read_graph
from boomspec.core.layers import Layer, read_layers
from boomspec.plan.run import open_run
from boomspec.store import Store
from tests.messages import wording


def test_a_graph_knows_every_size_of_its_family_whether_it_is_built_or_not(specs, tmp_path):
    compiled = specs.edited(("interpolate", {"sizes": ["4 layers"]}), ("baselines", None))
    built = [node.name for node in compiled.graph.nodes.values() if node.task.kind == "interpolate"]
    assert built == ["interpolate 4 layers"]
    lineage = compiled.graph.family
    assert [member.layers for member in lineage.members] == [3, 4, 5, 6]
    assert lineage.pick("5 layers").plan == read_layers("s0 t2 t3 t4 t5")
    assert (lineage.pick("student"), lineage.pick("teacher")) == (lineage.members[0], lineage.members[-1])
    compiled.graph.write(tmp_path / "graph.json")
    assert read_graph(tmp_path / "graph.json").family == lineage


def test_the_student_is_the_student_even_where_the_smallest_size_has_a_layer_of_the_teachers(specs):
    keep = {"every": 2, "first": 1, "last": 2}  # the last block is one layer
    compiled = specs.edited(("student.keep", keep), ("interpolate", {"singletons": "reference"}))
    lineage = compiled.graph.family
    assert lineage.pick("student").is_student
    assert lineage.members[0].plan[-1] == Layer("t", 5)
    assert lineage.pick(f"{len(lineage.kept)} layers") == lineage.members[0]


def test_a_run_is_found_by_its_spec_its_graph_or_its_folder(specs):
    spec = specs.text(specs.SPEC)
    by_spec = open_run(spec)
    folder = by_spec.store.run_folder("tiny", by_spec.graph.id)
    folder.mkdir(parents=True)
    by_spec.graph.write(folder / "graph.json")
    assert by_spec.store.root == specs.folder / "store"
    for run in (open_run(folder), open_run(folder / "graph.json", folder.parents[1])):
        assert (run.graph.id, run.store.root) == (by_spec.graph.id, by_spec.store.root)


def test_what_a_size_is_made_of_must_be_there_and_whole(specs):
    run = open_run(specs.text(specs.SPEC))
    with pytest.raises(BoomspecError, match=wording("runs.not_finished_pretrain_teacher")):
        run.member("4 layers")
    lineage = run.lineage()
    for task in (lineage.teacher, lineage.student):
        publish(run.store, run.graph.nodes[task].task)
    assert run.member("4 layers").layers == 4
    (run.store.path("distill", lineage.student) / "payload").write_text("shorter")
    with pytest.raises(BoomspecError, match=wording("runs.distill_student_damaged_payload")):
        run.member("4 layers")
    assert run.member("teacher").layers == 6  # it needs no student


def test_a_run_that_waits_for_a_search_has_no_sizes_yet(specs):
    spec = specs.text(specs.SPEC.replace("keep: [0, 2, 4]", "keep: {block_influence: 3}"))
    with pytest.raises(BoomspecError, match=wording("runs.layers_their_order_still")):
        open_run(spec).member("4 layers")


def publish(store: Store, task) -> None:
    with store.workspace(task.kind, task.id) as workspace:
        (workspace.path / "payload").write_text("the payload")
        store.publish(workspace, task.kind, task.id, task.identity(), {})


def test_a_run_may_be_named_by_its_folders_name_alone(specs, monkeypatch):
    monkeypatch.chdir(specs.folder)
    by_spec = open_run(specs.text(specs.SPEC))
    folder = by_spec.store.run_folder("tiny", by_spec.graph.id)
    folder.mkdir(parents=True)
    by_spec.graph.write(folder / "graph.json")
    found = open_run(folder.name, "store")
    assert (found.graph.id, found.store.root) == (by_spec.graph.id, by_spec.store.root)
    with pytest.raises(BoomspecError, match="no such file"):
        open_run(folder.name)  # in the default store there is no such run
