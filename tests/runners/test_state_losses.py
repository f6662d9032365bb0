"""Losses that read hidden states: each against a formula of its own in float64, on real models and chosen pairs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from boomspec.core.losses import LOSSES, Loss, Losses, StateLoss
from runners.modeling.hidden_states import FINAL_NORM, hidden_pairs
from runners.tasks.distill import distillation_loss
from runners.training.losses import NO_LABEL, state_loss
from tests.runners import tiny

KEPT, LAYERS = (0, 2, 3), 4
# Of x and y, D numbers each: the formula again, of one position.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hidden_cosine": lambda x, y: 1 - (x * y).sum() / ((x * x).sum() * (y * y).sum()) ** 0.5,
    "hidden_mse": lambda x, y: sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / len(x),
    "hidden_nmse": lambda x, y: sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (y * y).sum(),
    "hidden_smooth_l1": lambda x, y: torch.stack([huber(abs(a - b), 0.4) for a, b in zip(x, y, strict=True)]).mean(),
    "log_norm": lambda x, y: (torch.log((x * x).sum()) / 2 - torch.log((y * y).sum()) / 2) ** 2,
}
FIELDS = {"hidden_smooth_l1": {"beta": 0.4}}


def huber(size: Tensor, beta: float) -> Tensor:
    return size**2 / (2 * beta) if size < beta else size - beta / 2


def term(kind: str, **fields: object) -> Loss:
    return LOSSES[kind](weight=1.5, **{**FIELDS.get(kind, {}), **fields})


def alone(kind: str, **fields: object) -> Losses:
    return Losses(**{kind: term(kind, **fields)})


def labels_of(rows: int, columns: int) -> Tensor:
    """A third of the positions have no label; the first sequence has none at all."""
    numbers = torch.Generator().manual_seed(1)
    labels = torch.randint(tiny.VOCABULARY, (rows, columns), generator=numbers)
    labels = labels.masked_fill(torch.rand((rows, columns), generator=numbers) < 0.33, NO_LABEL)
    labels[0] = NO_LABEL
    return labels


def assert_close(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    assert (actual.double() - expected.double()).abs().max() <= relative * expected.abs().max()


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def test_every_loss_of_states_has_its_formula_here() -> None:
    assert {kind for kind, loss in LOSSES.items() if issubclass(loss, StateLoss)} == FORMULAS.keys()


@pytest.mark.parametrize("kind", FORMULAS)
def test_value_and_gradient_are_those_of_the_formula_in_float64(kind: str) -> None:
    torch.manual_seed(0)
    labels = labels_of(3, 7)
    student, teacher = ({point: torch.randn(3, 7, 5) for point in (0, FINAL_NORM)} for _ in range(2))
    for state in student.values():
        state.requires_grad_()
    pairs = [(0, 0), (FINAL_NORM, FINAL_NORM)]
    loss, terms = state_loss(student, teacher, labels, pairs={kind: pairs}, losses=alone(kind), count=20)
    found = torch.autograd.grad(loss, list(student.values()))

    exact = {point: state.detach().double().requires_grad_() for point, state in student.items()}
    positions = (labels != NO_LABEL).nonzero().tolist()
    wanted = sum(FORMULAS[kind](exact[s][b, t], teacher[r][b, t].double()) for s, r in pairs for b, t in positions) / 40
    assert_close(terms[kind], wanted.detach())
    assert_close(loss.detach(), 1.5 * wanted.detach())
    for ours, theirs in zip(found, torch.autograd.grad(1.5 * wanted, list(exact.values())), strict=True):
        assert_close(ours, theirs)
        assert (ours[labels == NO_LABEL] == 0).all()


@pytest.mark.parametrize("kind", FORMULAS)
def test_states_of_zeros_have_finite_losses_and_gradients(kind: str) -> None:
    labels = torch.zeros((2, 3), dtype=torch.long)
    for x, y in ((torch.zeros(2, 3, 5), torch.randn(2, 3, 5)), (torch.randn(2, 3, 5), torch.zeros(2, 3, 5))):
        x.requires_grad_()
        loss, _ = state_loss({0: x}, {0: y}, labels, pairs={kind: [(0, 0)]}, losses=alone(kind), count=6)
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("kind", FORMULAS)
def test_micro_batches_add_up_and_a_student_that_is_its_teacher_has_no_loss(kind: str, family: str) -> None:
    student, teacher = tiny.model(family, layers=3, seed=1), tiny.model(family, layers=LAYERS, seed=2)
    inputs, labels = labels_of(5, 9).clamp(min=0), labels_of(5, 9)
    count = int((labels != NO_LABEL).sum())
    loss = distillation_loss(student, teacher, alone(kind), KEPT)
    whole, terms = loss(inputs, labels, count)
    whole.backward()
    expected = gradients(student)
    parts = [loss(inputs[rows], labels[rows], count) for rows in (slice(0, 2), slice(2, 3), slice(3, 5))]
    for part, _ in parts:
        part.backward()
    assert_close(sum(values[kind] for _, values in parts), terms[kind])
    assert terms[kind] > 0
    for name, gradient in gradients(student).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)

    _, same = distillation_loss(teacher, teacher, alone(kind), range(LAYERS))(inputs, labels, count)
    assert same[kind] == pytest.approx(0, abs=1e-6)


def test_the_pairs_are_all_the_last_or_those_of_a_list() -> None:
    def points(**fields: object) -> list:
        loss = term("log_norm", **fields)
        return hidden_pairs(KEPT, LAYERS, chosen=loss.layers(3), embedding=loss.embedding, final_norm=loss.final_norm)

    every = [("embedding", "embedding"), (0, 1), (1, 2), ("final norm", "final norm")]
    assert points() == points(pairs="all") == points(pairs=None) == every
    assert points(pairs="last") == every[3:]
    assert points(pairs=(1, 0)) == points(pairs=(0, 1)) == every[1:3]
    assert points(pairs=(1,), embedding=True) == [every[0], every[2]]
    assert points(pairs="last", final_norm=False) == [(2, 3)]
    assert term("log_norm", pairs="all") == term("log_norm")
    assert [term("log_norm", pairs=pairs).pair_count(3) for pairs in (None, "last", (0, 1))] == [4, 1, 2]


@pytest.mark.parametrize("pairs", [(), (1, 1), (-1,), "first"])
def test_pairs_that_are_none_are_refused(pairs: object) -> None:
    with pytest.raises(ValidationError):
        term("log_norm", pairs=pairs)
