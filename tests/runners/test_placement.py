"""Where tasks run, and in which order: claims of CPUs, GPUs, memory and custom resources, on declared machines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution
from boomspec.core.graph import Cost, Node, Task, TaskGraph
from boomspec.core.graph_file import read_graph
from boomspec.core.tasks import Evaluate, HeldOut
from boomspec.plan.schedule import longest_first
from boomspec.spec.sections.execution import ExecutionSpec
from boomspec.store import FolderStore, Store
from runners.cluster.ray_cluster import check_feasible
from runners.executor.ready import Ready
from runners.runtime import environment
from tests.messages import wording
from tests.runners import small
from tests.runners.corpora import record, write_texts

pytestmark = pytest.mark.usefixtures("no_figures")

EXECUTION = {
    "tokenize": {"resources": {"fast_disk": 1}},
    "distill": {"gpus": 1, "memory": "100MB"},
    "evaluate": {"gpus": 0.5},
}


@pytest.fixture(scope="module")
def declared(
    connected: None, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], int, Store]:
    """Events of a run whose tasks claim what is declared only, and the bytes that the object store took in for it."""
    to_make = ("tokenize", "distill", "interpolate", "evaluate student", "evaluate interpolated", "report")
    spec, store = small.copied(finished, tmp_path_factory.mktemp("declared"), without=to_make, execution=EXECUTION)
    graph, before = small.compiled(spec, store).graph, object_bytes()
    assert small.run(graph, store) == 0
    return small.events(graph, store), object_bytes() - before, store


def object_bytes() -> int:
    """What the cluster's object store has taken in so far."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    stored: int = get_memory_info_reply(state).store_stats.cumulative_created_bytes
    return stored


def spans(events: list[dict[str, Any]], start: str) -> list[tuple[float, float]]:
    """From when to when tasks ran whose name starts so."""
    begun = {e["task"]: e["time"] for e in events if e["event"] == "task_started" and e["name"].startswith(start)}
    ended = {e["task"]: (e["time"], e["seconds"]) for e in events if e["event"] == "task_finished"}
    return [(ended[i][0] - ended[i][1], ended[i][0]) for i in begun]


def test_two_evaluations_of_half_a_gpu_share_the_one_that_there_is(declared) -> None:
    evaluations = spans(declared[0], "evaluate")
    assert len(evaluations) == 2
    beside = [sum(a < end and start < b for a, b in evaluations) for start, end in evaluations]
    assert max(beside) >= 2  # itself counts


def test_every_task_with_a_gpu_has_a_process_of_its_own_so_that_its_memory_is_freed(declared) -> None:
    started = [e for e in declared[0] if e["event"] == "task_started"]
    on_gpu = [e["pid"] for e in started if e["name"].startswith(("evaluate", "distill"))]
    assert len(set(on_gpu)) == len(on_gpu) == 3


def test_no_task_with_a_gpu_has_a_process_that_worked_without(declared) -> None:
    """Which has hidden the GPUs from itself; nor the other way round, where it would hold their memory."""
    started = [(e["name"], e["pid"]) for e in declared[0] if e["event"] == "task_started"]
    on_gpu = {pid for name, pid in started if name.startswith(("evaluate", "distill"))}
    without = {pid for name, pid in started if not name.startswith(("evaluate", "distill"))}
    assert len(without) < len(started) - len(on_gpu)  # these are used again
    assert not on_gpu & without
    assert environment.process_for(0.5) == {"runtime_env": {"env_vars": {environment.GPU_PROCESS: "1"}}}
    assert environment.process_for(0) == {}


def test_no_model_goes_through_the_object_store(declared) -> None:
    """Jobs and outcomes alone: small values that travel with their messages."""
    weights = sum(file.stat().st_size for file in declared[2].root.rglob("model.safetensors"))
    assert weights > 50_000
    assert declared[1] < 10_000


def graph_of(*nodes: Node) -> TaskGraph:
    return TaskGraph("order", {node.id: node for node in nodes}, {}, tuple(node.id for node in nodes))


def node(name: str, flops: int | None, *needs: Node, **execution: Any) -> Node:
    measure = HeldOut(sequence_length=8 + sum(map(ord, name)))
    task = Task(Evaluate(measure=measure, precision="fp32"), {need.name: need.id for need in needs})
    return Node(task, name, Execution(**execution), None if flops is None else Cost(flops=flops))


def names(graph: TaskGraph, ids: list[str]) -> list[str]:
    return [graph.nodes[i].name for i in ids]


def test_the_longest_remaining_path_goes_first_and_what_is_not_known_counts_as_the_largest_of_its_kind() -> None:
    head = node("head", 1)
    graph = graph_of(node("small", 5), head, node("large", 50), node("tail", 100, head), node("unknown", None))
    assert names(graph, longest_first(graph)) == ["head", "tail", "unknown", "large", "small"]


def test_where_no_costs_are_known_a_training_goes_before_a_measurement(tmp_path: Path) -> None:
    graph = small.compiled(small.write_spec(tmp_path), FolderStore(tmp_path / "store")).graph
    bare = replace(graph, nodes={i: replace(n, cost=None) for i, n in graph.nodes.items()})
    order = names(bare, longest_first(bare))
    assert order.index("distill student") < order.index("evaluate teacher: held_out")


def taken(ready: Ready, graph: TaskGraph) -> list[str]:
    found = []
    while part := ready.take():
        found += names(graph, [*part])
    return found


def test_ray_is_given_what_fills_the_machines_and_the_rest_when_there_is_room() -> None:
    first = node("first", 10)
    nodes = [node("a", 3), first, node("b", 2), node("c", 1), node("behind", 100, first)]
    graph = graph_of(*nodes)
    ready = Ready(graph, graph.nodes, machines=lambda: [{"CPU": 1.0}, {"CPU": 1.0}])
    assert taken(ready, graph) == ["first", "a", "b"]  # two run, one waits for the next free place
    assert ready.ended(first.id, made=True) == []
    assert taken(ready, graph) == ["behind"]  # before c, which was ready long ago


def test_tasks_that_claim_other_things_do_not_wait_for_each_other() -> None:
    graph = graph_of(*(node(f"gpu {i}", 100, cpus=0, gpus=1) for i in range(3)), node("cpu", 1))
    ready = Ready(graph, graph.nodes, machines=lambda: [{"CPU": 1.0, "GPU": 1.0}])
    assert taken(ready, graph) == ["gpu 0", "gpu 1", "cpu"]


def test_what_waits_with_ray_is_not_overtaken_by_what_claims_something_else() -> None:
    nodes = [node("large", 9), node("next", 8), node("waits", 7), node("other", 6, cpus=0.5)]
    graph = graph_of(*nodes)
    ready = Ready(graph, graph.nodes, machines=lambda: [{"CPU": 2.0}])
    assert taken(ready, graph) == ["large", "next", "waits"]
    ready.ended(nodes[0].id, made=True)
    assert taken(ready, graph) == []
    ready.ended(nodes[1].id, made=True)
    assert taken(ready, graph) == ["other"]


def test_what_needs_a_task_that_failed_never_starts() -> None:
    first = node("first", 1)
    graph = graph_of(first, second := node("second", 1, first))
    ready = Ready(graph, graph.nodes, machines=lambda: [{"CPU": 1.0}])
    assert taken(ready, graph) == ["first"]
    assert ready.ended(first.id, made=False) == [second.id]
    assert not ready.take()


def test_where_another_run_has_made_a_task_the_next_ones_are_looked_at_together_and_come_back_if_they_are_missing() -> (
    None
):
    nodes = [node(f"{i}", 10 - i) for i in range(6)]
    graph = graph_of(*nodes)
    ready = Ready(graph, graph.nodes, machines=lambda: [{"CPU": 1.0}])
    (first,) = ready.take()
    assert ready.likely_made((first,)) == []
    ready.ended(first, made=True, found=True)
    (second,) = ready.take()
    others = ready.likely_made((second,))
    assert names(graph, [second, *(i for (i,) in others)]) == ["1", "2", "3", "4", "5"]
    ready.ended(second, made=True, found=True)
    ready.missing([i for (i,) in others])
    assert taken(ready, graph) == ["2", "3"]  # as ever: what runs, and one more
    assert ready.likely_made((others[0][0],)) == []
    ready.ended(others[0][0], made=True)
    assert taken(ready, graph) == ["4"]


def test_a_cluster_that_has_nothing_now_is_given_one_task_at_a_time() -> None:
    graph = graph_of(node("a", 2), node("b", 1))
    ready = Ready(graph, graph.nodes, machines=list)
    assert taken(ready, graph) == ["a"]


def test_a_run_starts_the_largest_tasks_first(tmp_path: Path, connected: None) -> None:
    """One at a time: each claims both CPUs. (Of two that it has and that claim different things, Ray takes either.)"""
    text = write_texts(tmp_path / "texts")
    sizes = [3, 50, 2, 9, 70, 4]
    nodes = [
        Node(Task(record(skip=i), {"text": text.id}), f"{flops}", Execution(cpus=2), Cost(flops=flops))
        for i, flops in enumerate(sizes)
    ]
    graph = replace(graph_of(*nodes), sources={text.id: text})
    store = FolderStore(tmp_path / "store")
    assert small.run(graph, store) == 0
    started = [int(e["name"]) for e in small.events(graph, store) if e["event"] == "task_started"]
    assert started == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("execution", "wanted", "there"),
    [
        (Execution(memory=8 << 30), "1 CPUs and 0 GPUs, 8.0 GiB of memory", "4 CPUs and 1 GPUs, 4.0 GiB of memory"),
        (Execution(resources={"tape": 2}), "1 CPUs and 0 GPUs, 2 tape", "4 CPUs and 1 GPUs, 1 tape"),
    ],
)
def test_memory_and_custom_resources_that_no_machine_has_are_named(execution, wanted: str, there: str) -> None:
    machines = [{"CPU": 4.0, "GPU": 1.0, "memory": 4.0 * (1 << 30), "tape": 1.0}]
    greedy = Node(Task(record(), {}), "greedy", execution)
    with pytest.raises(BoomspecError) as caught:
        check_feasible([greedy, Node(Task(record(skip=1), {}), "modest", Execution(memory=1 << 30))], machines)
    assert f"greedy asks for {wanted}" in str(caught.value)
    assert there in str(caught.value)
    assert "modest" not in str(caught.value)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"GPU": 1}, wording("placement.field_own", name="GPU")),
        ({"tape": 0}, wording("placement.must_least")),
        ({"tape": 1.5}, "only whole numbers"),
        ({" ": 1}, wording("placement.not_custom_resource_name")),
    ],
)
def test_custom_resources_that_ray_would_not_take_are_refused(resources: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExecutionSpec.model_validate({"evaluate": {"resources": resources}})


def test_searches_and_baselines_have_sections_of_their_own_and_a_baseline_without_one_has_that_of_sizes() -> None:
    spec = ExecutionSpec.model_validate({"interpolate": {"cpus": 3, "memory": "1GiB"}, "search": {"gpus": 1}})
    assert (spec.of("baseline").cpus, spec.of("baseline").memory, spec.of("search").gpus) == (3, 1 << 30, 1)
    own = ExecutionSpec.model_validate({"interpolate": {"cpus": 3}, "baseline": {"gpus": 1}})
    assert (own.of("baseline").cpus, own.of("baseline").gpus, own.of("report").cpus) == (1, 1, 1)


def test_claims_are_in_the_graph_file_and_in_no_identity(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    plain = small.compiled(small.write_spec(tmp_path), store).graph
    graph = small.compiled(small.write_spec(tmp_path, execution=EXECUTION), store).graph
    assert graph.nodes.keys() == plain.nodes.keys()
    graph.write(tmp_path / "graph.json")
    read = read_graph(tmp_path / "graph.json")
    found = {n.task.kind: n.execution.claims for n in read.nodes.values()}
    assert found["tokenize"] == {"CPU": 1, "fast_disk": 1}
    assert found["distill"] == {"CPU": 1, "GPU": 1, "memory": 100_000_000}
    assert read.tracking == {"tensorboard": True}
