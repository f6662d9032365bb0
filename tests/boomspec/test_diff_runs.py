"""Two runs compared: which results moved by more than noise, and in what environment they were made."""

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from boomspec.compile.compiler import Compiled, compile_experiments
from boomspec.core.graph import Node
from boomspec.spec.experiments import load_experiments
from boomspec.store import FolderStore
from runners.runtime.statistics import weighted_mean, weighted_stderr
from tests.boomspec.conftest import Writer
from tests.boomspec.test_cli import call
from tests.messages import wording

PROVENANCE = {
    "python": "3.11.7",
    "commit": "0123",
    "packages": {"torch": "2.6.0", "numpy": "2.0.0"},
    "host": "one",
    "hardware": {"cpu": "Xeon", "cpus": 2, "memory_bytes": 2**30, "gpus": []},
}


class Measurements:
    """Writes evaluations into a store as the runners do: per-window losses, and what follows from them."""

    def __init__(self, compiled: Compiled, root: Path) -> None:
        self.compiled, self.store = compiled, FolderStore(root)
        folder = self.store.run_folder(compiled.graph.name, compiled.graph.id)
        folder.mkdir(parents=True)
        compiled.graph.write(folder / "graph.json")
        self.folder = folder

    def node(self, model: str, experiment: str = "") -> Node:
        graph = self.compiled.graph
        (found,) = [one for one in graph.experiments if one.label == experiment]
        return graph.nodes[found.tasks[f"evaluate {model}: held_out"]]

    def write(
        self,
        model: str,
        losses: list[float],
        *,
        weights: list[float] | None = None,
        provenance: dict[str, Any] | None = None,
        experiment: str = "",
    ) -> None:
        values, counts = np.array(losses), np.array(weights or [10.0] * len(losses))
        loss, stderr = weighted_mean(values, counts), weighted_stderr(values, counts)
        node = self.node(model, experiment)
        with self.store.workspace("evaluate", node.id) as workspace:
            table = [
                ("loss", loss, stderr),
                ("perplexity", math.exp(loss), (stderr or 0) * math.exp(loss)),
            ]
            with (workspace.path / "table.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["measure", "metric", "filter", "value", "stderr", "higher_is_better"])
                rows.writerows(
                    ("held_out", name, "none", value, "" if stderr is None else error, False)
                    for name, value, error in table
                )
            with (workspace.path / "items.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["measure", "metric", "filter", "item", "weight", "value"])
                rows.writerows(
                    ("held_out", "loss", "none", i, w, v) for i, (w, v) in enumerate(zip(counts, losses, strict=True))
                )
            task = node.task
            self.store.publish(workspace, "evaluate", node.id, task.identity(), provenance or PROVENANCE)


@pytest.fixture
def before(specs: Writer) -> Measurements:
    return Measurements(specs.compiled(), specs.folder / "one")


@pytest.fixture
def after(specs: Writer) -> Measurements:
    """The same experiment with another weight: other models, the same text."""
    return Measurements(specs.edited(("distill.losses.kl.weight", 0.2)), specs.folder / "two")


def compared(old: Measurements, new: Measurements) -> dict[str, Any]:
    return json.loads(call("diff", old.folder, new.folder, "--json").output)


def numbers(old: Measurements, new: Measurements) -> dict[tuple[str, str], dict[str, Any]]:
    return {(n["model"], n["metric"]): n for n in compared(old, new)["results"]["numbers"]}


def wide(seed: int = 0, shift: float = 0.0, noise: float = 0.001) -> list[float]:
    """Losses of windows that differ far more from each other than two models do."""
    spread, own = random.Random(7), random.Random(seed)
    return [3 + spread.gauss(0, 0.5) + shift + own.gauss(0, noise) for _ in range(50)]


def test_the_same_items_are_compared_one_by_one(before: Measurements, after: Measurements) -> None:
    weights = [5.0 + i % 3 for i in range(50)]
    old, new = wide(), wide(seed=1, shift=-0.01)
    before.write("student", old, weights=weights)
    after.write("student", new, weights=weights)
    found = numbers(before, after)["student", "loss"]
    apart = np.array(new) - np.array(old)
    assert (found["paired"], found["moved"], found["better"]) == (True, True, True)
    assert found["difference"] == pytest.approx(weighted_mean(apart, np.array(weights)))
    assert found["stderr"] == pytest.approx(weighted_stderr(apart, np.array(weights)))
    assert found["stderr"] < found["old_stderr"] / 100  # what pairing is for


def test_a_difference_below_two_standard_errors_is_noise(before: Measurements, after: Measurements) -> None:
    before.write("student", wide())
    after.write("student", wide(seed=1, noise=0.2))
    found = compared(before, after)["results"]
    assert (found["compared"], found["moved"], found["threshold"]) == (1, 0, 2.0)
    assert numbers(before, after)["student", "loss"]["moved"] is False


def test_what_follows_from_a_paired_number_has_no_verdict_of_its_own(before: Measurements, after: Measurements) -> None:
    before.write("student", wide())
    after.write("student", wide(seed=1, shift=-0.1))
    found = numbers(before, after)["student", "perplexity"]
    assert (found["moved"], found["paired"], found["stderr"]) == (None, False, None)
    assert found["difference"] < 0


def test_other_items_are_compared_as_independent_numbers(specs: Writer, before: Measurements) -> None:
    other = Measurements(specs.edited(("data.held_out.every", 3)), specs.folder / "two")
    before.write("student", wide())
    other.write("student", wide(seed=1, shift=-0.01))
    found = numbers(before, other)
    loss = found["student", "loss"]
    assert (loss["paired"], loss["moved"]) == (False, False)  # the same shift, which is within this noise
    assert loss["stderr"] == pytest.approx(math.hypot(loss["old_stderr"], loss["new_stderr"]))
    assert found["student", "perplexity"]["moved"] is False


def test_items_that_do_not_agree_with_their_number_are_not_used(before: Measurements, after: Measurements) -> None:
    before.write("student", wide())
    after.write("student", wide(seed=1))
    table = after.store.path("evaluate", after.node("student").id) / "table.csv"
    lines = table.read_text().splitlines()
    lines[1] = "held_out,loss,none,2.5,0.01,False"
    table.write_text("\n".join(lines) + "\n")
    found = numbers(before, after)["student", "loss"]
    assert (found["paired"], found["moved"]) == (False, True)


def test_a_number_without_a_standard_error_has_no_verdict(before: Measurements, after: Measurements) -> None:
    before.write("student", [3.0])
    after.write("student", [2.0])
    assert numbers(before, after)["student", "loss"]["moved"] is None
    assert wording("diff_runs.no_results_compare") in call("diff", before.folder, after.folder).output


def test_one_measurement_in_one_store_is_not_compared_with_itself(before: Measurements, specs: Writer) -> None:
    before.write("teacher", wide())
    again = Measurements(specs.edited(("distill.losses.kl.weight", 0.2)), specs.folder / "one")
    found = compared(before, again)["results"]
    assert (found["shared"], found["compared"], found["numbers"]) == (1, 0, [])


def test_the_same_experiment_in_two_environments_says_so(before: Measurements, specs: Writer) -> None:
    again = Measurements(specs.compiled(), specs.folder / "two")
    before.write("student", wide())
    again.write(
        "student",
        wide(),
        provenance={
            **PROVENANCE,
            "host": "two",
            "packages": {"torch": "2.7.0", "numpy": "2.0.0"},
            "hardware": {**PROVENANCE["hardware"], "gpus": ["NVIDIA H100"]},
        },
    )
    found = compared(before, again)
    assert found["environment"] == [
        {"name": "host", "old": ["one"], "new": ["two"]},
        {"name": "torch", "old": ["2.6.0"], "new": ["2.7.0"]},
        {"name": "gpus", "old": ["none"], "new": ["NVIDIA H100"]},
    ]
    assert (found["differs"], found["results"]["moved"]) == (False, 0)
    assert call("diff", before.folder, again.folder).exit_code == 0


def test_results_that_moved_although_the_experiments_are_the_same_exit_with_1(
    before: Measurements, specs: Writer
) -> None:
    again = Measurements(specs.compiled(), specs.folder / "two")
    before.write("student", wide())
    again.write("student", wide(shift=0.05))
    result = call("diff", before.folder, again.folder)
    assert result.exit_code == 1
    assert wording("diff.they_mean_same") in result.output
    assert wording("diff_runs.number_moved_more_than") in result.output
    assert "worse" in result.output


def test_what_moved_is_printed_first_and_comparisons_are_counted(
    before: Measurements, after: Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for model, shift in (("student", 0.0), ("interpolated 4 layers", -0.1), ("naive_pruning 3 layers", 0.1)):
        before.write(model, wide())
        after.write(model, wide(seed=1, shift=shift, noise=0.1 if not shift else 0.001))
    before.write("teacher", wide())
    printed = call("diff", before.folder, after.folder).output
    assert wording("diff_runs.numbers_moved_more_than") in printed
    rows = [" ".join(line.split()) for line in printed.splitlines() if "held_out loss" in line]
    assert [row.rsplit(" ", 1)[1] for row in rows] == ["better", "worse", "noise"]
    assert " ± " in rows[0]
    assert f"1 result of {before.folder} alone" in " ".join(printed.split())
    markdown = call("diff", before.folder, after.folder, "--markdown").output
    assert wording("diff_runs.interpolated_layers_held_out") in markdown


def test_a_compiled_graph_has_no_results(before: Measurements, after: Measurements) -> None:
    found = json.loads(call("diff", before.folder / "graph.json", after.folder, "--json").output)
    assert (found["results"], found["environment"]) == (None, None)


def test_fields_of_two_runs_are_told_apart_while_the_files_of_their_spec_are_there(
    before: Measurements, specs: Writer
) -> None:
    edits = ("distill.losses.kl.weight", 0.2), ("evaluate.precision", "fp32"), ("seed", 3)
    other = Measurements(specs.edited(*edits), specs.folder / "two")

    def student() -> dict[str, Any]:
        (pair,) = compared(before, other)["experiments"]
        return next(task for task in pair["tasks"] if task["name"] == "distill student")

    assert (student()["some_of"], set(student()["fields"])) == (False, {"distill.losses.kl.weight", "seed"})
    for path in specs.folder.glob("*.txt"):
        path.unlink()
    assert student()["some_of"]
    assert set(student()["fields"]) >= {"distill.losses.kl.weight", "seed"}
    assert "some of: " in call("diff", before.folder, other.folder).output


def test_two_variants_are_compared_over_all_their_seeds(specs: Writer) -> None:
    data = yaml.safe_load(specs.SPEC)
    data |= {"sweep": {"seed": [0, 1, 2]}, "variants": {"no-kl": {"distill": {"losses": {"kl": None}}}}}
    data["execution"] = {**data.get("execution", {}), "store": "store"}
    path = specs.text(yaml.safe_dump(data))
    found = Measurements(compile_experiments(load_experiments(path)), specs.folder / "store")
    for seed, shift in enumerate([0.30, 0.20, 0.25]):
        found.write("student", wide(seed), experiment=f"base,seed={seed}")
        found.write("student", wide(seed, shift=shift), experiment=f"no-kl,seed={seed}")
    result = call("diff", f"{path}#base", f"{path}#no-kl", "--json")
    assert result.exit_code == 1, result.output
    data = json.loads(result.output)
    assert [(pair["old"], pair["new"]) for pair in data["experiments"]] == [
        (f"base,seed={seed}", f"no-kl,seed={seed}") for seed in range(3)
    ]
    (mean,) = [mean for mean in data["results"]["means"] if mean["metric"] == "loss"]
    assert mean["pairs"] == 3
    assert mean["difference"] == pytest.approx(0.25, abs=0.01)
    assert mean["stderr"] == pytest.approx(0.05 / 3**0.5, abs=0.01)
    assert (mean["moved"], mean["better"]) == (True, False)
    printed = call("diff", f"{path}#base", f"{path}#no-kl").output
    assert "Mean differences over 3 pairs" in printed


def test_what_experiments_share_is_one_measurement_and_no_mean(specs: Writer) -> None:
    data = yaml.safe_load(specs.SPEC)
    data |= {
        "sweep": {"distill.losses.kl.weight": [0.1, 0.2, 0.3]},
        "variants": {"exact": {"evaluate": {"precision": "fp32"}}},
    }
    data["execution"] = {**data.get("execution", {}), "store": "store"}
    path = specs.text(yaml.safe_dump(data))
    found = Measurements(compile_experiments(load_experiments(path)), specs.folder / "store")
    labels = [one.label for one in found.compiled.graph.experiments]
    for name, shift in ("base", 0.0), ("exact", 1e-6):
        label = next(label for label in labels if label.startswith(name))
        found.write("teacher", wide(shift=shift), experiment=label)
    results = json.loads(call("diff", f"{path}#base", f"{path}#exact", "--json").output)["results"]
    assert len([number for number in results["numbers"] if number["metric"] == "loss"]) == 3
    assert results["means"] == []
