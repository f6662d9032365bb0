"""A task that comes after another one without reading it: the order is kept everywhere, and no id knows of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from boomspec.commands.spec import mermaid
from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution
from boomspec.core.graph import Experiment, Node, Task, TaskGraph
from boomspec.core.graph_file import graph_of_json, read_graph
from boomspec.core.layers import read_layers
from boomspec.core.tasks import Evaluate as Measure
from boomspec.core.tasks import HeldOut, Interpolate, Tokenize
from boomspec.plan.plan import plan_tasks
from boomspec.plan.schedule import critical_path, elapsed, longest_first
from boomspec.store import FolderStore
from runners.executor.ready import Ready
from tests.messages import wording

FIRST = Node(Task(Tokenize(text_field="text", skip=0, held_out_every=0, held_out_offset=0), {}), "first", Execution())
BUILT = Node(Task(Interpolate(plan=read_layers("t0"), tied=False), {}), "built", after=(FIRST.id,))
MEASURED = Node(
    Task(Measure(measure=HeldOut(sequence_length=8), precision="fp32"), {"model": BUILT.id}), "measured", Execution()
)


def graph(*, ordered: bool = True) -> TaskGraph:
    built = BUILT if ordered else replace(BUILT, after=())
    nodes = {node.id: node for node in (FIRST, built, MEASURED)}
    experiment = Experiment("", {}, {node.name: node.id for node in nodes.values()}, {})
    return TaskGraph("after", nodes, {}, (MEASURED.id,), experiments=(experiment,))


def test_the_order_changes_no_id():
    assert graph().id == graph(ordered=False).id
    assert graph().nodes.keys() == graph(ordered=False).nodes.keys()


def test_the_graph_file_keeps_the_order(tmp_path):
    graph().write(tmp_path / "graph.json")
    assert read_graph(tmp_path / "graph.json").nodes[BUILT.id].after == (FIRST.id,)
    assert graph_of_json(graph(ordered=False).to_json(), tmp_path).nodes[BUILT.id].after == ()


def test_a_task_that_comes_after_what_is_not_there_is_refused(tmp_path):
    data = json.loads(graph().text())
    data["tasks"][BUILT.id]["after"] = [MEASURED.id]
    with pytest.raises(BoomspecError, match=wording("after.built_waits_does_not")):
        graph_of_json(data, tmp_path / "graph.json")


def test_what_comes_first_is_run_only_for_what_runs(tmp_path):
    store = FolderStore(tmp_path)
    steps = plan_tasks(graph(), store).steps
    assert [steps[node.id].action for node in (FIRST, BUILT, MEASURED)] == ["run", "run", "run"]
    assert plan_tasks(graph(ordered=False), store).steps[FIRST.id].action == "unneeded"
    with store.workspace("interpolate", BUILT.id) as workspace:
        store.publish(workspace, "interpolate", BUILT.id, BUILT.task.identity(), {})
    assert plan_tasks(graph(), store).steps[FIRST.id].action == "unneeded"


def test_ray_gets_a_task_when_what_comes_first_has_succeeded():
    ready = Ready(graph(), graph().nodes, machines=lambda: [{"CPU": 8.0}])
    assert [ready.take(), ready.take()] == [(FIRST.id,), ()]
    assert ready.ended(FIRST.id, made=True) == []
    assert ready.take() == (BUILT.id,)
    failed = Ready(graph(), graph().nodes, machines=lambda: [{"CPU": 8.0}])
    failed.take()
    assert failed.ended(FIRST.id, made=False) == [BUILT.id]
    assert not failed.take()


def test_times_and_orders_count_it():
    seconds = {FIRST.id: 5.0, BUILT.id: 2.0, MEASURED.id: 1.0}
    assert critical_path(graph(), seconds) == 8.0
    assert elapsed(graph(), seconds, cpus=8, gpus=0) == 8.0
    assert critical_path(graph(ordered=False), seconds) == 5.0
    assert longest_first(graph())[0] == FIRST.id


def test_a_drawn_graph_has_a_dotted_line():
    assert f"  {FIRST.id[:8]} -.-> {BUILT.id[:8]}" in mermaid(graph()).splitlines()
    assert f"  {BUILT.id[:8]} --> {MEASURED.id[:8]}" in mermaid(graph()).splitlines()
    assert "-.->" not in mermaid(graph(ordered=False))


def test_a_part_of_a_graph_waits_only_for_what_it_has():
    part = replace(graph(), experiments=(Experiment("a", {}, {"built": BUILT.id}, {}),)).only("a")
    assert part.nodes[BUILT.id].after == ()
