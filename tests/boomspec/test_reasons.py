"""Why a task runs, told in fields of the spec, from what an earlier run of the same name had."""

import json
import os
import time

import pytest

from boomspec.compile.compiler import Compiled, compile_experiments
from boomspec.plan.plan import ABSENT, Step, plan_tasks
from boomspec.plan.reasons import with_reasons
from boomspec.spec.experiments import load_experiments
from boomspec.store import FolderStore
from tests.messages import wording


class Past:
    """A store in which runs leave their graphs, and tasks are made without being run."""

    def __init__(self, specs) -> None:
        self.specs = specs
        self.store = FolderStore(specs.folder / "store")

    def run(
        self, compiled: Compiled, *, age: int = 0, made: tuple[str, ...] = (), states: dict[str, str] | None = None
    ):
        folder = self.store.run_folder(compiled.graph.name, compiled.graph.id)
        folder.mkdir(parents=True)
        compiled.graph.write(folder / "graph.json")
        ids = compiled.graph.experiments[0].tasks
        status = {"tasks": {ids[name]: {"state": state} for name, state in (states or {}).items()}}
        (folder / "status.json").write_text(json.dumps(status))
        os.utime(folder / "graph.json", (time.time() - age, time.time() - age))
        for name in made:
            self.make(compiled, name)

    def make(self, compiled: Compiled, name: str) -> None:
        task = compiled.graph.nodes[compiled.graph.experiments[0].tasks[name]].task
        with self.store.workspace(task.kind, task.id) as workspace:
            (workspace.path / "payload").write_text(name)
            self.store.publish(workspace, task.kind, task.id, task.identity(), {})

    def steps(self, compiled: Compiled) -> dict[str, Step]:
        plan = with_reasons(plan_tasks(compiled.graph, self.store), compiled, self.store)
        return {compiled.graph.nodes[i].name: step for i, step in plan.steps.items()}


@pytest.fixture
def past(specs) -> Past:
    return Past(specs)


def test_a_changed_field_is_the_reason_and_what_needs_the_task_runs_because_of_it(past: Past) -> None:
    past.run(past.specs.compiled(), made=("tokenize", "pretrain teacher", "distill student", "interpolate 4 layers"))
    steps = past.steps(past.specs.edited(("distill.losses.kl.weight", 0.2)))
    assert (steps["tokenize"].action, steps["pretrain teacher"].action) == ("reuse", "reuse")
    student = steps["distill student"]
    assert student.reason.startswith(wording("reasons.distill_losses_kl_weight", absent=ABSENT))
    assert student.fields == ("distill.losses.kl.weight",)
    behind = steps["interpolate 4 layers"]
    assert behind.reason == wording("reasons.input_distill_student_runs", absent=ABSENT)
    assert behind.fields == ("distill.losses.kl.weight",)


def test_a_store_without_an_earlier_run_of_this_name_gives_no_fields(past: Past) -> None:
    past.run(past.specs.edited(("name", "tiny-2"), ("seed", 5)))
    steps = past.steps(past.specs.compiled())
    assert {(step.reason, step.fields) for step in steps.values()} == {(ABSENT, ())}


def test_the_newest_run_that_has_the_task_counts(past: Past) -> None:
    past.run(past.specs.edited(("distill.tokens", 512)), age=300)
    past.run(past.specs.edited(("distill.tokens", 1024)), age=200)
    past.run(past.specs.edited(("distill.tokens", 1024), ("baselines", ["naive_pruning"])), age=100)
    steps = past.steps(past.specs.compiled())
    assert wording("reasons.distill_tokens") in steps["distill student"].reason
    assert wording("reasons.distill_tokens") in steps["distill random_init"].reason


def test_a_task_that_is_new_says_which_field_asks_for_it(past: Past) -> None:
    past.run(past.specs.edited(("baselines", ["random_init"])))
    steps = past.steps(past.specs.compiled())
    assert wording("reasons.baselines_naive_pruning_not") in steps["prune to 4 layers"].reason


def test_what_is_left_out_is_said_with_its_old_value(past: Past) -> None:
    past.run(past.specs.compiled())
    steps = past.steps(past.specs.edited(("distill.losses.kl", None)))
    expected = "distill.losses.kl is left out, was {weight: 0.1, temperature: 1.0} in the run of"
    assert expected in steps["distill student"].reason


def test_several_fields_are_counted(past: Past) -> None:
    past.run(past.specs.compiled())
    steps = past.steps(past.specs.edited(("distill.losses.kl.weight", 0.2), ("distill.precision", "fp32")))
    assert steps["distill student"].reason.endswith("(and 1 more)")
    assert set(steps["distill student"].fields) == {"distill.losses.kl.weight", "distill.precision"}


def test_changed_contents_are_a_reason(past: Past) -> None:
    past.run(past.specs.compiled())
    (past.specs.folder / "3.txt").write_text("other text")
    steps = past.steps(past.specs.compiled())
    assert wording("reasons.contents_data_files") in steps["tokenize"].reason
    assert steps["tokenize"].fields == ("sources.data",)


def test_the_same_task_says_how_it_ended(past: Past) -> None:
    compiled = past.specs.compiled()
    ended = {"tokenize": "finished", "pretrain teacher": "failed", "distill student": "interrupted"}
    past.run(compiled, states=ended)
    steps = past.steps(compiled)
    assert steps["tokenize"].reason.startswith(wording("reasons.there_run", absent=ABSENT))
    assert steps["tokenize"].reason.endswith("and is gone")
    assert wording("reasons.failed_run") in steps["pretrain teacher"].reason
    assert wording("reasons.interrupted_run") in steps["distill student"].reason
    assert steps["report"].reason.endswith(wording("reasons.did_not_come"))


def test_damage_is_a_reason_of_its_own(past: Past) -> None:
    compiled = past.specs.compiled()
    past.run(compiled, made=("tokenize",))
    (past.store.path("tokenize", compiled.graph.experiments[0].tasks["tokenize"]) / "payload").unlink()
    assert past.steps(compiled)["tokenize"].reason == "damaged: payload is missing"


def test_runs_that_cannot_be_read_are_passed_over(past: Past) -> None:
    past.run(past.specs.edited(("distill.tokens", 1024)), age=500)
    for i, text in enumerate(["", "{", "[]", '{"boomspec_graph": 1}', '{"boomspec_graph": 2, "name": "tiny"}']):
        folder = past.store.root / "runs" / f"tiny-0000000{i}"
        folder.mkdir()
        (folder / "graph.json").write_text(text)
    assert "was 1024" in past.steps(past.specs.compiled())["distill student"].reason


def test_a_variant_that_is_new_is_compared_with_the_files_own_experiment(past: Past) -> None:
    past.run(past.specs.compiled())
    text = past.specs.SPEC + "variants:\n  no-kl: {distill: {losses: {kl: null}}}\n"
    steps = past.steps(compile_experiments(load_experiments(past.specs.text(text))))
    assert wording("reasons.did_not_come") in steps["distill student"].reason
    assert wording("reasons.distill_losses_kl_left") in steps["no-kl: distill student"].reason


def test_planning_reads_a_bounded_number_of_runs(past: Past) -> None:
    graph = past.specs.edited(("distill.tokens", 1024)).graph
    for i in range(12):
        folder = past.store.root / "runs" / f"tiny-{i:08}"
        folder.mkdir(parents=True)
        data = graph.to_json()
        if i != 0:
            data["experiments"][0]["tasks"] = {}
        (folder / "graph.json").write_text(json.dumps(data))
        os.utime(folder / "graph.json", (i, i))
    assert past.steps(past.specs.compiled())["distill student"].reason == ABSENT
