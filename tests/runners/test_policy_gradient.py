"""The long-range term of the reverse KL, against the gradient of the reverse KL of whole sequences."""

from __future__ import annotations

import itertools
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from boomspec.core.losses import Losses
from boomspec.core.losses.reverse_kl import ReverseKL
from boomspec.core.tasks import OnPolicy, Sampling
from runners.modeling.hidden_states import LMHead, trunk
from runners.modeling.sampling import Ends, Writer
from runners.training import policy_gradient
from runners.training.on_policy import StudentText, is_on_policy
from runners.training.policy_gradient import credits, log_probabilities, long_range
from tests.runners import tiny
from tests.runners.test_distill import load, metrics, payload, record
from tests.runners.test_on_policy import changed, folders, run, text_of

__all__ = ["folders"]
V = 3  # vocabulary of the tables below
LONG = changed(share=1.0, long_range=1.0)
REVERSE = Losses(reverse_kl=ReverseKL())


def test_credits_are_means_of_the_later_rewards() -> None:
    generator = torch.Generator().manual_seed(0)
    q, p = -torch.rand(2, 5, generator=generator), -torch.rand(2, 5, generator=generator)
    found = credits(q, p)
    for row, at in itertools.product(range(2), range(5)):
        later = [float(p[row, t] - q[row, t]) for t in range(at + 1, 5)]
        assert found[row, at] == pytest.approx(np.mean(later) if later else 0.0, abs=1e-6)
    weights = q.exp() / (0.2 * p.exp() + 0.8 * q.exp())
    assert torch.allclose(credits(q, p, 0.2), found * weights)


def test_a_token_that_was_not_drawn_has_no_reward() -> None:
    generator = torch.Generator().manual_seed(0)
    q, p = -torch.rand(2, 5, generator=generator), -torch.rand(2, 5, generator=generator)
    drawn = torch.tensor([[True, True, False, True, True]]).expand(2, -1)
    found, without = credits(q, p, drawn_BN=drawn), credits(q[:, [0, 1, 3, 4]], p[:, [0, 1, 3, 4]])
    assert torch.equal(found[:, [0, 1, 3, 4]], without)
    assert torch.equal(credits(q, p, drawn_BN=torch.ones_like(q, dtype=torch.bool)), credits(q, p))


def test_what_a_text_begins_with_does_not_count_for_the_credits(folders: dict[str, Path]) -> None:
    ends = Ends(0, (1,), tiny.VOCABULARY)
    with patch.object(Writer, "cut", lambda self, p_BV: torch.where(torch.arange(p_BV.shape[-1]) == 0, 0.5, p_BV)):
        text = text_of(folders, LONG, ends=ends)
        batch = torch.from_numpy(text.batch(0))
    tokens, prompt = torch.where(batch < 0, -2 - batch, batch), LONG.prompt_tokens
    drawn = tokens[:, prompt:] != 1
    assert not drawn.all()
    logs = [log_probabilities(of, tokens, prompt) for of in (text.student, text.teacher)]
    expected = credits(*logs, drawn_BN=drawn).float()
    assert torch.allclose(text._credits_of(0, 8)[:, prompt - 1 :], expected, atol=1e-5)
    assert not torch.allclose(expected, credits(*logs).float(), atol=1e-3)


class Tables:
    """Distributions of two tokens, the second given the first: as free as they can be."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(V, generator=generator, dtype=torch.float64, requires_grad=True)
        self.second = torch.randn(V, V, generator=generator, dtype=torch.float64, requires_grad=True)

    def logs(self) -> tuple[Tensor, Tensor]:
        return self.first.log_softmax(-1), self.second.log_softmax(-1)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_both_parts_together_are_the_gradient_of_the_reverse_kl_of_sequences(share: float) -> None:
    """In expectation over all sequences of two tokens, for which the mean of what is later is a sum.

    Where the teacher writes along, the weight of the first token makes up for its own distribution; that of the states
    in which the second is written is not made up for, as in the paper, so only its first distribution is compared.
    """
    student, teacher = Tables(0), Tables(1)
    (q1, q2), (p1, p2) = student.logs(), teacher.logs()
    exact = sum(
        (q1[a] + q2[a, b]).exp() * (q1[a] + q2[a, b] - p1[a].detach() - p2[a, b].detach())
        for a, b in itertools.product(range(V), range(V))
    )
    expected = torch.autograd.grad(exact, [student.first, student.second], retain_graph=True)
    surrogate = torch.zeros((), dtype=torch.float64)
    single1 = (q1.exp() * (q1 - p1.detach())).sum()
    for a, b in itertools.product(range(V), range(V)):
        drawn1 = share * p1[a].exp() + (1 - share) * q1[a].exp()
        # The second token comes from the student: its reward's expectation is then that of the sequences' KL.
        probability = (drawn1 * q2[a, b].exp()).detach()
        of = credits(
            torch.stack([q1[a], q2[a, b]]).detach()[None], torch.stack([p1[a], p2[a, b]]).detach()[None], share
        )
        assert of[0, 1] == 0  # nothing is behind the last token
        single2 = (q2[a].exp() * (q2[a] - p2[a].detach())).sum()
        surrogate = surrogate + probability * (single1 + single2 - of[0, 0] * q1[a])
    found = torch.autograd.grad(surrogate, [student.first, student.second])
    assert torch.allclose(found[0], expected[0])
    if not share:
        assert torch.allclose(found[1], expected[1])


def test_without_the_long_range_part_the_gradient_is_another() -> None:
    student, teacher = Tables(0), Tables(1)
    (q1, q2), (p1, p2) = student.logs(), teacher.logs()
    joint = q1[:, None] + q2
    exact = (joint.exp() * (joint - (p1[:, None] + p2).detach())).sum()
    single = (q1.exp() * (q1 - p1.detach())).sum()
    expected, found = (torch.autograd.grad(value, student.first, retain_graph=True)[0] for value in (exact, single))
    assert not torch.allclose(found, expected, atol=1e-2)


def test_the_term_is_that_of_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_gradient, "CHUNK_LOGITS", 3 * tiny.VOCABULARY)
    model, generator = tiny.model(layers=2), torch.Generator().manual_seed(0)
    tokens = torch.randint(tiny.VOCABULARY, (2, 9), generator=generator)
    labels, credit = tokens[:, 1:].clone(), torch.randn(2, 8, generator=generator)
    labels[:, :3] = -100
    parameters = list(model.parameters())
    hidden = trunk(model, tokens[:, :-1])
    found = long_range(LMHead(model), hidden, labels, credit, count=7)
    log_q = model(tokens[:, :-1]).logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    expected = -(credit * log_q)[:, 3:].sum() / 7
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, parameters, allow_unused=True) for value in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert torch.allclose(one, other, atol=1e-6)
    assert torch.allclose(log_probabilities(model, tokens, 4), log_q[:, 3:], atol=1e-5)


def test_the_credits_of_a_batch_are_those_of_its_tokens(folders: dict[str, Path]) -> None:
    text = text_of(folders, LONG)
    batch = torch.from_numpy(text.batch(0))
    prompt = LONG.prompt_tokens
    tokens = torch.where(batch < 0, -2 - batch, batch)
    logs = [log_probabilities(of, tokens, prompt) for of in (text.student, text.teacher)]
    expected = credits(*logs).float()
    assert torch.allclose(text._credits_of(0, 8)[:, prompt - 1 :], expected, atol=1e-5)
    assert torch.equal(text._credits_of(5, 2), text._credits_of(0, 8)[5:7])
    assert (text._credits_of(0, 8)[:, : prompt - 1] == 0).all()


def test_a_training_has_the_term_in_its_total_and_goes_on_after_an_interrupt(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    settings = OnPolicy(share=0.5, prompt_tokens=4, new_tokens=9, sampling=Sampling(), long_range=1.0)
    of = record(on_policy=settings, losses=REVERSE)
    alone = run(tmp_path / "alone" / "student", folders, of)
    rows = metrics(alone)
    for row in rows:
        assert (row["long_range"] != 0) == is_on_policy(0, int(row["step"]), 0.5)
        assert row["loss"] == pytest.approx(row["reverse_kl"] + row["long_range"], rel=1e-5)
    real = StudentText.batch

    def stopping(text: StudentText, step: int) -> object:
        if step == 4:
            raise KeyboardInterrupt
        return real(text, step)

    with patch.object(StudentText, "batch", stopping), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut" / "first", folders, of)
    again = run(tmp_path / "cut" / "second", folders, of)
    assert payload(again) == payload(alone)
    whole = run(tmp_path / "whole" / "student", folders, of, micro_batch=8)
    for row, expected in zip(metrics(whole), rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_student_learns_to_write_what_its_teacher_finds_probable(tmp_path: Path, folders: dict[str, Path]) -> None:
    recipe = {"steps": 40, "optimizer": {"lr": 3e-3}}
    made = run(tmp_path / "student", folders, record(on_policy=LONG, losses=REVERSE, recipe=recipe))
    values = [row["reverse_kl"] for row in metrics(made)]
    assert np.mean(values[-8:]) < 0.8 * np.mean(values[:8])
    assert load(made.path / "model") is not None
