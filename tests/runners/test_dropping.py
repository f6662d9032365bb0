"""Runs of layers are measured, dropped and mended, and students are patched into each other, on real tiny models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from boomspec.core.layers import read_layers
from boomspec.core.tasks import RunDistances
from boomspec.store import FolderStore
from runners.modeling.hidden_states import EMBEDDING, capture, trunk
from runners.search.run_distances import search_run_distances
from tests.runners import small, tiny
from tests.runners.test_schemes_run import made as run_tiny

BASELINES = [{"contiguous_drop": {"tokens": 2048}}, "linear_patch", "cross_patching"]


@pytest.mark.parametrize("positions", ["all", "last"])
def test_each_run_is_what_a_plain_loop_in_float64_gives(positions: Any) -> None:
    model = tiny.model("llama", layers=5, seed=2)
    numbers = np.random.default_rng(0)
    batches = [torch.from_numpy(numbers.integers(0, 64, (rows, 9))) for rows in (3, 2)]
    found = search_run_distances(RunDistances(positions=positions), teacher=model, batches=batches)
    states: list[list[Tensor]] = [[] for _ in range(6)]
    for tokens_BT in batches:
        with torch.no_grad(), capture(model, [EMBEDDING, *range(5)]) as caught:
            trunk(model, tokens_BT)
        for i, point in enumerate((EMBEDDING, *range(5))):
            taken = caught[point] if positions == "all" else caught[point][:, -1:]
            states[i] += list(taken.flatten(0, 1).double())
    for length in range(1, 5):
        for start in range(5 - length + 1):
            pairs = zip(states[start], states[start + length], strict=True)
            cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
            angle = sum(math.acos(max(-1.0, min(1.0, cosine))) / math.pi for cosine in cosines) / len(cosines)
            assert found["angular_distance"][length - 1][start] == pytest.approx(angle, abs=1e-5)
            influence = 1 - sum(cosines) / len(cosines)
            assert found["block_influence"][length - 1][start] == pytest.approx(influence, abs=1e-5)
    assert [len(of_length) for of_length in found["angular_distance"]] == [5, 4, 3, 2]


@pytest.fixture(scope="module")
def made(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FolderStore]:
    """The graph and the store of a spec with these baselines; without Ray, one task after the other."""
    folder = tmp_path_factory.mktemp("dropping")
    spec, store = small.copied(finished, folder, baselines=BASELINES)
    small.execute(small.compiled(spec, store).graph, store)
    graph = small.compiled(spec, store).graph
    small.execute(graph, store)
    return graph, store


def folder_of(made: tuple[Any, FolderStore], name: str) -> Path:
    graph, store = made
    node = next(node for node in graph.nodes.values() if node.name == name)
    return store.path(node.task.kind, node.id)


def loss(made: tuple[Any, FolderStore], model: str) -> float:
    lines = (folder_of(made, f"evaluate {model}: held_out") / "results.json").read_text()
    return float(json.loads(lines)["results"]["held_out"]["loss,none"])


def weights(made: tuple[Any, FolderStore], name: str) -> dict[str, Tensor]:
    return load_file(folder_of(made, name) / "model" / "model.safetensors")


def test_what_is_dropped_is_distilled_on_logits(made: tuple[Any, FolderStore]) -> None:
    for size in ("2 layers", "3 layers"):
        assert loss(made, f"contiguous_distilled {size}") < loss(made, f"contiguous_drop {size}")
    rows = (folder_of(made, "distill contiguous_drop 3 layers") / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(rows[0]), json.loads(rows[-1])
    assert last["kl"] < first["kl"] == first["loss"]


def test_one_matrix_in_front_of_the_gap_is_changed_and_brings_the_stream_nearer(made: tuple[Any, FolderStore]) -> None:
    for size in ("2 layers", "3 layers"):
        graph, store = made
        [node] = [node for node in graph.nodes.values() if node.name == f"patch to {size} linear_patch"]
        without = store.path("baseline", node.task.inputs["student"]) / "model" / "model.safetensors"
        dropped, patched = load_file(without), weights(made, node.name)
        assert dropped.keys() == patched.keys()
        changed = [name for name, value in patched.items() if not torch.equal(value, dropped[name])]
        [row] = json.loads((folder_of(made, f"fit seams: linear_patch {size}") / "seam.json").read_text())["places"]
        assert changed == [f"model.layers.{row['place']}.mlp.down_proj.weight"]
        assert row["after"] < row["before"]


def test_students_are_put_together_layer_by_layer(made: tuple[Any, FolderStore]) -> None:
    own, other = weights(made, "distill student"), weights(made, "distill cross_patching")
    mixed = weights(made, "patch another student as 3 layers")
    [plan] = [n.task.record.plan for n in made[0].nodes.values() if n.name == "patch another student as 3 layers"]
    assert plan == read_layers("s0 t1")
    for place, source in enumerate((own, other)):
        for name, value in source.items():
            if name.startswith(f"model.layers.{place}."):
                assert torch.equal(mixed[name], value)
    assert not torch.equal(own["model.layers.1.mlp.down_proj.weight"], other["model.layers.1.mlp.down_proj.weight"])
    assert math.isfinite(loss(made, "cross_patching 3 layers"))


def test_every_series_is_on_the_report(made: tuple[Any, FolderStore]) -> None:
    results = (folder_of(made, "report") / "results.csv").read_text()
    for series in ("contiguous_drop", "contiguous_distilled", "linear_patch", "cross_patching"):
        assert series in results


def test_the_shipped_spec_of_baselines_runs(connected: None, no_figures: None, tmp_path: Path) -> None:
    found = run_tiny(connected, tmp_path, "quickstart-baselines")
    series = {"contiguous_drop", "contiguous_distilled", "linear_patch", "cross_patching", "naive_pruning"}
    assert {row["series"] for row in found["results"]} >= series
