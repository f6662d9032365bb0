"""A whole experiment that is tiny, and its run inside of the test's own process (see the fixture `connected`)."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from boomspec.compile.compiler import Compiled, compile_experiments, search_results_from
from boomspec.core.graph import Source, TaskGraph
from boomspec.core.identity import file_digest
from boomspec.plan.plan import plan_tasks
from boomspec.spec.experiments import load_experiments
from boomspec.store import RECORD, FolderStore, Store
from runners.cli import run as runners
from runners.executor import worker
from runners.runtime.job import Job, Outcome
from runners.runtime.journal import Journal

_TRAINING = {"tokens": 512, "batch_tokens": 256, "precision": "fp32"}
SPEC: dict[str, Any] = {
    "boomspec": 1,
    "name": "small",
    "teacher": {
        "pretrain": {
            "layers": 4,
            "hidden_size": 16,
            "intermediate_size": 24,
            "attention_heads": 2,
            **_TRAINING,
            "tokenizer": {"vocabulary": 300, "train_on": "4KB"},
        }
    },
    "student": {"keep": [0, 2]},
    "data": {"files": "texts/*.txt", "sequence_length": 16, "held_out": {"every": 4}},
    "distill": dict(_TRAINING),
    "evaluate": {"held_out": {"max_tokens": 200}, "precision": "fp32"},
}


def write_texts(folder: Path) -> None:
    (folder / "texts").mkdir(parents=True)
    for i in range(8):
        (folder / "texts" / f"{i}.txt").write_text("".join(f"line {n} of text {i}, {n * n % 97}\n" for n in range(60)))


def write_spec(folder: Path, **sections: Any) -> Path:
    """The spec with other sections, which are merged into its own; None removes a key. Texts lie beside it."""
    if not (folder / "texts").exists():
        write_texts(folder)
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(_merged(copy.deepcopy(SPEC), sections)))
    return spec


def _merged(base: dict[str, Any], edits: dict[str, Any]) -> dict[str, Any]:
    for key, value in edits.items():
        if value is None:
            base.pop(key, None)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            _merged(base[key], value)
        else:
            base[key] = value
    return base


def source_of(folder: Path) -> Source:
    """A model in a folder, as a compiled graph has it."""
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    return Source("model", {"sha256": files}, {"folder": str(folder)})


def compiled(spec: Path, store: Store) -> Compiled:
    return compile_experiments(load_experiments(spec), search_results_from(store))


def run(graph: TaskGraph, store: Store, *options: str) -> int:
    """Run a graph as `python -m runners` does, in this process."""
    file = store.root.with_name(f"{store.root.name}-{graph.id[:8]}.json")
    graph.write(file)
    with contextlib.chdir("."):  # the run changes the folder
        return runners.main([str(file), "--store", str(store.root), "--plain", *options])


def jobs(graph: TaskGraph, store: Store, folder: Path) -> list[Job]:
    """The jobs of what must run, in an order in which it can. `folder`: of the run."""
    from runners.executor.executor import _jobs  # imports Ray, which reads its settings then

    journal = Journal(folder, graph, lambda event: None)
    return list(_jobs(graph, store, plan_tasks(graph, store).work, journal, store, None))


def share(graph: TaskGraph, jobs: dict[str, Job], store: Store) -> None:
    """Give the jobs, by id, what they read when they are computed together."""
    from runners.executor.executor import _shared  # imports Ray, which reads its settings then

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runners.executor.executor.machines", list)  # no cluster is asked
        _shared(graph, jobs, store)


def execute_one(job: Job) -> Outcome:
    """Make the artifact of a job in this process."""
    return worker.execute([job])[job.node.id]


def execute(graph: TaskGraph, store: Store, **changes: Any) -> dict[str, Outcome]:
    """Make all of a graph without Ray, one task after the other in this process. Returns the outcomes by name."""
    folder = store.run_folder(graph.name, graph.id)
    outcomes = [(job.node.name, execute_one(replace(job, **changes))) for job in jobs(graph, store, folder)]
    assert all(outcome.succeeded for _, outcome in outcomes), outcomes
    return dict(outcomes)


def copied(finished: Path, folder: Path, *, without: Collection[str] = (), **sections: Any) -> tuple[Path, FolderStore]:
    """The spec with other sections in `folder`, and a store with what the fixture `finished` has.

    `without`: kinds, and parts of names, of tasks that are still to be made.
    """
    store = FolderStore(folder / "store")
    shutil.copytree(finished, store.root, ignore=shutil.ignore_patterns("runs"))
    spec = write_spec(folder, **sections)
    for node in compiled(spec, store).graph.nodes.values():
        if any(part == node.task.kind or part in node.name for part in without):
            store.discard(node.task.kind, node.id)
    return spec, store


def status(graph: TaskGraph, store: Store) -> dict[str, Any]:
    """How the last run of the graph ended."""
    found: dict[str, Any] = json.loads((store.run_folder(graph.name, graph.id) / "status.json").read_text())
    return found


def events(graph: TaskGraph, store: Store) -> list[dict[str, Any]]:
    """The events of the last run of the graph."""
    lines = (store.run_folder(graph.name, graph.id) / "events.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [event for event in found if event["run"] == found[-1]["run"]]


def artifacts(store: Store) -> dict[str, dict[str, tuple[int, int]]]:
    """For each artifact's id its files, each with what tells whether it was written since."""
    return {
        folder.name: {
            file.relative_to(folder).as_posix(): (file.stat().st_mtime_ns, file.stat().st_ino)
            for file in folder.rglob("*")
            if file.is_file()
        }
        for folder in store.root.glob("*/*")
        if len(folder.name) == 64 and not folder.name.startswith(".")
    }


def weights(store: Store, kind: str, task_id: str) -> Path:
    return store.path(kind, task_id) / "model" / "model.safetensors"


def record_of(store: Store, kind: str, task_id: str) -> Path:
    return store.path(kind, task_id) / RECORD
