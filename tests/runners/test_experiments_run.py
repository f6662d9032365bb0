"""A spec with variants and seeds through the command line: what they share runs once, one page compares them."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from boomspec.core.graph_file import read_graph
from tests.runners.here import Done, boomspec
from tests.runners.test_end_to_end import SPEC, write

SET = """\
variants:
  no-cosine: {distill: {losses: {cross_entropy: {}, kl: {}}}}
sweep: {seed: [0, 1]}
"""
LABELS = ["base,seed=0", "base,seed=1", "no-cosine,seed=0", "no-cosine,seed=1"]


@pytest.fixture(scope="module")
def ran(connected, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    spec = write(folder, SPEC + SET)
    done = boomspec("run", spec, "--store", folder / "store", "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    return spec, folder / "store", done.stdout


def report(spec: str, store: Path) -> Done:
    return boomspec("report", spec, "--store", store, "--json")


def test_tasks_that_experiments_share_run_once(ran):
    _, store, output = ran
    graph = read_graph(next(store.glob("runs/*/graph.json")))
    assert [experiment.label for experiment in graph.experiments] == LABELS
    asked = sum(len(experiment.tasks) for experiment in graph.experiments)
    assert output.count(" done ") == len(graph.nodes) < asked
    kinds = Counter(node.task.kind for node in graph.nodes.values())
    assert {kind: kinds[kind] for kind in ("tokenize", "pretrain", "distill")} == {
        "tokenize": 1,
        "pretrain": 2,  # one for each seed
        "distill": 4,
    }


def test_one_page_compares_the_experiments(ran):
    _, store, output = ran
    page = Path(output.split("report: ")[-1].strip())
    text = page.read_text()
    assert "no-cosine" in text
    assert "2 seeds" in text
    assert "distill.losses.hidden_cosine.weight" in text
    assert text.count("<figure ") == 2
    assert {path.name for path in page.parent.glob("*.png")} == {"size-held_out.png", "difference-held_out.png"}
    artifact = next(store.glob("comparison/*/artifact.json")).parent
    for name in ("results.csv", "groups.csv", "differences.csv"):
        assert (artifact / name).read_bytes() == (page.parent / name).read_bytes()
    with (artifact / "results.csv").open(newline="") as file:
        assert {row["experiment"] for row in csv.DictReader(file)} == set(LABELS)


def test_the_page_of_one_experiment_needs_no_run_of_its_own(ran):
    spec, store, _ = ran
    runs = set(store.glob("runs/*"))
    done = report(f"{spec}#no-cosine,seed=1", store)
    assert done.returncode == 0, done.stderr
    results = Path(json.loads(done.stdout)["results"])
    assert results.parents[1] not in runs
    content = json.loads(results.read_text())
    assert content["missing"] == []
    with next(store.glob("comparison/*/results.csv")).open(newline="") as file:
        rows = [row["value"] for row in csv.DictReader(file) if row["experiment"] == "no-cosine,seed=1"]
    assert [str(row["value"]) for row in content["results"]] == rows


def test_a_set_that_has_not_run_has_no_report(ran, tmp_path):
    spec, _, _ = ran
    done = report(str(spec), tmp_path / "empty")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert "not run yet" in error["message"]
    assert error["hint"] == f"boomspec run {spec}"
