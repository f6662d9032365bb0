"""Losses on pairs of places: each against a formula of its own in float64, on real models and chosen pairs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from boomspec.core.losses import LOSSES
from runners.modeling.hidden_states import FINAL_NORM, capture, trunk
from runners.tasks.distill import distillation_loss, loss_parameters
from runners.training.losses import NO_LABEL, pair_loss, state_loss
from runners.training.sites import sites_of
from tests.runners import tiny
from tests.runners.pair_losses import (
    FAMILIES,
    KEPT,
    LAYERS,
    OF_ATTENTION,
    OF_POSITIONS,
    PAIRED,
    RELATIONS,
    TRAINED,
    alone,
    assert_close,
    gradients,
    labels_of,
    positions_of,
)

# Of x and y, D numbers each: the formula again, of one position.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hidden_cosine": lambda x, y: 1 - (x * y).sum() / ((x * x).sum() * (y * y).sum()) ** 0.5,
    "hidden_mse": lambda x, y: sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / len(x),
    "hidden_nmse": lambda x, y: sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (y * y).sum(),
    "hidden_smooth_l1": lambda x, y: torch.stack([huber(abs(a - b), 0.4) for a, b in zip(x, y, strict=True)]).mean(),
    "log_norm": lambda x, y: (torch.log((x * x).sum()) / 2 - torch.log((y * y).sum()) / 2) ** 2,
}
ZERO_WHEN_EQUAL = [kind for kind in PAIRED if kind not in TRAINED]


def huber(size: Tensor, beta: float) -> Tensor:
    return size**2 / (2 * beta) if size < beta else size - beta / 2


def test_every_loss_of_single_positions_has_its_formula_here() -> None:
    assert {*OF_POSITIONS} == FORMULAS.keys() | {"update_direction", "vid"}


@pytest.mark.parametrize("kind", FORMULAS)
def test_value_and_gradient_are_those_of_the_formula_in_float64(kind: str) -> None:
    torch.manual_seed(0)
    labels = labels_of(4, 7)
    student, teacher = ({point: torch.randn(4, 7, 5) for point in (0, FINAL_NORM)} for _ in range(2))
    for state in student.values():
        state.requires_grad_()
    pairs = [(0, 0), (FINAL_NORM, FINAL_NORM)]
    loss, terms = state_loss(student, teacher, labels, pairs={kind: pairs}, losses=alone(kind), count=20)
    found = torch.autograd.grad(loss, list(student.values()))

    exact = {point: state.detach().double().requires_grad_() for point, state in student.items()}
    positions = positions_of(labels)
    wanted = sum(FORMULAS[kind](exact[s][b, t], teacher[r][b, t].double()) for s, r in pairs for b, t in positions) / 40
    assert_close(terms[kind], wanted.detach())
    assert_close(loss.detach(), 1.5 * wanted.detach())
    for ours, theirs in zip(found, torch.autograd.grad(1.5 * wanted, list(exact.values())), strict=True):
        assert_close(ours, theirs)
        assert (ours[labels == NO_LABEL] == 0).all()


def test_the_update_direction_is_that_of_output_less_input_of_layer_and_block() -> None:
    student, teacher = tiny.model(layers=3, seed=1), tiny.model(layers=LAYERS, seed=2)
    labels = labels_of(4, 7)
    inputs = labels.clamp(min=0)
    _, terms = distillation_loss(student, [teacher], alone("update_direction"), KEPT)(inputs, labels, 20)
    with capture(student, ["embedding", 0, 1, 2]) as x, capture(teacher, ["embedding", 0, 1, 2, 3]) as y:
        trunk(student, inputs), trunk(teacher, inputs)
    updates = [  # blocks 0 1 | 2 | 3
        (x[0] - x["embedding"], y[1] - y["embedding"]),
        (x[1] - x[0], y[2] - y[1]),
        (x[2] - x[1], y[3] - y[2]),
    ]
    cosine = FORMULAS["hidden_cosine"]
    wanted = [cosine(a[b, t].double(), c[b, t].double()) for a, c in updates for b, t in positions_of(labels)]
    assert_close(terms["update_direction"], sum(wanted).detach() / 60)


def test_vid_is_the_likelihood_under_a_gaussian_and_trains_its_mean_and_variance() -> None:
    torch.manual_seed(0)
    student, teacher = (tiny.model(layers=3, seed=seed) for seed in (1, 2))
    losses, labels = alone("vid", pairs="last", variance=2.0), labels_of(4, 7)
    inputs, kept = labels.clamp(min=0), range(3)
    trained = loss_parameters(losses, student, seed=0)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    loss, terms = distillation_loss(student, [teacher], losses, kept, parameters=trained)(inputs, labels, 20)
    loss.backward()

    matrix, spread = (p.detach().double().requires_grad_() for _, p in sorted(trained.named_parameters()))
    x, y = trunk(student, inputs).double(), trunk(teacher, inputs).double()
    deviation = (torch.log(1 + torch.exp(spread)) + 1e-5).sqrt()
    density = torch.distributions.Normal(x @ matrix.T, deviation).log_prob(y) + torch.tensor(torch.pi * 2).log() / 2
    wanted = -sum(density[b, t].mean() for b, t in positions_of(labels)) / 20
    assert_close(terms["vid"], wanted.detach())
    of_matrix, of_spread = torch.autograd.grad(1.5 * wanted, [matrix, spread])
    assert_close(trained.of("vid", 0)["mean"].grad, of_matrix)
    assert_close(trained.of("vid", 0)["spread"].grad, of_spread)
    untouched = loss_parameters(losses, student, seed=0).of("vid", 0)
    assert_close(torch.nn.functional.softplus(untouched["spread"]) + 1e-5, torch.full((16,), 2.0))


@pytest.mark.parametrize("kind", FORMULAS)
def test_states_of_zeros_have_finite_losses_and_gradients(kind: str) -> None:
    labels = torch.zeros((2, 3), dtype=torch.long)
    for x, y in ((torch.zeros(2, 3, 5), torch.randn(2, 3, 5)), (torch.randn(2, 3, 5), torch.zeros(2, 3, 5))):
        x.requires_grad_()
        loss, _ = state_loss({0: x}, {0: y}, labels, pairs={kind: [(0, 0)]}, losses=alone(kind), count=6)
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", PAIRED)
def test_micro_batches_add_up_however_they_are_cut(kind: str, family: str) -> None:
    fields = FAMILIES[family]
    student, teacher = (tiny.model(family, layers=n, seed=n, **fields) for n in (3, LAYERS))
    labels = labels_of(5, 9)
    inputs, count, losses = labels.clamp(min=0), len(positions_of(labels)), alone(kind)
    trained = loss_parameters(losses, student, seed=0)
    loss = distillation_loss(student, [teacher], losses, KEPT, parameters=trained)
    whole, terms = loss(inputs, labels, count)
    whole.backward()
    expected = [gradients(model) for model in (student, trained) if model is not None]
    parts = [loss(inputs[rows], labels[rows], count) for rows in (slice(0, 2), slice(2, 3), slice(3, 5))]
    for part, _ in parts:
        part.backward()
    assert_close(sum(values[kind] for _, values in parts), terms[kind])
    assert terms[kind] > 0
    for model, wanted in zip([student] if trained is None else [student, trained], expected, strict=True):
        found = gradients(model)
        assert found.keys() == wanted.keys()
        largest = max(float(gradient.abs().max()) for gradient in wanted.values())
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("kind", ZERO_WHEN_EQUAL)
def test_a_student_that_is_its_teacher_has_no_loss(kind: str) -> None:
    model, labels = tiny.model(layers=LAYERS), labels_of(4, 9)
    loss = distillation_loss(model, [model], alone(kind), range(LAYERS))
    assert loss(labels.clamp(min=0), labels, 12)[1][kind] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in OF_POSITIONS if kind not in TRAINED])
def test_a_projection_maps_the_states_of_the_student_and_is_the_identity_at_first(kind: str) -> None:
    student, teacher = tiny.model(layers=3, seed=1), tiny.model(layers=LAYERS, seed=2)
    labels = labels_of(4, 9)
    inputs, losses = labels.clamp(min=0), alone(kind, projection=True)
    trained = loss_parameters(losses, student, seed=0)
    loss = distillation_loss(student, [teacher], losses, KEPT, parameters=trained)
    plain = distillation_loss(student, [teacher], alone(kind), KEPT)(inputs, labels, 12)[1][kind]
    assert loss(inputs, labels, 12)[1][kind] == plain

    sites = sites_of(losses.terms()[kind], KEPT, LAYERS)
    assert len(list(trained.parameters())) == len(sites)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.copy_(torch.randn_like(parameter))
    total, terms = loss(inputs, labels, 12)
    total.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in trained.parameters())
    points = ["embedding", *range(4), FINAL_NORM]
    with capture(student, points[:4] + points[-1:]) as x, capture(teacher, points) as y:
        trunk(student, inputs), trunk(teacher, inputs)
    value = 0.0
    for number, site in enumerate(sites):
        matrix = trained.of(kind, number)["projection"]
        mapped = {what: x[place] @ matrix.T for what, place in site.items() if not what.startswith("teacher_")}
        read = {**mapped, **{what: y[place] for what, place in site.items() if what not in mapped}}
        values = losses.terms()[kind].formula(*(read[what] for what in losses.terms()[kind].reads))
        value += sum(values[b, t] for b, t in positions_of(labels)) / (12 * len(sites))
    assert_close(terms[kind], value.detach())


def test_the_pairs_are_all_the_last_or_those_of_a_list() -> None:
    def points(kind: str = "log_norm", **fields: object) -> list:
        sites = sites_of(LOSSES[kind](**fields), KEPT, LAYERS)
        return [(site["states"], site["teacher_states"]) for site in sites]

    every = [("embedding", "embedding"), (0, 1), (1, 2), (FINAL_NORM, FINAL_NORM)]
    assert points() == points(pairs="all") == points(pairs=None) == every
    assert points(pairs="last") == every[3:]
    assert points(pairs=(1, 0)) == points(pairs=(0, 1)) == every[1:3]
    assert points(pairs=(1,), embedding=True) == [every[0], every[2]]
    assert points(pairs="last", final_norm=False) == [(2, 3)]
    assert LOSSES["log_norm"](pairs="all") == LOSSES["log_norm"]()
    assert points("update_direction") == [(0, 1), (1, 2), (2, 3)]
    for given, count in (({}, 1), ({"pairs": "all"}, 3), ({"pairs": (0, 2)}, 2)):
        assert len(LOSSES["minilm"](**given).layers(3)) == count


@pytest.mark.parametrize("pairs", [(), (1, 1), (-1,), "first"])
@pytest.mark.parametrize("kind", ["log_norm", "minilm"])
def test_pairs_that_are_none_are_refused(kind: str, pairs: object) -> None:
    with pytest.raises(ValidationError):
        LOSSES[kind](pairs=pairs)


def test_what_no_loss_reads_is_not_captured() -> None:
    labels = labels_of(4, 9)
    taken = {
        kind: {place.part for site in sites_of(LOSSES[kind](), KEPT, LAYERS) for place in site.values()}
        for kind in OF_ATTENTION
    }
    assert taken["attention_maps"] == {"queries", "keys", "frame"}
    assert taken["minilm"] == taken["minilmv2"] == {"queries", "keys", "values", "frame"}
    with pytest.raises(KeyError):  # a term reads its own places alone
        pair_loss(
            {}, {}, labels, sites={"log_norm": [{"states": 0, "teacher_states": 0}]}, losses=alone("log_norm"), count=1
        )
    assert RELATIONS
