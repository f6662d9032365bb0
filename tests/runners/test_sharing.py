"""Evaluations of a family that are computed together: the same artifacts as alone, each of its own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from boomspec.core.graph import Node, TaskGraph
from boomspec.core.layers import read_layers
from boomspec.store import RECORD, FolderStore, Store
from runners.evaluation import scores
from runners.evaluation.members import LayerPlans
from runners.executor import worker
from runners.executor.ready import Ready
from runners.executor.sharing import InFamily, parts, sharing
from runners.runtime.context import Context
from runners.runtime.job import Job
from runners.runtime.journal import progress_file
from runners.tasks import evaluate
from tests.messages import wording
from tests.runners import small


def evaluations(graph: TaskGraph) -> list[Node]:
    return [node for node in graph.nodes.values() if node.task.kind == "evaluate"]


def payload(store: Store, node: Node) -> dict[str, bytes]:
    folder = store.path(node.task.kind, node.id)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def record(store: Store, node: Node) -> Any:
    return json.loads((store.path(node.task.kind, node.id) / RECORD).read_text())["provenance"]


def test_the_sizes_of_a_family_are_measured_together_and_each_as_alone(
    finished: Path, tmp_path: Path, connected: None
) -> None:
    spec, store = small.copied(finished, tmp_path, without=["evaluate", "report"])
    graph = small.compiled(spec, store).graph
    assert small.run(graph, store) == 0
    made = evaluations(graph)
    # Two CPUs, so two parts: one of two sizes, one of a single size.
    assert sorted(record(store, node).get("together", 1) for node in made) == [1, 2, 2]
    alone = FolderStore(finished)
    for node in made:
        assert payload(store, node) == payload(alone, node), node.name


def jobs_together(finished: Path, tmp_path: Path) -> tuple[TaskGraph, Store, list[Job]]:
    """The evaluations of a family, of which none is in the store, as one worker gets them."""
    spec, store = small.copied(finished, tmp_path, without=["evaluate", "report"])
    graph = small.compiled(spec, store).graph
    folder = store.run_folder(graph.name, graph.id)
    jobs = {job.node.id: job for job in small.jobs(graph, store, folder) if job.node.task.kind == "evaluate"}
    small.share(graph, jobs, store)
    assert all(job.plan is not None for job in jobs.values())
    return graph, store, list(jobs.values())


def test_students_of_one_teacher_are_measured_together_and_each_as_alone(finished: Path, tmp_path: Path) -> None:
    controls = {"baselines": ["naive_pruning", {"random_init": {"tokens": 512}}]}
    spec, alone = small.copied(finished, tmp_path, without=["report"], **controls)
    graph = small.compiled(spec, alone).graph
    measured = tuple(node.id for node in evaluations(graph))
    small.execute(replace(graph, targets=measured), alone)
    together = FolderStore(tmp_path / "together")
    shutil.copytree(alone.root, together.root, ignore=shutil.ignore_patterns("evaluate"))
    folder = together.run_folder(graph.name, graph.id)
    jobs = {job.node.id: job for job in small.jobs(graph, together, folder) if job.node.id in measured}
    small.share(graph, jobs, together)
    assert {outcome.state for outcome in worker.execute([*jobs.values()]).values()} == {"made"}
    assert len({job.owners["student"].id for job in jobs.values() if "student" in job.owners}) == 2
    for node in evaluations(graph):
        assert record(together, node)["together"] == len(measured)
        assert payload(together, node) == payload(alone, node), node.name


def test_what_cannot_be_computed_together_is_computed_one_by_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, store, jobs = jobs_together(finished, tmp_path)
    load = evaluate.load

    def too_large(contexts: list[Context[Any]]) -> Any:
        if len(contexts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(contexts)

    monkeypatch.setattr(evaluate, "load", too_large)
    assert {outcome.state for outcome in worker.execute(jobs).values()} == {"made"}
    said = progress_file(jobs[0].folder(store), jobs[0].node.id).read_text()
    assert wording("sharing.one_by_one", count=len(jobs), reason="OutOfMemoryError: CUDA out of memory") in said
    for node in evaluations(graph):
        assert payload(store, node) == payload(FolderStore(finished), node)


def test_a_size_that_cannot_be_measured_fails_alone(finished: Path, tmp_path: Path) -> None:
    *_, jobs = jobs_together(finished, tmp_path)
    lost = next(job for job in jobs if job.node.name.startswith("evaluate interpolated"))
    broken = replace(lost, plan=read_layers("s0 t9"), inputs={})  # nor can it be measured alone
    outcomes = worker.execute([broken if job is lost else job for job in jobs])
    assert [outcomes[job.node.id].state for job in jobs] == ["failed" if job is lost else "made" for job in jobs]


def test_a_worker_that_was_lost_goes_on_with_the_scores_that_it_had(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, store, jobs = jobs_together(finished, tmp_path)
    ran: list[tuple[int, int]] = []  # plans, and batches, of each walk
    run = LayerPlans.run

    def stopping(members: LayerPlans, plans: list[Any], batches: list[Any], visit: Any, done: Any) -> None:
        ran.append((len(plans), len(batches)))

        def advance(share: float) -> None:
            done(share)
            if len(ran) == 1 and share >= 0.5:
                raise KeyboardInterrupt

        run(members, plans, batches, visit, advance)

    monkeypatch.setattr(LayerPlans, "run", stopping)
    monkeypatch.setattr(scores, "_EVERY_SECONDS", 0.0)
    jobs = [replace(job, node=replace(job.node, execution=replace(job.node.execution, batch_size=1))) for job in jobs]
    with pytest.raises(KeyboardInterrupt):
        worker.execute(jobs[:2])
    worker.execute(jobs)  # with a third, of which nothing is there
    (_, every), first, second = ran
    half = -(-every // 2)
    assert first == (1, half)
    assert second == (3, every - half)
    for node in evaluations(graph):
        assert payload(store, node) == payload(FolderStore(finished), node)
    assert not list(store.root.glob("evaluate/.*.resume/*"))


def plan_of(text: str) -> InFamily:
    return InFamily("teacher", "student", read_layers(text))


def test_plans_that_begin_alike_stay_together_when_there_are_several_workers() -> None:
    models = {text: plan_of(text) for text in ("t0 t1 t2 t3", "s0 s1", "s0 t2 t3", "t0 t1 s1")}
    assert parts(models, 1) == [("s0 s1", "s0 t2 t3", "t0 t1 s1", "t0 t1 t2 t3")]
    assert parts(models, 2) == [("s0 s1", "s0 t2 t3"), ("t0 t1 s1", "t0 t1 t2 t3")]
    assert sorted(parts(models, 9)) == sorted((text,) for text in models)


def shared(graph: TaskGraph, *, memory: float = 0.0) -> list[set[str]]:
    """The names of the tasks of each group."""
    found = sharing(graph, graph.nodes, has=lambda _: True, memory=memory)
    groups: dict[Any, set[str]] = {}
    for task_id, group in found.groups.items():
        groups.setdefault(group, set()).add(graph.nodes[task_id].name)
    return sorted(groups.values(), key=len, reverse=True)


def test_controls_of_the_same_teacher_join_the_family(tmp_path: Path) -> None:
    spec = small.write_spec(tmp_path, baselines=["naive_pruning", "random_init"])
    graph = small.compiled(spec, FolderStore(tmp_path / "store")).graph
    (family,) = shared(graph)
    assert family == {node.name for node in evaluations(graph)}
    assert {name.split()[1].strip(":") for name in family} > {"teacher", "student", "naive_pruning", "random_init"}


def test_a_family_that_does_not_fit_into_memory_is_measured_one_by_one(tmp_path: Path) -> None:
    graph = small.compiled(small.write_spec(tmp_path), FolderStore(tmp_path / "store")).graph
    largest = max(node.cost.peak for node in evaluations(graph) if node.cost is not None)
    assert shared(graph, memory=2 * largest)
    assert not shared(graph, memory=2 * largest - 1)
    claims = {i: replace(node, execution=replace(node.execution, memory=largest)) for i, node in graph.nodes.items()}
    assert not shared(replace(graph, nodes=claims))


def test_a_group_waits_for_files_to_be_copied_and_for_nothing_else(tmp_path: Path) -> None:
    graph = small.compiled(small.write_spec(tmp_path), FolderStore(tmp_path / "store")).graph
    by_name = {node.name: node.id for node in graph.nodes.values()}
    together = sharing(graph, graph.nodes, has=lambda _: True, memory=0.0)
    ready = Ready(graph, graph.nodes, together, machines=lambda: [{"CPU": 1.0}])

    def end(name: str) -> None:
        assert ready.ended(by_name[name], made=True) == []

    def given() -> list[str]:
        found = []
        while part := ready.take():
            found.append(" + ".join(sorted(graph.nodes[i].name for i in part)))
        return found

    assert given() == ["tokenize"]
    end("tokenize")
    assert given() == ["pretrain teacher"]
    end("pretrain teacher")
    assert given() == ["distill student", "evaluate teacher: held_out"]  # it would wait for a training
    end("evaluate teacher: held_out")
    end("distill student")
    assert given() == ["interpolate 3 layers"]
    end("interpolate 3 layers")
    assert given() == ["evaluate interpolated 3 layers: held_out + evaluate student: held_out"]
