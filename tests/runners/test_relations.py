"""Losses on relations between the positions of a sequence, against loops over pairs and triples in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from runners.tasks.distill import loss_parameters
from runners.training.losses import NO_LABEL, state_loss
from tests.runners import tiny
from tests.runners.pair_losses import RELATIONS, alone, assert_close, labels_of

WIDTH = 16


def rkd(x: Tensor, y: Tensor) -> Tensor:
    count = len(x)

    def distances(z: Tensor) -> Tensor:
        every = torch.stack([torch.stack([length(a - b) for b in z]) for a in z])
        return every / (every.sum() / (count * (count - 1)))

    def angles(z: Tensor) -> Tensor:
        return torch.stack(
            [cosine(z[i] - z[j], z[k] - z[j]) for j in range(count) for i in range(count) for k in range(count)]
        )

    return F.smooth_l1_loss(distances(x), distances(y)) + 2 * F.smooth_l1_loss(angles(x), angles(y))


def length(z: Tensor) -> Tensor:
    return (z * z).sum().sqrt() if z.any() else (z * z).sum()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (length(a) * length(b)) if a.any() and b.any() else (a * b).sum()


def spkd(x: Tensor, y: Tensor) -> Tensor:
    def rows(z: Tensor) -> Tensor:
        return torch.stack([row / (row * row).sum().sqrt() for row in z @ z.T])

    return ((rows(x) - rows(y)) ** 2).sum() / len(x) ** 2


def cc(x: Tensor, y: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        product = cosine(a, b)
        return sum(math.exp(-0.8) * 0.8**p / math.factorial(p) * product**p for p in range(3))

    return (
        sum((kernel(x[i], x[j]) - kernel(y[i], y[j])) ** 2 for i in range(len(x)) for j in range(len(x))) / len(x) ** 2
    )


def nst(x: Tensor, y: Tensor) -> Tensor:
    f, g = ([z[:, c] / length(z[:, c]) for c in range(z.shape[1])] for z in (x, y))

    def mean(one: list[Tensor], other: list[Tensor]) -> Tensor:
        return sum((a @ b) ** 2 for a in one for b in other) / (len(one) * len(other))

    return mean(f, f) + mean(g, g) - 2 * mean(f, g)


def cka(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(0), y - y.mean(0)
    return 1 - ((y.T @ x) ** 2).sum() / (((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum()).sqrt()


def attention_transfer(x: Tensor, y: Tensor) -> Tensor:
    a, b = ((z * z).sum(1) for z in (x, y))
    return ((a / length(a) - b / length(b)) ** 2).sum() / len(x)


def crd(x: Tensor, y: Tensor, heads: dict[str, Tensor]) -> Tensor:
    def embedded(z: Tensor, whose: str) -> Tensor:
        made = heads[f"{whose}_weight"] @ z + heads[f"{whose}_bias"]
        return made / length(made)

    count, value = len(x), torch.zeros((), dtype=torch.float64)
    for i in range(count):
        for j in range(count):
            score = torch.exp(embedded(x[i], "student") @ embedded(y[j], "teacher") / 0.07)
            h = score / (score + (count - 1) / count)
            value = value - torch.log(h if i == j else 1 - h)
    return value / count


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "rkd": rkd, "spkd": spkd, "cc": cc, "nst": nst, "cka": cka, "attention_transfer": attention_transfer, "crd": crd,
}  # fmt: skip


def test_every_relation_has_its_formula_here() -> None:
    assert {*RELATIONS} == FORMULAS.keys()


def states(*, seed: int = 0) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 9, WIDTH, generator=numbers) for _ in range(2))
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("kind", RELATIONS)
def test_value_and_gradients_are_those_of_loops_in_float64(kind: str) -> None:
    """A sequence counts with its labelled positions; the first has none, the second one, and so no relation."""
    student, teacher = states()
    labels, losses = labels_of(4, 9), alone(kind)
    trained = loss_parameters(losses, tiny.model(layers=1), seed=3)
    options = {"pairs": {kind: [(0, 0)]}, "losses": losses, "count": 20, "parameters": trained}
    loss, terms = state_loss({0: student}, {0: teacher}, labels, **options)
    loss.backward()

    exact = student.detach().double().requires_grad_()
    own = (
        {}
        if trained is None
        else {name: p.detach().double().requires_grad_() for name, p in trained.of(kind, 0).items()}
    )
    wanted = torch.zeros((), dtype=torch.float64)
    for b in (2, 3):
        index = (labels[b] != NO_LABEL).nonzero().squeeze(-1)
        wanted = wanted + len(index) * FORMULAS[kind](
            exact[b, index], teacher[b, index].double(), *([own] if own else [])
        )
    wanted = wanted / 20
    assert_close(terms[kind], wanted.detach())
    assert_close(loss.detach(), 1.5 * wanted.detach())
    of_states, *of_own = torch.autograd.grad(1.5 * wanted, [exact, *own.values()])
    assert_close(student.grad, of_states, 1e-4)
    assert (student.grad[labels == NO_LABEL] == 0).all()
    for name, gradient in zip(own, of_own, strict=True):
        assert_close(trained.of(kind, 0)[name].grad, gradient, 1e-4)


@pytest.mark.parametrize("kind", RELATIONS)
def test_more_positions_than_allowed_are_taken_evenly(kind: str) -> None:
    student, teacher = states()
    labels = torch.zeros((4, 9), dtype=torch.long)
    labels[:, 1] = NO_LABEL
    losses = alone(kind, positions=3)
    trained = loss_parameters(losses, tiny.model(layers=1), seed=3)
    options = {"pairs": {kind: [(0, 0)]}, "losses": losses, "parameters": trained}
    _, some = state_loss({0: student}, {0: teacher}, labels, count=8, **options)
    taken = [0, 3, 6]  # of 8 labelled positions the numbers 0, 2 and 5
    _, alone_taken = state_loss(
        {0: student[:, taken]}, {0: teacher[:, taken]}, torch.zeros((4, 3), dtype=torch.long), count=3, **options
    )
    assert_close(some[kind], alone_taken[kind])


@pytest.mark.parametrize("kind", RELATIONS)
@pytest.mark.parametrize("zeros", ["student", "teacher", "both"])
def test_equal_states_and_zeros_have_finite_losses_and_gradients(kind: str, zeros: str) -> None:
    student, teacher = (
        torch.zeros(1, 4, WIDTH) if zeros in (name, "both") else torch.randn(1, 4, WIDTH)
        for name in ("student", "teacher")
    )
    with torch.no_grad():
        student[0, 1] = student[0, 0]
    student.requires_grad_()
    losses = alone(kind)
    trained = loss_parameters(losses, tiny.model(layers=1), seed=3)
    options = {"pairs": {kind: [(0, 0)]}, "losses": losses, "count": 4, "parameters": trained}
    loss, _ = state_loss({0: student}, {0: teacher}, torch.zeros((1, 4), dtype=torch.long), **options)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_without_gradients_only_the_value_is_computed() -> None:
    student, teacher = states()
    options = {"pairs": {"spkd": [(0, 0)]}, "losses": alone("spkd"), "count": 9}
    with torch.no_grad():
        value, _ = state_loss({0: student}, {0: teacher}, labels_of(4, 9), **options)
    loss, _ = state_loss({0: student}, {0: teacher}, labels_of(4, 9), **options)
    assert not value.requires_grad
    assert value == loss.detach()
    (3 * loss).backward()
    scaled, student.grad = student.grad, None
    state_loss({0: student}, {0: teacher}, labels_of(4, 9), **options)[0].backward()
    assert_close(scaled, 3 * student.grad)
