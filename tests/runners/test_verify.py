"""A finished run made again and compared: what is the same, what differs and by how much, what cannot be compared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.graph import Node, Task, TaskGraph
from boomspec.core.identity import file_digest
from boomspec.core.tasks import Check, Outline
from boomspec.plan.plan import plan_tasks
from boomspec.store import FolderStore, Store
from runners.cli import verify
from runners.verify.choose import as_it_was_made, choose
from runners.verify.compare import changes, tolerance_of
from tests.messages import wording
from tests.runners import small
from tests.runners.corpora import wait_until


@dataclass(frozen=True)
class Finished:
    """A run that has ended: its folder, spec, graph and store."""

    folder: Path
    spec: Path
    graph: TaskGraph

    @property
    def store(self) -> Store:
        return FolderStore(self.folder / "store")

    def task(self, name: str) -> tuple[str, str]:
        """Kind and id."""
        node = next(node for node in self.graph.nodes.values() if node.name == name)
        return node.task.kind, node.id

    def copy(self, folder: Path) -> Finished:
        """The same run in a store that may be changed."""
        shutil.copytree(self.store.root, folder / "store")
        return Finished(folder, self.spec, self.graph)

    def rewrite(self, name: str, file: str, change: Callable[[Path], None]) -> None:
        """Change a file of an artifact and its record, so that the artifact looks whole."""
        kind, task_id = self.task(name)
        path, record_file = self.store.path(kind, task_id) / file, small.record_of(self.store, kind, task_id)
        change(path)
        record = json.loads(record_file.read_text())
        entry = next(entry for entry in record["files"] if entry["path"] == file)
        entry |= {"sha256": file_digest(path), "bytes": path.stat().st_size}
        record_file.write_text(json.dumps(record))
        assert self.store.damage(kind, task_id, checksums=True) is None

    def verify(self, *options: str) -> int:
        file = self.folder / "graph.json"
        self.graph.write(file)
        return verify.main([str(file), "--store", str(self.store.root), *options])


@pytest.fixture(scope="module")
def ended(connected: None, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    # One layer between student and teacher, and a tolerance that a change of 1e-6 is within.
    spec, store = small.copied(finished, folder, determinism={"tolerance": 1e-5}, execution={"cpus": 1})
    graph = small.compiled(spec, store).graph
    assert plan_tasks(graph, store).work == []
    with store.using():  # as the run did
        pass
    return Finished(folder, spec, graph)


def everything(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.name != "graph.json"}


def scratches(folder: Path) -> list[Path]:
    return list(folder.glob("*store-verify*")) + list(folder.glob(".store-verify*"))


def test_a_run_made_again_is_the_same_bit_for_bit_and_its_store_is_not_touched(
    ended: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(ended.folder)
    # What the graph says of threads and micro batches now does not matter: they change bits.
    other = {
        i: replace(node, execution=Execution(training=TrainingOptions(micro_batch=3)))
        for i, node in ended.graph.nodes.items()
    }
    assert replace(ended, graph=replace(ended.graph, nodes=other)).verify() == 0
    output = capsys.readouterr().out
    count = len(ended.graph.nodes)
    assert wording("verify.verified_tasks_every_file", count=count) in output
    assert "distill student" in output
    assert everything(ended.folder) == before
    assert scratches(ended.folder) == []


def test_a_task_is_repeated_with_the_resources_and_settings_of_its_artifact(ended: Finished) -> None:
    _, task_id = ended.task("distill student")
    node = ended.graph.nodes[task_id]
    changed = replace(node, execution=Execution(cpus=7, training=TrainingOptions(micro_batch=3)))
    assert as_it_was_made(changed, ended.store).execution == node.execution
    assert node.execution.training != TrainingOptions(micro_batch=3)


def test_weights_that_were_altered_are_found_and_named_to_the_tensor(
    ended: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered = ended.copy(tmp_path)
    tensor = "model.layers.1.mlp.down_proj.weight"

    def add(file: Path) -> None:
        tensors = load_file(file)
        tensors[tensor][2, 3] += 0.5
        save_file(tensors, file, metadata={"format": "pt"})

    altered.rewrite("distill student", "model/model.safetensors", add)
    assert altered.verify("--json", "--kind=tokenize", "--kind=distill", "--kind=evaluate") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "differs"
    _, student = altered.task("distill student")
    assert found["first"] == student
    verdicts = {task["name"]: task["verdict"] for task in found["tasks"]}
    assert verdicts["tokenize"] == verdicts["evaluate teacher: held_out"] == "identical"
    # It was measured with the weights that it had then.
    assert verdicts["evaluate student: held_out"] == "differs"
    (file,) = next(task["files"] for task in found["tasks"] if task["id"] == student)
    assert (file["path"], file["where"]) == ("model/model.safetensors", tensor)
    assert file["largest"] == pytest.approx(0.5)
    assert "1 of " in file["what"]

    assert altered.verify("--task=distill student") == 1
    output = capsys.readouterr().out
    assert wording("verify.first_task_differs_distill") in output
    assert wording("verify.model_model_safetensors_largest", tensor=tensor) in output
    assert wording("verify.packages_hardware_same") in output
    assert wording("verify.not_verified_task_differs") in output


def test_a_tolerance_covers_a_small_change_and_not_a_larger_one(
    ended: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered, name = ended.copy(tmp_path), "evaluate teacher: held_out"

    def nudge(file: Path) -> None:
        results = json.loads(file.read_text())
        results["results"]["held_out"]["loss,none"] += 1e-6
        file.write_text(json.dumps(results))

    altered.rewrite(name, "results.json", nudge)
    assert altered.verify(f"--task={name}") == 0  # the tolerance of the spec
    output = capsys.readouterr().out
    assert f"within 1e-05 (1): {name}" in output
    assert wording("verify.results_json_largest_difference") in output
    assert wording("verify.verified_task_bit_bit") in output
    for tolerance in ("0", "1e-9"):
        assert altered.verify(f"--task={name}", f"--tolerance={tolerance}") == 1
        assert wording("verify.first_task_differs", name=name) in capsys.readouterr().out


def test_end_to_end_the_difference_of_one_task_is_carried_on_and_the_first_is_named(
    ended: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered = ended.copy(tmp_path)

    def scale(file: Path) -> None:
        save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})

    altered.rewrite("interpolate 3 layers", "model/model.safetensors", scale)
    assert altered.verify("--json", "--end-to-end", "--keep", "--task=interpolate *") == 1
    found = json.loads(capsys.readouterr().out)
    verdicts = {task["name"]: task["verdict"] for task in found["tasks"]}
    # What it is made from is made again, too, and what is made of it was not asked for.
    assert verdicts == {
        "tokenize": "identical",
        "pretrain teacher": "identical",
        "distill student": "identical",
        "interpolate 3 layers": "differs",
    }
    assert found["first"] == altered.task("interpolate 3 layers")[1]
    kept = FolderStore(found["scratch"])
    assert scratches(tmp_path) == [kept.root]
    assert kept.damage(*altered.task("interpolate 3 layers"), checksums=True) is None
    assert kept.has(*altered.task("interpolate 3 layers"))


def test_a_task_that_cannot_be_made_again_is_trouble_not_a_difference(
    ended: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ended.folder / "texts" / "3.txt"
    content = text.read_text()
    text.write_text(content.upper())
    try:
        assert ended.copy(tmp_path).verify("--kind=tokenize", "--kind=interpolate") == 2
    finally:
        text.write_text(content)
    output = capsys.readouterr().out
    assert wording("verify.could_not_made_again") in output
    assert "3.txt" in output
    assert "identical (1): interpolate 3 layers" in output
    assert wording("verify.not_verified_could_not") in output


def test_a_damaged_original_is_refused_before_anything_runs(
    ended: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = ended.copy(tmp_path)
    weights = small.weights(damaged.store, *damaged.task("pretrain teacher"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert damaged.verify("--kind=distill") == 2  # the teacher is its input
    error = capsys.readouterr().err
    assert wording("verify.artifacts_run_damaged_pretrain") in error
    assert damaged.verify("--json") == 2
    assert "pretrain teacher" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert scratches(tmp_path) == []


def test_a_run_that_has_not_finished_and_texts_that_are_gone_are_named(
    ended: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = ended.copy(tmp_path)
    partial.store.discard(*partial.task("report"))
    assert partial.verify() == 2
    assert wording("verify.not_finished_artifacts", len=len(partial.graph.nodes)) in capsys.readouterr().err
    texts = ended.folder / "texts"
    texts.rename(tmp_path / "elsewhere")
    try:
        assert partial.verify("--kind=tokenize") == 2
    finally:
        (tmp_path / "elsewhere").rename(texts)
    error = capsys.readouterr().err
    assert wording("verify.what_run_read_gone") in error
    assert str(texts / "0.txt") in error


def test_a_name_or_kind_that_no_task_has_is_answered_with_those_that_there_are(
    ended: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended.verify("--task=distil student") == 2
    assert wording("verify.did_you_mean_distill") in capsys.readouterr().err
    assert ended.verify("--tolerance=nan") == 2
    assert wording("verify.tolerance_number_not_nan") in capsys.readouterr().err
    assert ended.verify("--kind=search") == 2
    assert wording("verify.kinds_distill_evaluate_interpolate") in capsys.readouterr().err


def test_the_smallest_tolerance_of_the_experiments_that_share_a_task_counts(ended: Finished) -> None:
    (experiment,) = ended.graph.experiments
    _, student = ended.task("distill student")
    assert tolerance_of(ended.graph, student) == 1e-5
    strict = replace(experiment, meaning={**experiment.meaning, "determinism": {"tolerance": 1e-9}})
    other = replace(experiment, tasks={}, meaning={"determinism": {"tolerance": 0.0}})
    assert tolerance_of(replace(ended.graph, experiments=(experiment, strict, other)), student) == 1e-9
    assert tolerance_of(replace(ended.graph, experiments=()), student) == 0


def test_other_packages_and_hardware_are_told_as_what_has_changed(ended: Finished) -> None:
    record = ended.store.record(*ended.task("distill student"))
    assert record is not None
    now: dict[str, Any] = record["provenance"]
    assert changes(now, now) == ()
    then = {
        **now,
        "packages": {**now["packages"], "torch": "2.6.0", "extra": "1"},
        "hardware": {**now["hardware"], "gpus": ["H100", "H100"]},
        "commit": "0123456789abcdef0123456789abcdef01234567-dirty",
    }
    now = {**now, "commit": None}
    assert changes(then, now) == (
        wording("verify.boomspec_commit_ab_dirty"),
        "extra 1 -> not recorded",
        f"torch 2.6.0 -> {torch.__version__}",
        "GPUs H100, H100 -> none",
    )


def test_ctrl_c_leaves_no_scratch_behind_and_the_store_as_it_was(ended: Finished, tmp_path: Path) -> None:
    run = ended.copy(tmp_path)
    before = everything(run.store.root)
    command = [sys.executable, "-P", "-m", "boomspec", "verify", str(ended.spec), "--store", str(run.store.root)]
    process = subprocess.Popen(
        [*command, "--plain"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_until(lambda: process.poll() is not None or any(tmp_path.glob(".store-verify.*/runs/*/progress/*.jsonl")))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
    assert scratches(tmp_path) == []
    assert everything(run.store.root) == before


def test_checks_are_repeated_only_where_they_are_asked_for() -> None:
    """Of another version of transformers the check is another one, which a run that is finished never makes."""
    record = Check(teacher=Outline(config="{}", tensors=(), tied=False), kept=(0,), sizes=(), transformers="6")
    node = Node(Task(record, {}), "check the family")
    graph = TaskGraph("g", {node.id: node}, {}, ())
    assert choose(graph, [], [], end_to_end=False) == []
    assert choose(graph, [], ["check"], end_to_end=False) == [node]
    assert choose(graph, ["check the *"], [], end_to_end=False) == [node]
