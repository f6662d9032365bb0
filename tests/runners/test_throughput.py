"""Tokens a second and MFU: counted from real tokens, shown while a training runs, kept beside its artifact."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from boomspec.core.tasks import Determinism
from runners.report.page import publish_run
from runners.runtime import environment, peak
from runners.runtime.peak import Peak, device_peak
from runners.training import throughput
from runners.training.throughput import Throughput
from tests.runners import small
from tests.runners.test_costs import LENGTH, VOCABULARY, WIDE, cost, made, student

GPU = Peak("a GPU", 1e6, "table")


class Clock:
    """Stands for the module `time`; it goes on when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def trained(clock: Clock, steps: list[tuple[float, int, int]], **about: Any) -> Throughput:
    """A training of these steps: seconds, real tokens, positions."""
    found = Throughput(about.pop("peak", GPU), **about)
    for seconds, real, positions in steps:
        clock.now += seconds
        found.step_done(real, positions)
    return found


def test_the_first_step_does_not_count_and_padding_does_not_either(clock: Clock) -> None:
    found = trained(clock, [(50.0, 30, 40), (2.0, 30, 40), (3.0, 20, 40)], flops_per_token=1000, workers=2)
    assert found.shown() == {"real tokens/s": 10.0, "MFU": "0.5%"}
    summary = found.summary()
    assert (summary["steps"], summary["tokens"], summary["seconds"]) == (2, 50, 5.0)
    assert summary["tokens_per_second"] == 10.0
    assert summary["mfu"] == pytest.approx(10 * 1000 / (2 * 1e6))
    assert (summary["device"], summary["workers"], summary["peak_flops"]) == ("a GPU", 2, 1e6)


def test_a_training_of_one_step_counts_from_its_begin_and_one_of_none_says_nothing(clock: Clock) -> None:
    one = trained(clock, [(4.0, 40, 40)], flops_per_token=1000)
    assert one.shown() == {}
    assert one.summary()["tokens_per_second"] == 10.0
    assert trained(clock, []).summary() == {}


def test_what_is_shown_is_of_the_last_half_minute(clock: Clock) -> None:
    found = trained(clock, [(1.0, 10, 10)] * 50 + [(1.0, 20, 20)] * 31, flops_per_token=1000)
    assert found.shown() == {"MFU": "2.0%"}  # without padding the view counts the tokens a second itself
    assert found.summary()["tokens"] == 49 * 10 + 31 * 20


@pytest.mark.parametrize("about", [{"flops_per_token": 0}, {"peak": Peak("?", None, "unknown"), "flops_per_token": 9}])
def test_without_a_peak_or_a_cost_there_are_tokens_a_second_alone(clock: Clock, about: dict[str, Any]) -> None:
    found = trained(clock, [(1.0, 10, 10)] * 3, **about)
    assert found.shown() == {}
    assert (found.summary()["tokens_per_second"], found.summary()["mfu"]) == (10.0, None)


def test_the_peak_of_a_cpu_is_the_best_of_what_its_first_trainings_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.CACHE, str(tmp_path))
    measured = [5.0, 9.0, 7.0]
    monkeypatch.setattr(peak, "_matrix_products", lambda dtype: measured.pop(0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def in_a_new_process() -> float | None:
        peak._of_thread.cache_clear()
        return device_peak("fp32").flops

    assert [in_a_new_process() for _ in range(4)] == [10.0, 18.0, 18.0, 18.0]
    (tmp_path / "peaks.json").write_text("{")
    with pytest.raises(IndexError):  # a broken file is measured anew
        in_a_new_process()
    assert device_peak("bf16", measure=False).flops is None


def test_a_matrix_product_is_measured_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_SECONDS", 0.01)
    monkeypatch.setattr(peak, "_WIDTHS", (64, 128))
    assert 1e6 < peak._matrix_products(torch.float32) < 1e15
    widths = list[int]()
    monkeypatch.setattr(torch.nn.functional, "linear", lambda matrix, _: (widths.append(len(matrix)), time.sleep(0.02)))
    peak._matrix_products(torch.bfloat16)
    assert set(widths) == {64}  # twice as wide would take too long


def test_the_peak_of_a_gpu_is_that_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["NVIDIA H100 80GB HBM3"] * 3 + ["NVIDIA GeForce GT 710"])
    monkeypatch.setattr(peak, "device", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: next(names))
    tf32 = Determinism(algorithms="deterministic", tf32=True)
    found = [device_peak("bf16").flops, device_peak("fp32").flops, device_peak("fp32", tf32).flops]
    assert found == pytest.approx([989.4e12, 66.9e12, 494.7e12])
    assert device_peak("bf16") == Peak("NVIDIA GeForce GT 710", None, "unknown")


def test_a_run_says_how_fast_its_trainings_were_and_no_artifact_does(
    finished: Path, tmp_path: Path, no_figures: None
) -> None:
    spec, store = small.copied(finished, tmp_path)
    graph = small.compiled(spec, store).graph
    nodes = [node for node in graph.nodes.values() if node.task.record.trains]
    assert [node.task.kind for node in nodes] == ["pretrain", "distill"]
    for node in nodes:
        record = json.loads(small.record_of(store, node.task.kind, node.id).read_text())
        training, recipe = record["provenance"]["training"], node.task.record.recipe
        assert training["steps"] == recipe.steps - 1
        assert training["tokens"] == recipe.tokens * (recipe.steps - 1) / recipe.steps
        assert training["flops_per_token"] == node.cost.model_flops_per_token > 0
        assert training["mfu"] == pytest.approx(
            training["tokens_per_second"] * training["flops_per_token"] / training["peak_flops"]
        )
        rows = (store.path(node.task.kind, node.id) / "metrics.jsonl").read_text().splitlines()
        (progress,) = finished.glob(f"runs/*/progress/{node.id}.jsonl")
        lines = [line for line in map(json.loads, progress.read_text().splitlines()) if "done" in line]
        assert lines[-1]["MFU"].endswith("%")  # beside the loss terms, while it trains
        assert not {"mfu", "seconds", "tokens_per_second"} & json.loads(rows[0]).keys()
    page = publish_run(graph, store, tmp_path / "run", {})
    assert all(text in page.read_text() for text in ("MFU", "TFLOP/s (measured)"))
    listed = json.loads(page.with_name("results.json").read_text())["trainings"]
    assert [line["task"] for line in listed] == [node.name for node in nodes]
    rows = list(csv.DictReader(page.with_name("trainings.csv").read_text().splitlines()))
    assert [float(row["mfu"]) for row in rows] == [line["mfu"] for line in listed]
    (report,) = (node for node in graph.nodes.values() if node.task.kind == "report")
    assert not (store.path("report", report.id) / "trainings.csv").exists()


@pytest.mark.parametrize("frozen", [False, True])
def test_what_the_models_need_is_six_operations_a_weight_of_the_student_and_two_of_the_teacher(
    tmp_path: Path, frozen: bool
) -> None:
    folder = made(tmp_path, "llama", **WIDE, tie_word_embeddings=True)
    found = cost(folder, student(train_embedding=not frozen), micro_batch=4, activation_checkpointing=True)
    weights = 64 * (64 + 32 + 32 + 64 + 3 * 160)  # of a layer's matrices: queries, keys, values, output, MLP
    attention, head = 4 * LENGTH * 64, 2 * 64 * VOCABULARY
    of_student = 3 * 3 * (2 * weights + attention) + (2 if frozen else 3) * head
    assert found.model_flops_per_token == of_student + 4 * (2 * weights + attention) + head
    assert found.model_flops_per_token * found.tokens < found.flops


def test_the_benchmark_of_gpus_runs_in_small_on_a_cpu_and_says_where_there_is_no_gpu() -> None:
    def said(*arguments: str) -> str:
        variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        program = [sys.executable, "-m", "tests.benchmarks.gpu", *arguments]
        return subprocess.run(program, env=variables, capture_output=True, text=True, check=True).stdout

    lines = said("--device", "cpu", "--tiny", "--no-compile").splitlines()
    assert next(line for line in lines if line.startswith("  plain")).split()[2:4] == ["tokens/s", "MFU"]
    assert len([line for line in lines if line.startswith("  chunk")]) == 2
    assert len(said().splitlines()) == 1
