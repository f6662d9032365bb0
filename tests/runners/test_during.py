"""The held-out loss of a student and of sizes while it is trained: right numbers, and the same training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from transformers import AutoModelForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, family_of_sets, prefixes
from boomspec.core.losses import KL, CrossEntropy, Losses
from boomspec.core.tasks import BuiltSize, During, Evaluate, HeldOut, Patched, Phase
from boomspec.core.tasks.training import HELD_OUT
from runners.assembly.assemble import assemble
from runners.evaluation import during as measured_during
from runners.report.collect import _apart
from runners.runtime.peak import Peak
from runners.tasks import distill, evaluate
from runners.training.loop import _Training
from runners.training.throughput import Throughput
from tests.messages import wording
from tests.runners import tiny
from tests.runners.test_distill import KEPT, metrics, payload, record, teacher_artifact

LAYERS, STEPS = 6, 5
PLANS = tuple(family_of_sets(KEPT, LAYERS, prefixes((1, 0)))[1:-1])
MEASURED = During(every=2, sizes=tuple(BuiltSize(plan=plan, tied=False) for plan in PLANS), max_tokens=200)
RECIPE = {"steps": STEPS, "sequences": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": tokens}


def trained(folder: Path, folders: dict[str, Path], resume: Path | None = None, **fields: Any) -> Any:
    context = tiny.context(folder, record(recipe=RECIPE | fields.pop("recipe", {}), **fields), resume=resume, **folders)
    tiny.set_training(context, micro_batch=3)
    distill.run(context)
    return context


@pytest.fixture(scope="module")
def both(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The same training, measured and not."""
    folder = tmp_path_factory.mktemp("both")
    return trained(folder / "plain", folders), trained(folder / "measured", folders, during=MEASURED)


def held_out(context: Any) -> list[dict[str, float]]:
    return _apart(metrics(context))[1]


def test_weights_and_losses_are_the_same_bits_with_and_without(both: tuple[Any, Any]) -> None:
    plain, measured = map(payload, both)
    assert plain.keys() == measured.keys()
    assert {name for name in plain if plain[name] != measured[name]} == {"metrics.jsonl"}
    steps, rows = _apart(metrics(both[1]))
    assert steps == metrics(both[0])
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert rows[0].keys() == {"step", "student", f"{len(PLANS[0])} layers"}
    assert metrics(both[1])[-1].keys() == {"step", "tokens", *(HELD_OUT + name for name in rows[0] if name != "step")}


def test_bf16_and_other_ways_to_train_stay_the_same_too(folders: dict[str, Path], tmp_path: Path) -> None:
    losses = Losses(cross_entropy=CrossEntropy(), kl=KL())
    for number, fields in enumerate((
        {"recipe": {"precision": "bf16"}},
        {"patched": Patched(share=0.7), "losses": losses, "train_embedding": False},
    )):  # fmt: skip
        places = tmp_path / str(number)
        plain = trained(places / "plain", folders, **fields)
        context = trained(places / "measured", folders, during=MEASURED, **fields)
        name = "model/model.safetensors"
        assert payload(plain)[name] == payload(context)[name]
        assert all(math.isfinite(value) for row in held_out(context) for value in row.values())


def test_the_last_losses_are_those_of_the_stored_student_and_of_the_sizes_built_of_it(
    folders: dict[str, Path], both: tuple[Any, Any], tmp_path: Path
) -> None:
    """In fp32, against the measure `held_out` of folders; at the start the student is layers of the teacher."""

    def evaluated(name: str, model: Path) -> float:
        measure = HeldOut(sequence_length=16, max_tokens=200)
        (model.parent / "tokenizer").mkdir(exist_ok=True)
        context = tiny.context(
            tmp_path / name, Evaluate(measure=measure, precision="fp32"), model=model.parent, tokens=folders["tokens"]
        )
        evaluate.run(context)
        table = (context.path / "table.csv").read_text().splitlines()
        return float(next(line for line in table if line.startswith("held_out,loss")).split(",")[3])

    student, first, last = both[1].path / "model", *held_out(both[1])[:: len(held_out(both[1])) - 1]
    assert last["student"] == pytest.approx(evaluated("student", student), rel=1e-5)
    size = tmp_path / "built" / "model"
    assemble({TEACHER: folders["teacher"] / "model", STUDENT: student}, PLANS[0], size, tied=False)
    assert last[f"{len(PLANS[0])} layers"] == pytest.approx(evaluated("size", size), rel=1e-5)
    distill.initial_student(record(), folders["teacher"] / "model", tmp_path / "begins" / "model")
    assert first["student"] == pytest.approx(evaluated("begins", tmp_path / "begins" / "model"), rel=1e-5)
    assert first["student"] != last["student"]


def test_a_training_that_was_killed_goes_on_to_the_same_rows(
    folders: dict[str, Path], both: tuple[Any, Any], tmp_path: Path
) -> None:
    step = _Training.step

    def interrupted(training: _Training, number: int, *rest: Any) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return (yield from step(training, number, *rest))

    resume = tmp_path / "resume"
    with patch.object(_Training, "step", interrupted), pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", folders, resume, during=MEASURED)
    context = trained(tmp_path / "again", folders, resume, during=MEASURED)
    assert payload(context) == payload(both[1])
    shown = [json.loads(line) for line in (context.path.parent / "progress.jsonl").read_text().splitlines()]
    assert [row for line in shown for row in line.get("rows", ())] == metrics(context)  # what trackers get
    assert any("held-out student" in line for line in shown)


def test_students_of_a_cohort_are_measured_as_alone(
    folders: dict[str, Path], both: tuple[Any, Any], tmp_path: Path
) -> None:
    records = record(recipe=RECIPE, during=MEASURED), record(recipe=RECIPE, losses=Losses(kl=KL()))
    contexts = [tiny.context(tmp_path / str(i), one, **folders) for i, one in enumerate(records)]
    for context in contexts:
        tiny.set_training(context, micro_batch=3)
    assert [error for _, error in distill.run_together(contexts)] == [None, None]
    assert payload(contexts[0]) == payload(both[1])


def test_the_student_alone_is_measured_without_its_teacher(folders: dict[str, Path], tmp_path: Path) -> None:
    of, student = record(during=MEASURED.model_copy(update={"sizes": ()})), tmp_path / "student"
    distill.initial_student(of, folders["teacher"] / "model", student)
    models = {STUDENT: AutoModelForCausalLM.from_pretrained(student).eval()}
    found = measured_during.HeldOutDuring(
        of.during, of.recipe, folders["tokens"], models, {STUDENT: student}, rows_at_once=5
    )
    assert found.row(0).keys() == {"held_out.student"}
    assert found.row(1) == {}
    with pytest.raises(BoomspecError) as error:
        measured_during.HeldOutDuring(
            MEASURED, of.recipe, folders["tokens"], models, {STUDENT: student}, rows_at_once=5
        )
    assert wording("during.no_teacher") in str(error.value)


def test_what_is_measured_does_not_count_as_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("runners.training.throughput.time.monotonic", lambda: clock[0])
    throughput = Throughput(Peak("x", None, "unknown"))
    for _ in range(3):
        clock[0] += 1.0 + 10.0
        throughput.left_out(10.0)
        throughput.step_done(100, 100)
    assert throughput.summary()["tokens_per_second"] == 100


def test_a_training_in_phases_is_measured_as_one(
    folders: dict[str, Path], both: tuple[Any, Any], tmp_path: Path
) -> None:
    whole = record(recipe=RECIPE, during=MEASURED)
    parts = Phase(first=0, steps=3, passed=0), Phase(first=3, steps=2, passed=3)
    before: dict[str, Path] = {}
    for number, phase in enumerate(parts):
        context = tiny.context(tmp_path / str(number), whole.model_copy(update={"phase": phase}), **folders, **before)
        tiny.set_training(context, micro_batch=3)
        distill.run(context)
        before = {"before": context.path}
        if number == 0:
            assert [row["step"] for row in held_out(context)] == [0, 2]
    assert metrics(context) == metrics(both[1])
