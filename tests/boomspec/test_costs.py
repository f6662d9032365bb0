"""Costs without torch: what is known when, devices, times, and what does not fit."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from boomspec.compile.cost import memory
from boomspec.compile.cost.shapes import UnknownCostError, model_of
from boomspec.core import machine
from boomspec.core.devices import DEVICES, device_seen_as
from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.format import shown_count, shown_flops, shown_seconds
from boomspec.core.graph import Cost, Node, Task, TaskGraph
from boomspec.core.tasks import Evaluate, HeldOut
from boomspec.core.tasks.evaluate import REQUESTS
from boomspec.core.tasks.record import AFTER_TOKENIZE
from boomspec.models.facts import total_parameters
from boomspec.plan.forecast import MachineSpec, forecast
from boomspec.plan.plan import plan_tasks
from boomspec.plan.rates import Rates, refined, save_calibration
from boomspec.plan.schedule import critical_path, elapsed
from boomspec.store import FolderStore, Store
from tests.boomspec.public_hub import FIXTURES, public_facts
from tests.boomspec.test_cli import call
from tests.messages import wording

CALIBRATED = {"training": 1e9, "measuring": 2e9, "startup": 3.0, "copying": 1e8, "matmul": 1e10}
DECODERS = sorted(path.name.replace("--", "/", 1) for path in FIXTURES.iterdir() if "bert" not in path.name)


BOTH = {"working": 6, "teacher_logits": 1}  # what cross-entropy and KL add to a chunk of the head


def by_name(compiled) -> dict[str, Cost]:
    return {node.name: node.cost for node in compiled.graph.nodes.values()}


@pytest.mark.parametrize("model", DECODERS)
def test_shapes_of_public_models_are_understood(model: str) -> None:
    facts = public_facts(model)
    found = model_of(facts)
    assert found.parameters == total_parameters(facts.tensors(range(facts.count), tied=facts.tied))
    matrices = [t.elements for layer in facts.layers for t in layer if len(t.shape) == 2]
    assert found.matrices == sum(matrices)
    assert found.projection == facts.token_embedding.elements


def test_a_layer_that_is_not_understood_has_no_cost_but_a_reason() -> None:
    facts = public_facts("Qwen/Qwen3-4B-Base")
    latent = replace(facts, config={**facts.config, "kv_lora_rank": 512})
    with pytest.raises(UnknownCostError, match="latent"):
        model_of(latent)
    wrong = replace(facts, config={**facts.config, "num_attention_heads": 7})
    with pytest.raises(UnknownCostError, match="queries, keys, values"):
        model_of(wrong)


def test_every_task_has_a_cost_and_what_waits_for_tokens_says_so(specs) -> None:
    costs = by_name(specs.compiled())
    assert None not in costs.values()
    assert costs["distill student"].tokens == costs["distill student"].real_tokens == 2048
    assert costs["evaluate teacher: held_out"].unknown == AFTER_TOKENIZE
    assert costs["interpolate 4 layers"].disk > costs["prune to 3 layers"].disk > 0
    assert costs["distill student"].scratch > costs["distill student"].disk


def test_held_out_text_of_limited_length_is_counted_at_most(specs) -> None:
    cost = by_name(specs.edited(("evaluate.held_out", {"max_tokens": 101})))["evaluate teacher: held_out"]
    assert (cost.tokens, cost.real_tokens, cost.unknown) == (100, 100, "")
    assert cost.flops == 100 * cost.flops_per_real_token


def test_what_a_store_knows_is_filled_in(specs, tmp_path: Path) -> None:
    compiled, store = specs.compiled(), FolderStore(tmp_path / "store")
    node = next(n for n in compiled.graph.nodes.values() if n.name == "evaluate teacher: held_out")
    assert refined(node.cost, node.task.record, node.task.inputs, store) == node.cost
    folder = store.path("tokenize", node.task.inputs["tokens"])
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"held_out": {"tokens": 501}}))
    found = refined(node.cost, node.task.record, node.task.inputs, store)
    assert found is not None
    assert (found.tokens, found.real_tokens, found.unknown) == (500, 500, "")
    assert found.flops == 500 * node.cost.flops_per_real_token


def test_gpus_settings_and_micro_batch_change_costs_but_no_id(specs) -> None:
    small = specs.edited(("execution.distill", {"micro_batch": 1}))
    large = specs.edited(("execution.distill", {"micro_batch": 8}))
    assert small.graph.id == large.graph.id
    assert by_name(small)["distill student"].peak < by_name(large)["distill student"].peak


def test_copies_on_several_workers_have_room_for_all_gradients_all_the_time() -> None:
    model = model_of(public_facts("Qwen/Qwen3-4B-Base"))
    one = memory.TrainingStep(tokens=8 * 2048, micro_batches=1, bf16=True, on_gpu=True, **BOTH)
    held = memory.training(model, replace(one, ddp=True))
    assert "gradients" not in memory.training(model, one)  # at its largest moment, in the head
    assert held["gradients"] == 4 * model.parameters
    assert memory.training(model, replace(one, ddp=True, micro_batches=8)) == held


def test_a_share_that_computes_again_casts_the_weights_of_one_layer_or_of_the_head_at_a_time() -> None:
    model = model_of(public_facts("Qwen/Qwen3-4B-Base"))
    cut = memory.TrainingStep(tokens=2 * 2048, micro_batches=8, bf16=True, on_gpu=True, **BOTH, shards=4)
    kept, again = (memory.training(model, replace(cut, checkpointing=c))["cache"] for c in (False, True))
    assert kept == 2 * (model.matrices + model.projection)
    assert again in (2 * model.layers[0].matrices, 2 * model.projection)
    assert again < kept / 8


# --- devices ----------------------------------------------------------------------------------------


def test_devices_are_known_by_what_their_drivers_call_them() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100 80GB PCIe": "a100-80",
        "NVIDIA GeForce RTX 3090": "rtx3090",
        "AMD Instinct MI300X": "mi300x",
        "Tesla T4": "t4",
    }
    found = {name: device_seen_as(name) for name in names}
    assert {name: device and device.name for name, device in found.items()} == names
    assert device_seen_as("NVIDIA GeForce GTX 1080") is None


def test_a_device_computes_bf16_no_faster_than_it_can() -> None:
    assert DEVICES["t4"].peak(bf16=True) == DEVICES["t4"].fp32 * 10**12
    assert DEVICES["h100"].peak(bf16=False) < DEVICES["h100"].peak(bf16=False, tf32=True)
    assert DEVICES["v100"].peak(bf16=False, tf32=True) == DEVICES["v100"].fp32 * 10**12


def test_an_unknown_device_lists_the_known_ones(specs) -> None:
    path = specs.text(specs.SPEC.replace("execution:", "execution:\n  device: H100"))
    result = call("validate", path)
    assert result.exit_code == 2
    assert wording("costs.no_device_known", name="H100") in result.output
    assert "did you mean 'h100'?" in result.output
    assert "a100-80" in result.output
    assert (
        wording("costs.no_device_known", name="k80") in call("plan", specs.text(specs.SPEC), "--device", "k80").output
    )


# --- times ------------------------------------------------------------------------------------------


def node(name: str, cost: Cost | None, *, inputs: tuple[Node, ...] = (), **execution) -> Node:
    record = Evaluate(measure=HeldOut(sequence_length=8 + sum(map(ord, name))), precision="bf16")
    return Node(Task(record, {n.name: n.id for n in inputs}), name, Execution(**execution), cost)


def graph_of(*nodes: Node) -> TaskGraph:
    return TaskGraph("g", {n.id: n for n in nodes}, {}, tuple(n.id for n in nodes))


def test_a_time_comes_from_the_calibration_and_follows_the_cores(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    one, two = node("a", Cost(flops=10**10)), node("b", Cost(flops=10**10), cpus=2)
    assert Rates(store).duration(one, one.cost, None) is None
    save_calibration(store, CALIBRATED)
    rates = Rates(store)
    assert [rates.duration(n, n.cost, None).seconds for n in (one, two)] == [8.0, 5.5]
    assert rates.duration(one, one.cost, None).source == "calibration"


def test_a_calibration_of_another_machine_does_not_count(tmp_path: Path) -> None:
    store, task = FolderStore(tmp_path), node("a", Cost(flops=10**10))
    save_calibration(store, CALIBRATED)
    file = tmp_path / "cache" / "calibration.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "host": "elsewhere"}))
    assert Rates(store).duration(task, task.cost, None) is None
    file.write_text("{")
    assert Rates(store).duration(task, task.cost, None) is None


def finished(store: Store, task: Node, seconds: float, *, cpu: str, gpus: tuple[str, ...] = ()) -> None:
    """A record of a finished task."""
    made = {
        "seconds": seconds,
        "execution": {"cpus": task.execution.cpus, "gpus": task.execution.gpus, "options": {}},
        "hardware": {"cpu": cpu, "gpus": list(gpus)},
        "cost": asdict(task.cost),
    }
    with store.workspace("evaluate", task.id) as workspace:
        store.publish(workspace, "evaluate", task.id, task.task.identity(), made)


def test_what_was_measured_here_comes_before_the_calibration(tmp_path: Path) -> None:
    store, task = FolderStore(tmp_path), node("new", Cost(flops=4 * 10**9))
    save_calibration(store, CALIBRATED)
    finished(store, node("old", Cost(flops=10**9)), 5.0, cpu=machine.cpu_model())
    finished(store, node("elsewhere", Cost(flops=10**9)), 500.0, cpu="another processor")
    found = Rates(store).duration(task, task.cost, None)
    assert found is not None
    # Of its 5 seconds the calibrated rate explains half a one, and the rest is a start: 2e9 operations a second.
    assert (found.seconds, found.source) == (4.5 + 4 * 0.5, "measured")


@pytest.mark.parametrize("seconds", [0.0, -3600.0])
def test_a_time_that_cannot_be_says_nothing(tmp_path: Path, seconds: float) -> None:
    """As where the clock was set back while the task ran."""
    store, task = FolderStore(tmp_path), node("new", Cost(flops=10**12))
    finished(store, node("odd", Cost(flops=10**9)), seconds, cpu=machine.cpu_model())
    assert Rates(store).duration(task, task.cost, None) is None


def test_small_tasks_say_how_long_a_start_is_and_large_ones_how_fast_it_goes(tmp_path: Path) -> None:
    """Without a calibration: a thousand times the work of a toy is not a thousand times its 5 seconds."""
    store, task = FolderStore(tmp_path), node("new", Cost(flops=10**12))
    finished(store, node("toy", Cost(flops=10**9)), 5.0, cpu=machine.cpu_model())
    found = Rates(store).duration(task, task.cost, None)
    assert found is not None
    assert (found.seconds, found.source) == (pytest.approx(5.0 + 10**12 / 2e10, rel=0.01), "usual")
    finished(store, node("real", Cost(flops=10**13), cpus=2), 1000.0, cpu=machine.cpu_model())
    found = Rates(store).duration(task, task.cost, None)
    assert found is not None
    assert (found.seconds, found.source) == (pytest.approx(5 + 200, rel=0.02), "measured")
    shared = node("on two cores", Cost(flops=10**12), cpus=2)
    assert Rates(store).duration(shared, shared.cost, None).seconds == pytest.approx(5 + 100, rel=0.02)


def test_what_was_measured_on_a_gpu_counts_for_that_kind_of_gpu(tmp_path: Path) -> None:
    store, task = FolderStore(tmp_path), node("new", Cost(flops=10**12), gpus=1)
    finished(store, node("old", Cost(flops=10**12), gpus=1), 7.0, cpu="x", gpus=("NVIDIA H100 80GB HBM3",))
    rates = Rates(store)
    assert rates.duration(task, task.cost, DEVICES["h100"]).source == "measured"
    assert rates.duration(task, task.cost, DEVICES["h100"]).seconds == pytest.approx(7.0)
    by_table = rates.duration(task, task.cost, DEVICES["l40s"])
    assert by_table.source == "table"
    assert by_table.seconds == pytest.approx(10**12 / (0.25 * 362.05e12))
    assert rates.duration(task, task.cost, None) is None


def test_records_that_say_too_little_are_passed_over(tmp_path: Path) -> None:
    store, task = FolderStore(tmp_path), node("a", Cost(flops=10**9))
    for name, text in {"one": "{", "two": "{}", "three": '{"task": 1, "provenance": 2}'}.items():
        (tmp_path / "evaluate" / name).mkdir(parents=True)
        (tmp_path / "evaluate" / name / "artifact.json").write_text(text)
    assert Rates(store).duration(task, task.cost, None) is None


def test_a_schedule_fills_what_there_is() -> None:
    first = node("first", None)
    others = [node(str(i), None, inputs=(first,)) for i in range(4)]
    graph = graph_of(first, *others)
    seconds = dict.fromkeys(graph.nodes, 10.0)
    assert critical_path(graph, seconds) == 20.0
    assert elapsed(graph, seconds, cpus=4, gpus=0) == 20.0
    assert elapsed(graph, seconds, cpus=2, gpus=0) == 30.0
    assert elapsed(graph, {first.id: 10.0}, cpus=1, gpus=0) == 10.0
    assert elapsed(graph, {}, cpus=1, gpus=0) == 0.0


def test_a_gpu_is_shared_by_tasks_that_ask_for_a_part_of_it() -> None:
    halves = graph_of(*(node(str(i), None, cpus=0.1, gpus=0.5) for i in range(4)))
    assert elapsed(halves, dict.fromkeys(halves.nodes, 10.0), cpus=8, gpus=1) == 20.0
    teams = graph_of(*(node(str(i), None, gpus=1, training=TrainingOptions(workers=2)) for i in range(2)))
    assert elapsed(teams, dict.fromkeys(teams.nodes, 10.0), cpus=8, gpus=2) == 20.0
    assert elapsed(teams, dict.fromkeys(teams.nodes, 10.0), cpus=8, gpus=4) == 10.0


# --- a forecast ---------------------------------------------------------------------------------------


def warnings(store: Store, *nodes: Node, device: str | None = None) -> tuple[str, ...]:
    graph = graph_of(*nodes)
    on = MachineSpec(2, 1, DEVICES[device] if device else None)
    return forecast(graph, plan_tasks(graph, store), store, on).warnings


def test_a_worker_that_does_not_fit_is_a_warning(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    large = Cost(flops=1, memory={"weights": 50 * 10**9})
    assert warnings(store, node("a", large, gpus=1), device="h100") == ()
    (warning,) = warnings(store, node("a", large, gpus=0.5), device="h100")
    assert warning == wording("costs.needs_gib_memory_gib")
    found = warnings(store, node("a", large, gpus=1))
    assert [text.split(", ")[1].split(" has")[0] for text in found] == ["l40s", "rtx4090"]
    whole = Cost(memory={"weights": machine.memory_bytes() + 1})
    (warning,) = warnings(store, node("a", whole), node("b", whole))
    assert wording("costs.memory_machine") in warning
    assert wording("costs.nor_does_one_more") in warning


def test_artifacts_that_do_not_fit_onto_the_disk_are_a_warning(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "not" / "made" / "yet")
    free = machine.free_bytes(store.root)
    (warning,) = warnings(store, node("a", Cost(disk=free)), node("b", Cost(disk=1, scratch=2**30)))
    assert wording("costs.artifacts_checkpoints_take") in warning
    assert not (tmp_path / "not").exists()


def test_totals_are_of_what_runs_and_count_what_is_not_known(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    nodes = [
        node("done", Cost(flops=100, disk=100, tokens=10, real_tokens=10)),
        node("padded", Cost(flops=10, disk=1, tokens=8, real_tokens=6)),
        node("open", Cost(flops=1, unknown=REQUESTS)),
        node("none", None),
    ]
    finished(store, nodes[0], 1.0, cpu="x")
    graph = graph_of(*nodes)
    found = forecast(graph, plan_tasks(graph, store), store, MachineSpec(1, 1))
    total = found.totals
    assert (total.run, total.flops, total.disk, total.incomplete) == (3, 11, 1, 2)
    assert (total.tokens, total.real_tokens) == (8, 6)
    assert found.reasons == {REQUESTS: "open"}
    assert found.clock.without_a_time == 3


def test_numbers_are_written_short() -> None:
    assert [shown_flops(x) for x in (12, 5.358e12, 999.9e9, 3e21)] == ["12", "5.36T", "1T", "3Z"]
    assert [shown_count(x) for x in (950, 12_000, 2.1e9)] == ["950", "12k", "2.1B"]
    assert [shown_seconds(x) for x in (0.2, 40, 700, 12_000, 440_000)] == [
        "< 1 s",
        "40 s",
        "12 min",
        "3.3 h",
        "5.1 days",
    ]
