"""A size that cannot be built keeps nobody else from the comparison: real tasks, and the end of them on real Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runners import small

pytestmark = pytest.mark.usefixtures("no_figures")

OTHER = {"other": {"distill": {"optimizer": {"lr": 1e-3}}}}


def test_an_interpolation_that_fails_leaves_the_others_their_comparison(
    connected: None, finished: Path, tmp_path: Path
) -> None:
    spec, store = small.copied(finished, tmp_path, variants=OTHER)
    graph = small.compiled(spec, store).graph
    trained = {i: node for i, node in graph.nodes.items() if node.task.kind in ("tokenize", "pretrain", "distill")}
    students = tuple(i for i, node in trained.items() if node.task.kind == "distill")
    before = replace(graph, nodes=trained, targets=students, experiments=())
    small.execute(before, store)
    student = graph.experiments[1].tasks["distill student"]
    assert student in students
    # Of the right size, so that it is found when the model is read, and only then.
    damaged = small.weights(store, "distill", student)
    damaged.write_bytes(b"\xff" * damaged.stat().st_size)

    assert small.run(graph, store) == 1

    states = {name: small.status(graph, store)["tasks"][i]["state"] for name, i in graph.experiments[1].tasks.items()}
    assert states["interpolate 3 layers"] == "failed"
    assert states["evaluate interpolated 3 layers: held_out"] == "blocked"
    [page] = store.root.glob("runs/small-*/report/results.json")
    found = json.loads(page.read_text())
    assert {row["experiment"] for row in found["results"] if row["series"] == "interpolated"} == {"base"}
    assert {row["experiment"] for row in found["results"] if row["series"] == "teacher"} == {"base", "other"}
    missing = {(entry["experiment"], entry["series"]): entry["reason"] for entry in found["missing"]}
    assert missing.keys() == {("other", "interpolated"), ("other", "student")}
    assert "interpolate 3 layers" in missing["other", "interpolated"]
