"""Weights that change over the steps, balanced ones, and a TAID: functions of the rows so far, whatever interrupts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.losses.taid import TAID
from boomspec.core.losses.weight import WeightCourse
from boomspec.core.tasks import Distill
from runners.runtime.context import Context
from runners.tasks import distill
from runners.training.loop import train
from runners.training.weighting import Weighting, weighting
from tests.messages import wording
from tests.runners import tiny
from tests.runners.test_cohort import contexts, interrupted_at
from tests.runners.test_distill import metrics, payload, record, run, teacher_artifact

FALLING = WeightCourse(start=2.0, end=0.5, over="50%", kind="cosine")
PLAIN = Losses(cross_entropy=CrossEntropy(weight=1.0), kl=KL(weight=1.0), hidden_cosine=HiddenCosine(weight=1.0))
CHANGING: dict[str, dict[str, Any]] = {
    "start": {"losses": PLAIN, "balance": "start"},
    "running": {"losses": PLAIN, "balance": "running"},
    "a course": {"losses": Losses(cross_entropy=CrossEntropy(), kl=KL(weight=FALLING))},
    "taid": {"losses": Losses(cross_entropy=CrossEntropy(), taid=TAID(alpha=0.3))},
    "all of it": {
        "losses": Losses(
            cross_entropy=CrossEntropy(weight=FALLING), taid=TAID(alpha=0.3), hidden_cosine=HiddenCosine()
        ),
        "balance": "running",
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": tokens}


def test_a_course_goes_from_its_start_to_its_end_and_stays_there() -> None:
    line = WeightCourse(start=1.0, end=0.1, over="50%")
    found = [line.at(step, 20) for step in range(20)]
    assert found[0] == 1.0
    assert found[9:] == pytest.approx([0.1] * 11)
    assert found[3] == pytest.approx(1.0 - 0.9 * 3 / 9)
    wave = WeightCourse(start=0.0, end=4.0, over=5, kind="cosine")
    assert [wave.at(step, 100) for step in range(6)] == pytest.approx(
        [2 * (1 - math.cos(math.pi * min(step / 4, 1))) for step in range(6)]
    )
    assert WeightCourse(start=1.0, end=0.0, over=1).at(0, 10) == 1.0


def test_a_term_without_any_weight_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="null"):
        WeightCourse(start=0, end=0)


ROWS = [{"cross_entropy": 8.0 - step, "kl": 2.0 / (step + 1), "taid": 4.0 - step} for step in range(5)]


@pytest.mark.parametrize("balance", [None, "start", "running"])
def test_weights_are_a_fold_over_the_rows_that_are_done(balance: Any) -> None:
    losses = Losses(cross_entropy=CrossEntropy(), kl=KL(weight=FALLING), taid=TAID(weight=0.3))
    as_it_goes = weighting(losses, 10, balance=balance)
    for step, row in enumerate(ROWS):
        again = weighting(losses, 10, balance=balance)
        for done in ROWS[:step]:
            again.see(done)
        if balance is not None and step == 0:
            assert again.needs_sizes
            again.measured(ROWS[0])
            as_it_goes.measured(ROWS[0])
        assert again.columns(step) == as_it_goes.columns(step)
        assert again.moment(step, 3) == as_it_goes.moment(step, 3)
        as_it_goes.see(row)


def test_balance_divides_each_term_by_its_size_and_keeps_the_first_and_shares() -> None:
    found = Weighting({"cross_entropy": 1.0, "kl": 1.0, "taid": 3.0}, 10, balance="start")
    found.measured(ROWS[0])
    assert found.weights(0) == pytest.approx({"cross_entropy": 1.0, "kl": 4.0, "taid": 6.0})
    running = Weighting({"cross_entropy": 1.0, "kl": 1.0}, 10, balance="running")
    for row in ROWS:
        found.see(row)
        running.see(row)
    assert found.weights(5) == pytest.approx({"cross_entropy": 1.0, "kl": 4.0, "taid": 6.0})
    sizes = {"cross_entropy": 8.0, "kl": 2.0}
    for row in ROWS[1:]:
        sizes = {kind: 0.95 * size + 0.05 * row[kind] for kind, size in sizes.items()}
    assert running.weights(5) == pytest.approx({"cross_entropy": 1.0, "kl": sizes["cross_entropy"] / sizes["kl"]})


def test_a_term_that_is_0_at_step_0_cannot_be_balanced() -> None:
    found = Weighting({"cross_entropy": 1.0, "kl": 1.0}, 10, balance="start")
    with pytest.raises(BoomspecError, match=wording("weighting.is_0_at_step_0")):
        found.measured({"cross_entropy": 5.0, "kl": 0.0})


@pytest.mark.parametrize("name", CHANGING)
def test_an_interrupted_training_goes_on_with_the_same_weights_to_the_same_bytes(
    tmp_path: Path, folders: dict[str, Path], name: str
) -> None:
    of = record(**CHANGING[name])
    whole = run(tmp_path / "whole", of, **folders)
    for step in (1, 4):
        with interrupted_at(step), pytest.raises(KeyboardInterrupt):
            run(tmp_path / f"until {step}", of, **folders, resume=tmp_path / "resume")
    last = run(tmp_path / "last", of, **folders, resume=tmp_path / "resume")
    assert tiny.notes(last)[-1] == wording("training.continues_after_step", stop=4)
    assert payload(last) == payload(whole)


def test_columns_of_weights_are_there_only_where_they_change(tmp_path: Path, folders: dict[str, Path]) -> None:
    columns = {}
    for name, fields in CHANGING.items():
        rows = metrics(run(tmp_path / name, record(**fields), **folders))
        assert all(row.keys() == rows[0].keys() for row in rows)
        columns[name] = {column for column in rows[0] if "." in column}
        if name == "start":
            assert len({tuple(row[column] for column in sorted(columns[name])) for row in rows}) <= 2  # a last bit
            sizes = [rows[0][f"weight.{kind}"] * rows[0][kind] for kind in PLAIN.terms()]
            assert sizes == pytest.approx([rows[0]["cross_entropy"]] * 3, rel=1e-5)
        for row in rows:
            weights = {kind: term.weight for kind, term in fields["losses"].terms().items()}
            weights |= {kind: row[f"weight.{kind}"] for kind in weights if f"weight.{kind}" in row}
            assert row["loss"] == pytest.approx(sum(weight * row[kind] for kind, weight in weights.items()), rel=1e-5)
    of_all = {f"weight.{kind}" for kind in PLAIN.terms()}
    assert columns == {
        "start": of_all,
        "running": of_all,
        "a course": {"weight.kl"},
        "taid": {"t.taid"},
        "all of it": {"weight.cross_entropy", "weight.taid", "weight.hidden_cosine", "t.taid"},
    }


def test_what_taid_learns_from_is_the_mixture_of_its_step(tmp_path: Path, folders: dict[str, Path]) -> None:
    rows = metrics(run(tmp_path / "taid", record(losses=Losses(taid=TAID(alpha=0.3))), **folders))
    course = TAID(alpha=0.3).course(len(rows))
    assert course is not None
    expected = [next(course), *(course.send(row["taid"]) for row in rows[:-1])]
    assert [row["t.taid"] for row in rows] == expected
    plain = metrics(run(tmp_path / "kl", record(losses=Losses(kl=KL(weight=1.0))), **folders))
    assert rows[0]["taid"] < plain[0]["kl"]  # the mixture is nearer


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_change_nothing(tmp_path: Path, folders: dict[str, Path], micro_batch: int) -> None:
    rows = []
    for size in (8, micro_batch):
        context = tiny.context(tmp_path / str(size), record(**CHANGING["all of it"]), **folders)
        tiny.set_training(context, micro_batch=size)
        distill.run(context)
        rows.append(metrics(context))
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_students_of_a_cohort_that_are_balanced_or_not_are_what_they_are_alone(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    records: tuple[Distill, ...] = tuple(record(**fields) for fields in ({}, *CHANGING.values()))
    alone = contexts(tmp_path / "alone" / "contexts", folders, records)
    for context in alone:
        distill.run(context)
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        list(distill.run_together(contexts(tmp_path / "together" / "first", folders, records)))
    together = contexts(tmp_path / "together" / "second", folders, records)
    assert all(error is None for _, error in distill.run_together(together))
    assert [payload(context) for context in together] == [payload(context) for context in alone]


def test_the_warning_about_unbalanced_terms_says_what_to_do(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)

    terms = {"cross_entropy": torch.tensor(1.0), "kl": torch.tensor(0.01)}

    def loss(*_: object) -> Any:
        return (model.weight**2).sum(), terms

    def warned(name: str, weights: Any) -> list[str]:
        context: Context[Any] = tiny.context(tmp_path / name)
        recipe = tiny.recipe(steps=1)
        batch = torch.zeros((2, 5), dtype=torch.long).numpy()
        train(model, recipe=recipe, batch=lambda _: batch, loss=loss, weights=weights, context=context)
        return tiny.notes(context)

    plain = {"cross_entropy": 1.0, "kl": 1.0}
    (note,) = warned("plain", plain)
    assert "distill.balance: start" in note
    assert warned("balanced", Weighting(plain, 1, balance="start")) == []
    (note,) = warned("shares", Weighting({**plain, "kl": 0.01}, 1, balance="start"))
    assert "distill.balance" not in note
    terms["hidden_cosine"] = torch.tensor(0.5)
    assert warned("published", {"cross_entropy": 1.0, "kl": 0.1, "hidden_cosine": 2.0}) == []
    assert warned("other", {"cross_entropy": 1.0, "kl": 0.1, "hidden_cosine": 3.0}) != []
