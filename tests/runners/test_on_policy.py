"""A student that is trained on what it writes itself: what that is, and what it learns of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from boomspec.core.losses import KL, CrossEntropy, Losses
from boomspec.core.tasks import Distill, OnPolicy, Sampling
from runners.data.tokens import TokenStream
from runners.modeling.labels import inputs_of
from runners.modeling.sampling import Ends, Writer
from runners.runtime.context import Context
from runners.tasks import distill
from runners.training.on_policy import StudentText, is_on_policy
from runners.training.process_group import ALONE, ProcessGroup
from tests.runners import tiny
from tests.runners.test_cohort import newest
from tests.runners.test_distill import load, metrics, payload, record, teacher_artifact

PROMPT, NEW = 4, 9
SETTINGS = OnPolicy(share=0.5, prompt_tokens=PROMPT, new_tokens=NEW, sampling=Sampling())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": tokens}


def changed(**fields: Any) -> OnPolicy:
    return SETTINGS.model_copy(update=fields)


def context(place: Path, folders: dict[str, Path], of: Distill, **options: Any) -> Context[Distill]:
    made = tiny.context(place, of, resume=place.parent / "resume", **folders)
    tiny.set_training(made, **{"micro_batch": 3, **options})
    return made


def run(place: Path, folders: dict[str, Path], of: Distill, **options: Any) -> Context[Distill]:
    made = context(place, folders, of, **options)
    distill.run(made)
    return made


def text_of(folders: dict[str, Path], settings: OnPolicy, **fields: Any) -> StudentText:
    """The text of a student that is an untrained model of two layers."""
    recipe, stream = tiny.recipe(), TokenStream(folders["tokens"])
    plain = {
        "settings": settings,
        "recipe": recipe,
        "draw": lambda step: stream.batch(step, sequences=8, sequence_length=16, seed=0),
        "ends": Ends(0, (), tiny.VOCABULARY),
        "student": tiny.model(layers=2, seed=1),
        "teacher": load(folders["teacher"] / "model"),
        "group": ALONE,
        "rows_at_once": 3,
    }
    return StudentText(**{**plain, **fields})


def written_step(seed: int = 0, share: float = SETTINGS.share) -> int:
    return next(step for step in range(1, 100) if is_on_policy(seed, step, share))


def test_a_step_is_on_policy_as_its_seed_and_number_say() -> None:
    chosen = [is_on_policy(0, step, 0.3) for step in range(2000)]
    assert 0.27 < np.mean(chosen) < 0.33
    assert chosen != [is_on_policy(1, step, 0.3) for step in range(2000)]
    assert all(is_on_policy(0, step, 1.0) for step in range(100))


def test_the_student_writes_behind_prompts_of_the_text_and_only_that_is_labelled(folders: dict[str, Path]) -> None:
    text = text_of(folders, changed(sampling=Sampling(top_k=1)))
    step = written_step()
    batch = torch.from_numpy(text.batch(step))
    assert batch.shape == (8, PROMPT + NEW)
    tokens = inputs_of(batch)
    assert torch.equal(tokens[:, :PROMPT], torch.from_numpy(text.draw(step))[:, :PROMPT])
    assert (batch[:, :PROMPT] < -1).all()
    assert (batch[:, PROMPT:] >= 0).all()
    with torch.no_grad():  # the most probable token, without a cache
        likeliest = text.student(tokens).logits.argmax(-1)
    assert torch.equal(tokens[:, PROMPT:], likeliest[:, PROMPT - 1 : -1])
    other = next(step for step in range(100) if not text.is_written(step))
    assert np.array_equal(text.batch(other), text.draw(other))


def test_without_a_prompt_it_begins_as_a_text_does(folders: dict[str, Path]) -> None:
    text = text_of(folders, changed(prompt_tokens=0), ends=Ends(0, (5, 6), tiny.VOCABULARY))
    tokens = inputs_of(torch.from_numpy(text.batch(written_step())))
    assert tokens.shape == (8, 2 + NEW)
    assert (tokens[:, :2] == torch.tensor([5, 6])).all()


def test_what_is_written_depends_on_step_and_row_and_not_on_what_is_written_together(folders: dict[str, Path]) -> None:
    every = text_of(folders, changed(share=1.0))
    first, second = every.batch(0), every.batch(1)
    assert not np.array_equal(first[:, PROMPT:], second[:, PROMPT:])
    for rows_at_once in (1, 8):
        assert np.array_equal(text_of(folders, changed(share=1.0), rows_at_once=rows_at_once).batch(0), first)
    same_prompts = text_of(folders, changed(share=1.0, prompt_tokens=0)).batch(0)
    assert len({row.tobytes() for row in same_prompts}) == 8


def test_each_worker_writes_its_own_rows(folders: dict[str, Path]) -> None:
    whole = text_of(folders, changed(share=1.0)).batch(0)

    class Worker(ProcessGroup):
        """One of three, which sees no other."""

        def all_rows(self, own: torch.Tensor, first: int, count: int) -> torch.Tensor:
            assert count == 8
            every = torch.zeros((count, own.shape[1]), dtype=own.dtype)
            every[first : first + len(own)] = own
            return every

    parts = [text_of(folders, changed(share=1.0), group=Worker(rank, 3)).batch(0) for rank in range(3)]
    own = [range(3), range(3, 6), range(6, 8)]
    for part, rows in zip(parts, own, strict=True):
        assert np.array_equal(part[list(rows)], whole[list(rows)])
        others = [row for row in range(8) if row not in rows]
        assert (part[others][:, PROMPT:] == 0).all()


def test_a_teacher_with_nearly_all_of_the_share_decides_what_is_written(folders: dict[str, Path]) -> None:
    greedy = Sampling(top_k=1)
    text = text_of(folders, changed(share=1.0, sampling=greedy, teacher_share=1 - 1e-9))
    tokens = inputs_of(torch.from_numpy(text.batch(0)))
    with torch.no_grad():
        likeliest = text.teacher(tokens).logits.argmax(-1)
    assert torch.equal(tokens[:, PROMPT:], likeliest[:, PROMPT - 1 : -1])
    alone = text_of(folders, changed(share=1.0, sampling=greedy)).batch(0)
    assert not np.array_equal(alone, text.batch(0))


def test_it_is_the_weights_of_the_step_that_write(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Training on one's own text, another learning rate makes other text."""
    seen: list[np.ndarray[Any, Any]] = []
    batch = StudentText.batch

    def noted(text: StudentText, step: int) -> Any:
        seen.append(batch(text, step))
        return seen[-1]

    greedy = changed(share=1.0, sampling=Sampling(top_k=1))
    with patch.object(StudentText, "batch", noted):
        for lr in (1e-2, 0.1):
            run(tmp_path / str(lr) / "student", folders, record(on_policy=greedy, recipe={"optimizer": {"lr": lr}}))
    slow, fast = seen[:6], seen[6:]
    assert np.array_equal(slow[0], fast[0])
    assert not all(np.array_equal(a, b) for a, b in zip(slow[1:], fast[1:], strict=True))


def test_terms_that_read_no_teacher_are_left_out_where_the_student_wrote(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    on_policy = changed(share=1.0)
    both = record(on_policy=on_policy, losses=Losses(cross_entropy=CrossEntropy(), kl=KL()))
    alone = record(on_policy=on_policy, losses=Losses(kl=KL()))
    made = [run(tmp_path / name / "student", folders, of) for name, of in (("both", both), ("alone", alone))]
    weights = [load(one.path / "model").state_dict() for one in made]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    for row, other in zip(*map(metrics, made), strict=True):
        assert row["cross_entropy"] > 0  # it is computed and shown all the same
        assert row["loss"] == pytest.approx(other["loss"])


def test_the_metrics_say_who_wrote_a_step(tmp_path: Path, folders: dict[str, Path]) -> None:
    made = run(tmp_path / "student", folders, record(on_policy=SETTINGS))
    assert [row["on_policy"] for row in metrics(made)] == [is_on_policy(0, step, 0.5) for step in range(6)]
    assert {row["on_policy"] for row in metrics(made)} == {0, 1}
    assert "on_policy" not in metrics(run(tmp_path / "other" / "student", folders, record()))[0]


def test_an_interrupt_while_it_writes_changes_nothing(tmp_path: Path, folders: dict[str, Path]) -> None:
    of = record(on_policy=SETTINGS)
    alone = run(tmp_path / "alone" / "student", folders, of)
    steps = [step for step in range(6) if is_on_policy(0, step, 0.5)]
    assert len(steps) > 1
    stop = max(steps)
    asked: list[int] = []
    write, rows_a_step = Writer.write, 3  # parts of three rows

    def stopping(writer: Writer, *arguments: Any) -> torch.Tensor:
        asked.append(1)
        if len(asked) == (len(steps) - 1) * rows_a_step + 2:  # in the middle of the last step that it writes
            raise KeyboardInterrupt
        return write(writer, *arguments)

    with patch.object(Writer, "write", stopping), pytest.raises(KeyboardInterrupt):
        distill.run(context(tmp_path / "cut" / "first", folders, of))
    assert newest(tmp_path / "cut" / "resume") == stop
    again = run(tmp_path / "cut" / "second", folders, of)
    assert payload(again) == payload(alone)


@pytest.mark.parametrize("options", [{"micro_batch": 8}, {"micro_batch": 1}, {"activation_checkpointing": True}])
def test_the_micro_batch_changes_last_digits_alone(
    tmp_path: Path, folders: dict[str, Path], options: dict[str, Any]
) -> None:
    of = record(on_policy=SETTINGS, recipe={"optimizer": {"eps": 1e-3}})
    plain = run(tmp_path / "plain" / "student", folders, of)
    other = run(tmp_path / "other" / "student", folders, of, **options)
    for row, expected in zip(metrics(other), metrics(plain), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_student_learns_from_what_it_wrote(tmp_path: Path, folders: dict[str, Path]) -> None:
    recipe = {"steps": 60, "optimizer": {"lr": 3e-3}}
    made = run(
        tmp_path / "student", folders, record(on_policy=changed(share=1.0), losses=Losses(kl=KL()), recipe=recipe)
    )
    kl = [row["kl"] for row in metrics(made)]
    assert np.mean(kl[-10:]) < 0.7 * np.mean(kl[:10])


def test_in_bf16_the_weights_of_each_step_write(tmp_path: Path, folders: dict[str, Path]) -> None:
    """What autocast has cast of the weights must not outlive the step."""
    of = record(on_policy=changed(share=1.0), recipe={"precision": "bf16"})
    made = run(tmp_path / "student", folders, of)
    assert all(np.isfinite(row["loss"]) for row in metrics(made))
    same: list[bool] = []
    write = Writer.write

    def noted(writer: Writer, *arguments: Any) -> torch.Tensor:
        tokens = write(writer, *arguments)
        (student, share), *others = writer.models
        fresh = replace(writer, models=[(copy.deepcopy(student), share), *others])  # nothing is cast of its weights yet
        same.append(torch.equal(tokens, write(fresh, *arguments)))
        return tokens

    with patch.object(Writer, "write", noted):
        other = run(tmp_path / "again" / "student", folders, of)
    assert len(same) == 18
    assert all(same)
    assert payload(other) == payload(made)
