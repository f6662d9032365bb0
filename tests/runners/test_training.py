"""The training loop: exact effective batches, bit-identical resuming, errors and warnings that come in time."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from boomspec.core import machine
from boomspec.core.errors import BoomspecError
from boomspec.core.identity import file_digest
from boomspec.core.losses import CrossEntropy, Losses
from boomspec.core.tasks import Recipe
from runners.modeling.hidden_states import LMHead, trunk
from runners.runtime.context import Context
from runners.runtime.task_errors import FullDiskError
from runners.training import checkpoint_writer
from runners.training import loop as training
from runners.training.head import head_loss
from runners.training.loop import Batches, learning_rate, train
from tests.messages import wording
from tests.runners import tiny

RECIPE = tiny.recipe()
CE = Losses(cross_entropy=CrossEntropy())


def batch(step: int, *, recipe: Recipe = RECIPE) -> np.ndarray:
    numbers = np.random.default_rng(step)
    return numbers.integers(0, tiny.VOCABULARY, size=(recipe.sequences, recipe.sequence_length + 1))


def interrupted_at(last: int, error: type[BaseException] = KeyboardInterrupt) -> Batches:
    def batches(step: int) -> np.ndarray:
        if step == last:
            raise error
        return batch(step)

    return batches


def run(
    context: Context, *, model: PreTrainedModel | None = None, recipe: Recipe = RECIPE, batches: Batches = batch
) -> dict[str, torch.Tensor]:
    """Train a fresh tiny model with CE; returns its weights."""
    model = model or tiny.model(layers=2)
    head = LMHead(model)

    def loss(inputs, labels, count, _moment):
        return head_loss(trunk(model, inputs), labels, head=head, losses=CE, count=count)

    train(model, recipe=recipe, batch=batches, loss=loss, weights={"cross_entropy": 1.0}, context=context)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def metrics(context: Context) -> list[dict]:
    return [json.loads(line) for line in (context.path / "metrics.jsonl").read_text().splitlines()]


def checkpoints(resume: Path) -> list[str]:
    return sorted(place.name for place in resume.iterdir())


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_the_micro_batch_changes_nothing_but_the_last_bits(tmp_path: Path, micro_batch: int) -> None:
    # A large eps keeps AdamW from blowing up the rounding of gradients that are nearly 0.
    recipe = tiny.recipe(optimizer={"eps": 1e-3})
    whole, parts = tiny.context(tmp_path / "whole"), tiny.context(tmp_path / "parts")
    tiny.set_training(parts, micro_batch=micro_batch)
    expected = run(whole, recipe=recipe)
    actual = run(parts, recipe=recipe)
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=1e-4, atol=1e-5)
    for one, other in zip(metrics(whole), metrics(parts), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_training_learns_and_logs_every_step(tmp_path: Path) -> None:
    context = tiny.context(tmp_path)
    run(context, batches=lambda _step: batch(0))
    rows = metrics(context)
    assert [row["step"] for row in rows] == list(range(6))
    assert [row["tokens"] for row in rows] == [8 * 16 * step for step in range(1, 7)]
    assert set(rows[0]) == {"step", "tokens", "loss", "cross_entropy", "lr", "grad_norm"}
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert [row["lr"] for row in rows] == [learning_rate(step, RECIPE) for step in range(6)]


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_training_continues_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = tiny.context(tmp_path / "whole")
    expected = run(whole)
    first = tiny.context(tmp_path / "first", resume=tmp_path / "resume")
    with pytest.raises(KeyboardInterrupt):
        run(first, batches=interrupted_at(stop))
    second = tiny.context(tmp_path / "second", resume=tmp_path / "resume")
    assert_same(run(second), expected)
    assert (second.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert tiny.notes(second) == [wording("training.continues_after_step", stop=stop)]


def truncated(place: Path) -> None:
    file = place / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def one_bit_flipped(place: Path) -> None:
    file = place / "moments.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def without_state(place: Path) -> None:
    (place / "state.json").unlink()


@pytest.mark.parametrize("damage", [truncated, one_bit_flipped, without_state])
def test_a_broken_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    resume = tmp_path / "resume"
    expected = run(tiny.context(tmp_path / "whole"))
    for stop in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            run(tiny.context(tmp_path / f"until {stop}", resume=resume), batches=interrupted_at(stop))
    damage(resume / "step-00000004")
    last = tiny.context(tmp_path / "last", resume=resume)
    assert_same(run(last), expected)
    broken, continues = tiny.notes(last)
    assert "step-00000004 is broken" in broken
    assert continues == wording("training.continues_after_step_2")


def test_the_last_two_checkpoints_are_kept_and_half_written_ones_removed(tmp_path: Path) -> None:
    resume = tmp_path / "resume"
    (resume / ".part-killed").mkdir(parents=True)
    for stop in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            run(tiny.context(tmp_path / f"until {stop}", resume=resume), batches=interrupted_at(stop))
    assert checkpoints(resume) == ["step-00000003", "step-00000005"]


def test_a_checkpoint_is_there_without_an_interrupt_and_only_safetensors_and_json_are_in_it(tmp_path: Path) -> None:
    expected = run(tiny.context(tmp_path / "whole"))
    context = tiny.context(tmp_path / "crashed")
    tiny.set_training(context, checkpoint_seconds=0)
    with pytest.raises(ZeroDivisionError):
        run(context, batches=interrupted_at(1, ZeroDivisionError))
    assert checkpoints(context.resume) == ["step-00000001"]
    files = {file.name for file in (context.resume / "step-00000001").iterdir()}
    assert files == {"weights.safetensors", "moments.safetensors", "state.json"}
    assert_same(run(tiny.context(tmp_path / "again", resume=context.resume)), expected)


class SlowWriter:
    """Takes the place of the thread that writes: each checkpoint takes `seconds`, and is there after the next step."""

    seconds, steps = 100.0, -1

    def __init__(self, *_: object) -> None:
        self.idle, self.written = True, list[int]()

    def begin(self, metrics: list[dict], *_: object, beside: bool) -> None:
        assert beside
        self.idle = False
        self.written.append(len(metrics))

    def poll(self) -> float | None:
        done, self.idle = not self.idle, True
        return self.seconds if done else None

    def finish(self) -> None:
        pass

    close = finish


def test_checkpoints_that_take_long_to_write_come_more_seldom_than_asked_for_and_that_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, writers = itertools.count(0, 50), list[SlowWriter]()  # seconds between two looks at the clock
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(training, "CheckpointWriter", lambda *_: writers.append(SlowWriter()) or writers[-1])
    context = tiny.context(tmp_path)
    tiny.set_training(context, checkpoint_seconds=60)
    monkeypatch.setattr(training, "_CHECKPOINT_SHARE", 0.25)
    run(context, recipe=tiny.recipe(steps=12))
    assert writers[0].written == [1, 4, 7, 10]
    told = "the next one comes after 400 seconds, not after 60, so that they take no more than 25% of the time"
    assert tiny.notes(context) == [wording("training.checkpoint_takes_seconds_write", told=told)]


def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Lets no file of a checkpoint be written until the event is set."""
    event, real = threading.Event(), checkpoint_writer.write_tensors

    def waiting(*arguments: Any) -> str:
        assert event.wait(60)
        return real(*arguments)

    monkeypatch.setattr(checkpoint_writer, "write_tensors", waiting)
    return event


def test_the_training_goes_on_while_a_checkpoint_is_written_and_one_is_on_its_way_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tiny.context(tmp_path / "whole"))
    may_write, context = held_back(monkeypatch), tiny.context(tmp_path / "first")
    tiny.set_training(context, checkpoint_seconds=0)

    def batches(step: int) -> np.ndarray:
        assert not list(context.resume.glob("step-*"))
        assert len(list(context.resume.glob(".part-*"))) == (step > 0)
        if step == 4:
            may_write.set()
            raise ZeroDivisionError
        return batch(step)

    with pytest.raises(ZeroDivisionError):
        run(context, batches=batches)
    # The weights of step 1, though four steps were made before a byte of them was written.
    assert checkpoints(context.resume) == ["step-00000001"]
    assert_same(run(tiny.context(tmp_path / "again", resume=context.resume)), expected)


def test_an_interrupt_waits_for_the_checkpoint_on_its_way_and_writes_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, context = held_back(monkeypatch), tiny.context(tmp_path)
    tiny.set_training(context, checkpoint_seconds=0)

    def batches(step: int) -> np.ndarray:
        if step == 3:
            may_write.set()
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        run(context, batches=batches)
    assert checkpoints(context.resume) == ["step-00000001", "step-00000003"]


def test_a_full_disk_ends_the_training_at_the_next_step_with_the_error_of_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_writer, "write_tensors", full)
    context, seen = tiny.context(tmp_path), list[int]()
    tiny.set_training(context, checkpoint_seconds=0)

    def batches(step: int) -> np.ndarray:
        while any(thread.name == "checkpoint" for thread in threading.enumerate()):
            time.sleep(0.001)
        seen.append(step)
        return batch(step)

    with pytest.raises(FullDiskError):
        run(context, batches=batches)
    assert seen == [0, 1]
    assert checkpoints(context.resume) == []


def test_where_the_memory_has_no_room_for_copies_the_training_waits_for_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 < machine.available_bytes() <= machine.memory_bytes()
    monkeypatch.setattr(checkpoint_writer, "available_bytes", lambda: 1)
    monkeypatch.setattr(checkpoint_writer, "_copies", None)
    monkeypatch.setattr(training, "_CHECKPOINT_SHARE", math.inf)
    context = tiny.context(tmp_path)
    tiny.set_training(context, checkpoint_seconds=0)

    def batches(step: int) -> np.ndarray:
        assert step == 0 or f"step-{step:08}" in checkpoints(context.resume)
        return batch(step)

    run(context, batches=batches)


def test_a_checkpoint_is_what_safetensors_itself_would_have_written(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(4).bfloat16(),
        "t": torch.randn(6, 2).T,
        "none": torch.zeros(0, 7),
    }
    file = tmp_path / "x.safetensors"
    assert checkpoint_writer.write_tensors(file, tensors, {"rows": "{}"}) == file_digest(file)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "rows": "{}"}
        for name, tensor in tensors.items():
            assert torch.equal(opened.get_tensor(name), tensor)


def test_an_interrupt_in_the_middle_of_an_update_leaves_no_checkpoint_of_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.optim.AdamW.step

    def interrupted(optimizer: torch.optim.AdamW) -> None:
        real(optimizer)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    context = tiny.context(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(context)
    assert not context.resume.exists()


def test_a_checkpoint_of_other_parameters_is_not_used(tmp_path: Path) -> None:
    resume = tmp_path / "resume"
    with pytest.raises(KeyboardInterrupt):
        run(tiny.context(tmp_path / "other", resume=resume), model=tiny.model(layers=3), batches=interrupted_at(2))
    expected = run(tiny.context(tmp_path / "whole"))
    again = tiny.context(tmp_path / "again", resume=resume)
    assert_same(run(again), expected)
    assert tiny.notes(again) == [wording("training.checkpoint_found_other_parameters")]


def test_dropout_is_off(tmp_path: Path) -> None:
    dropping = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    plain = tiny.model("gpt2", layers=2, **dict.fromkeys(dropping, 0.0))
    noisy = tiny.model("gpt2", layers=2, **dropping).train()
    expected = run(tiny.context(tmp_path / "plain"), model=plain)
    assert_same(run(tiny.context(tmp_path / "noisy"), model=noisy), expected)


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    model = tiny.model(layers=2)
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    before = frozen.clone()
    run(tiny.context(tmp_path), model=model)
    assert torch.equal(frozen, before)
    assert frozen.grad is None


def test_weight_decay_acts_on_matrices_only(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    recipe = tiny.recipe(steps=1, optimizer={"lr": 0.5, "weight_decay": 0.1}, schedule={"warmup_steps": 0})

    def flat(inputs, labels, count, _moment):
        return 0 * sum(parameter.sum() for parameter in model.parameters()), {}

    train(model, recipe=recipe, batch=batch, loss=flat, weights={}, context=tiny.context(tmp_path))
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(model.bias.detach(), before["bias"])


def test_gradients_are_clipped_to_the_norm_and_logged_as_they_were(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    # AdamW's step does not see the size of a gradient, but one far below eps does not move it.
    optimizer = {"clip": 1e-6, "eps": 1.0, "weight_decay": 0.0}
    recipe = tiny.recipe(steps=1, optimizer=optimizer, schedule={"warmup_steps": 0})

    def steep(inputs, labels, count, _moment):
        return 50 * model.weight.sum(), {}

    context = tiny.context(tmp_path)
    train(model, recipe=recipe, batch=batch, loss=steep, weights={}, context=context)
    assert metrics(context)[0]["grad_norm"] == pytest.approx(50)
    assert abs(model.weight.item() - before) < 1e-7


def test_a_training_that_diverges_stops_at_that_step_with_a_hint(tmp_path: Path) -> None:
    context = tiny.context(tmp_path)
    recipe = tiny.recipe(optimizer={"lr": 1e30, "clip": 0}, schedule={"warmup_steps": 0})
    with pytest.raises(BoomspecError, match=wording("training.stopped_step_loss_gradient")) as error:
        run(context, recipe=recipe)
    assert "optimizer.lr" in str(error.value)


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    before = model.weight.detach().clone()

    def cusp(inputs, labels, count, _moment):
        return (model.weight * 0).sum().sqrt(), {}

    with pytest.raises(BoomspecError, match=wording("training.step_gradient_norm_nan")):
        train(model, recipe=RECIPE, batch=batch, loss=cusp, weights={}, context=tiny.context(tmp_path))
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(("small", "warns"), [(0.04, True), (0.06, False)])
def test_unbalanced_terms_at_step_0_are_warned_about_once(tmp_path: Path, small: float, warns: bool) -> None:
    model = torch.nn.Linear(2, 2)

    def loss(inputs, labels, count, _moment):
        terms = {"cross_entropy": torch.tensor(1.0), "kl": torch.tensor(small)}
        return (model.weight**2).sum(), terms

    context = tiny.context(tmp_path)
    train(model, recipe=RECIPE, batch=batch, loss=loss, weights={"cross_entropy": 1.0, "kl": 2.0}, context=context)
    warnings = [note for note in tiny.notes(context) if "step 0 differ by more than 10x" in note]
    assert len(warnings) == warns


@pytest.mark.parametrize(("kind", "middle"), [("constant", 1.0), ("linear", 0.55), ("cosine", 0.55)])
def test_the_schedule_rises_to_the_peak_and_ends_at_its_final_share(kind: str, middle: float) -> None:
    recipe = tiny.recipe(steps=14, optimizer={"lr": 2.0}, schedule={"kind": kind, "warmup_steps": 4, "final": 0.1})
    rates = [learning_rate(step, recipe) / 2.0 for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[8] == pytest.approx(middle)  # half way from step 3 to step 13
    assert rates[13] == pytest.approx(1.0 if kind == "constant" else 0.1)


def test_a_schedule_without_warm_up_starts_at_the_peak() -> None:
    at = partial(learning_rate, recipe=tiny.recipe(steps=3, schedule={"warmup_steps": 0, "final": 0.0}))
    assert math.isclose(at(0), 1e-2)
    assert math.isclose(at(2), 0.0, abs_tol=1e-12)
    assert learning_rate(0, tiny.recipe(steps=1, schedule={"warmup_steps": 0})) == pytest.approx(1e-2)


def test_progress_shows_tokens_and_loss_terms(tmp_path: Path) -> None:
    context = tiny.context(tmp_path)
    run(context)
    last = json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[-1])
    assert last["done"] == last["total"] == RECIPE.tokens
    assert last["unit"] == "tokens"
    assert last["loss"] == last["cross_entropy"] == metrics(context)[-1]["loss"]
