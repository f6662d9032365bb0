"""Every loss of logits against a formula of its own in float64: value, gradient, limits, and through the head."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from boomspec.core.losses import LOSSES, CrossEntropy, Loss, Losses
from boomspec.core.losses.adaptive_kl import AdaptiveKL
from boomspec.core.losses.alpha_beta import AlphaBeta
from boomspec.core.losses.closed_form import Softmax
from boomspec.core.losses.dkd import DKD
from boomspec.core.losses.jsd import JSD
from boomspec.core.losses.kl import KL
from boomspec.core.losses.logit_mse import LogitMSE
from boomspec.core.losses.reverse_kl import ReverseKL
from boomspec.core.losses.skew import SkewKL, SkewReverseKL
from boomspec.core.losses.taid import TAID
from boomspec.core.losses.truncated import TopKKL, TopPKL, nucleus
from boomspec.core.losses.tvd import TVD
from runners.training.head import head_loss
from runners.training.losses import NO_LABEL
from runners.training.moment import Moment
from runners.training.teachers import gradient_of
from tests.runners.instruments import LiveBytes
from tests.runners.test_head import COUNT, assert_near, labels, logits_in_float64, made_head, states

V, N = 37, 9
T_OF_TAID = 0.55


# --- the formulas once more: one position at a time, on probabilities, in float64 ----------------------


def softmax(logits: Tensor, loss: Any) -> Tensor:
    if getattr(loss, "standardise", None):
        mean = logits.sum() / len(logits)
        logits = (logits - mean) / (((logits - mean) ** 2).sum() / len(logits)).sqrt()
    powers = torch.exp((logits - logits.max()) / loss.temperature)
    return powers / powers.sum()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))


def merged(p: Tensor, apart: list[int]) -> Tensor:
    """The probabilities of these tokens, and that of all others."""
    return torch.cat([p[apart], (p.sum() - p[apart].sum()).unsqueeze(0)])


def head_of(p: Tensor, mass: float) -> list[int]:
    order, found, total = sorted(range(len(p)), key=lambda i: -p[i].item()), [], 0.0
    while total < mass and len(found) < len(p):
        found.append(order[len(found)])
        total += p[found[-1]].item()
    return found


def cross_entropy(loss: Any, z: Tensor, _t: Tensor, y: int) -> Tensor:
    return torch.log(torch.exp(z - z.max()).sum()) - (z[y] - z.max())


def kl(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    return divergence(softmax(t, loss), softmax(z, loss))


def reverse_kl(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    return divergence(softmax(z, loss), softmax(t, loss))


def jsd(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    p, q, b = softmax(t, loss), softmax(z, loss), loss.beta
    m = b * p + (1 - b) * q
    return b * divergence(p, m) + (1 - b) * divergence(q, m)


def tvd(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    p, q = softmax(t, loss), softmax(z, loss)
    return torch.where(p > q, p - q, torch.zeros(())).sum()  # what p has more, which is what q has more


def skew_kl(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    p, q = softmax(t, loss), softmax(z, loss)
    return divergence(p, loss.alpha * p + (1 - loss.alpha) * q)


def skew_reverse_kl(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    p, q = softmax(t, loss), softmax(z, loss)
    return divergence(q, (1 - loss.alpha) * p + loss.alpha * q)


def adaptive_kl(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    p, q = softmax(t, loss), softmax(z, loss)
    gap = [abs((a - b).item()) for a, b in zip(p, q, strict=True)]
    share = sum(gap[i] for i in head_of(p, loss.mu)) / sum(gap)
    return share * divergence(p, q) + (1 - share) * divergence(q, p)


def alpha_beta(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    p, q, a, b = softmax(t, loss), softmax(z, loss), loss.alpha, loss.beta
    return -sum(
        x**a * w**b - a / (a + b) * x ** (a + b) - b / (a + b) * w ** (a + b) for x, w in zip(p, q, strict=True)
    ) / (a * b)


def taid(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    assert not loss.standardise
    between = softmax((1 - T_OF_TAID) * z.detach() + T_OF_TAID * t, loss)
    return divergence(between, softmax(z, loss))


def dkd(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    p, q, others = softmax(t, loss), softmax(z, loss), [i for i in range(len(z)) if i != y]
    pair_p, pair_q = merged(p, [y]), merged(q, [y])
    rest_p, rest_q = p[others] / p[others].sum(), q[others] / q[others].sum()
    return loss.alpha * divergence(pair_p, pair_q) + loss.beta * divergence(rest_p, rest_q)


def logit_mse(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    return torch.mean((z - t) ** 2)


def top_k_kl(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    p, q = softmax(t, loss), softmax(z, loss)
    apart = sorted(range(len(p)), key=lambda i: -p[i].item())[: loss.k]
    return divergence(merged(p, apart), merged(q, apart))


def top_p_kl(loss: Any, z: Tensor, t: Tensor, y: int) -> Tensor:
    p, q = softmax(t, loss), softmax(z, loss)
    apart = head_of(p, loss.mass)
    return divergence(merged(p, apart), merged(q, apart))


REFERENCES: dict[str, Callable[[Any, Tensor, Tensor, int], Tensor]] = {
    f.__name__: f
    for f in (
        cross_entropy, kl, reverse_kl, jsd, tvd, skew_kl, skew_reverse_kl, adaptive_kl, alpha_beta, taid, dkd,
        logit_mse, top_k_kl, top_p_kl,
    )
}  # fmt: skip
OF_LOGITS = {kind: loss for kind, loss in LOSSES.items() if "logits" in loss.reads}
GIVEN: dict[str, Loss] = {
    **{kind: loss() for kind, loss in OF_LOGITS.items()},
    "top_k_kl": TopKKL(k=5),  # by default more than these tests have tokens
    "kl at 2": KL(temperature=2.0),
    "kl, standardised": KL(standardise=True, temperature=0.5),
    "reverse kl at 2": ReverseKL(temperature=2.0),
    "reverse kl, standardised": ReverseKL(standardise=True),
    "jsd 0.1": JSD(beta=0.1),
    "jsd 0.9 at 0.5": JSD(beta=0.9, temperature=0.5),
    "jsd, standardised": JSD(standardise=True),
    "tvd at 3": TVD(temperature=3.0),
    "skew kl 0.6": SkewKL(alpha=0.6),
    "skew reverse kl 0.6 at 2": SkewReverseKL(alpha=0.6, temperature=2.0),
    "adaptive kl 0.9": AdaptiveKL(mu=0.9),
    "alpha beta 1.2, 0.3 at 2": AlphaBeta(alpha=1.2, beta=0.3, temperature=2.0),
    "taid at 2": TAID(temperature=2.0),
    "dkd at 4": DKD(alpha=0.5, beta=2.0, temperature=4.0),
    "dkd, standardised": DKD(standardise=True),
    "top 3 at 2": TopKKL(k=3, temperature=2.0),
    "top 1": TopKKL(k=1),
    "top half": TopPKL(mass=0.5),
}


def reference_of(loss: Loss, logits: Tensor, of_teacher: Tensor, labels_N: Tensor) -> Tensor:
    """In float64, T^2 included, at each position."""
    formula, scale = REFERENCES[loss.kind], getattr(loss, "temperature", 1.0) ** 2
    rows = zip(logits, of_teacher, labels_N.tolist(), strict=True)
    return scale * torch.stack([formula(loss, z, t, y) for z, t, y in rows])


def given_logits(spread: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(N, V, generator=numbers) * spread for _ in range(2))
    return student, teacher + student / 2, torch.randint(V, (N,), generator=numbers)


def read_by(loss: Loss, student: Tensor, teacher: Tensor, labels_N: Tensor) -> list[Any]:
    read = {"logits": student, "teacher_logits": teacher, "labels": labels_N, "t": T_OF_TAID}
    return [read[name] for name in loss.reads]


def by_closed_form(loss: Loss, student: Tensor, teacher: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor] | None:
    form = loss.closed_form(Softmax(student), Softmax(teacher), labels_N, T_OF_TAID)
    if form is None:
        return None
    gradient = sum(factor * part for factor, part in form.parts)
    gradient[torch.arange(len(labels_N)), labels_N] += form.at_label
    return form.values_N, gradient


def test_every_loss_of_logits_has_a_formula_of_its_own_here() -> None:
    assert OF_LOGITS.keys() == REFERENCES.keys()


@pytest.mark.parametrize("loss", GIVEN.values(), ids=GIVEN)
def test_value_and_gradient_are_those_of_float64_by_formula_and_by_closed_form(loss: Loss) -> None:
    student, teacher, labels_N = given_logits()
    in_float64 = student.double().requires_grad_()
    wanted = reference_of(loss, in_float64, teacher.double(), labels_N)
    (gradient,) = torch.autograd.grad(wanted.sum(), in_float64)

    ours = student.clone().requires_grad_()
    values = loss.formula(*read_by(loss, ours, teacher, labels_N))
    (by_formula,) = torch.autograd.grad(values.sum(), ours)
    found = {"formula": (values.detach(), by_formula)}
    kept = teacher.clone()
    if (by_hand := by_closed_form(loss, student.clone(), teacher, labels_N)) is not None:
        found["closed form"] = by_hand
    assert torch.equal(kept, teacher)
    for way, (value, slope) in found.items():
        assert value.shape == (N,)
        torch.testing.assert_close(value.double(), wanted.detach(), rtol=3e-6, atol=3e-6, msg=way)
        assert (slope - gradient).abs().max() < 5e-6 * max(gradient.abs().max().item(), 1.0), way


NEAR = 2e-2  # of what is near a limit
LIMITS: dict[str, tuple[Loss, Loss, float, float]] = {
    "jsd, beta 0": (JSD(beta=0), KL(), 1.0, 1e-5),
    "jsd, beta 1": (JSD(beta=1), ReverseKL(), 1.0, 1e-5),
    "jsd / beta, beta to 0": (JSD(beta=1e-3), KL(), 1e3, NEAR),
    "jsd / (1 - beta), beta to 1": (JSD(beta=1 - 1e-3), ReverseKL(), 1e3, NEAR),
    "skew kl, alpha 0": (SkewKL(alpha=0), KL(), 1.0, 1e-5),
    "skew reverse kl, alpha 0": (SkewReverseKL(alpha=0), ReverseKL(), 1.0, 1e-5),
    "alpha beta 1, 0": (AlphaBeta(alpha=1, beta=0), KL(), 1.0, 1e-5),
    "alpha beta 0, 1": (AlphaBeta(alpha=0, beta=1), ReverseKL(), 1.0, 1e-5),
    "alpha beta 1, to 0": (AlphaBeta(alpha=1, beta=1e-3), KL(), 1.0, NEAR),
    "alpha beta to 0, 1": (AlphaBeta(alpha=1e-3, beta=1), ReverseKL(), 1.0, NEAR),
    "alpha beta 0, 0": (AlphaBeta(alpha=0, beta=0), AlphaBeta(alpha=0.01, beta=0.01), 1.0, 10 * NEAR),
    "top k of all": (TopKKL(k=V), KL(), 1.0, 1e-5),
    "top k of more than there are": (TopKKL(k=1000), KL(), 1.0, 1e-5),
    "top p of all": (TopPKL(mass=1), KL(), 1.0, 1e-5),
    "taid at t 1": (TAID(start=1), KL(), 1.0, 1e-5),
}


@pytest.mark.parametrize(("loss", "limit", "factor", "tolerance"), LIMITS.values(), ids=LIMITS)
def test_limits(loss: Loss, limit: Loss, factor: float, tolerance: float) -> None:
    student, teacher, labels_N = given_logits(spread=0.5)
    t = 1.0 if loss.kind == "taid" else T_OF_TAID
    for one in (loss, limit):
        assert one.closed_form(Softmax(student), Softmax(teacher), labels_N, t) is not None
    values, gradients = [], []
    for one, times in ((loss, factor), (limit, 1.0)):
        ours = student.clone().requires_grad_()
        read = {"logits": ours, "teacher_logits": teacher, "labels": labels_N, "t": t}
        value = times * one.formula(*(read[name] for name in one.reads))
        form = one.closed_form(Softmax(student.clone()), Softmax(teacher), labels_N, t)
        values += [value.detach(), times * form.values_N]
        gradients += [torch.autograd.grad(value.sum(), ours)[0], times * sum(f * part for f, part in form.parts)]
    for found in (values, gradients):
        for tensor in found[1:]:
            assert (tensor - found[0]).abs().max() <= tolerance * found[0].abs().max()


def test_decoupled_kl_is_kl_with_the_others_weighed_by_their_probability() -> None:
    student, teacher, labels_N = given_logits()
    target, others = (
        DKD(alpha=alpha, beta=beta).formula(student, teacher, labels_N) for alpha, beta in ((1, 1), (0, 1))
    )
    rest = 1 - teacher.softmax(-1).gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(target - others + rest * others, KL().formula(student, teacher))


@pytest.mark.parametrize(
    "loss", [loss for loss in GIVEN.values() if loss.kind != "cross_entropy"], ids=lambda x: x.kind
)
def test_equal_logits_have_no_divergence_and_far_ones_are_finite(loss: Loss) -> None:
    _, teacher, labels_N = given_logits()
    same = loss.formula(*read_by(loss, teacher, teacher, labels_N))
    assert same.abs().max() < 2e-5
    student, teacher, _ = given_logits(spread=200.0)
    ours = student.clone().requires_grad_()
    values = loss.formula(*read_by(loss, ours, teacher, labels_N))
    (gradient,) = torch.autograd.grad(values.sum(), ours)
    found = [values, gradient, *(by_closed_form(loss, student, teacher, labels_N) or ())]
    assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("mass", [1e-6, 0.3, 0.9, 0.999999, 1.0])
def test_a_nucleus_is_the_fewest_tokens_that_have_the_mass_however_many_are_sorted(mass: float) -> None:
    p_NV = (torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 3).softmax(-1)
    marked = nucleus(p_NV, mass)
    for p, row in zip(p_NV, marked, strict=True):
        inside = p[row].double()
        assert inside.sum() >= mass - 1e-6
        assert row.sum() == 300 or inside.sum() - inside.min() < mass + 1e-6
        assert inside.min() >= p[~row].max() if (~row).any() else True


@pytest.mark.parametrize("kind", OF_LOGITS)
def test_through_the_head_beside_other_terms_values_and_gradients_are_those_of_float64(kind: str) -> None:
    of_kind = GIVEN[kind].model_copy(update={"weight": 0.3})
    losses = Losses(**{"cross_entropy": CrossEntropy(weight=0.7), kind: of_kind})
    student, teacher, some = made_head(1), made_head(2), labels(masked=0.3)
    hidden, of_teacher = states(3).requires_grad_(), states(4)
    moment = Moment(numbers={"taid": T_OF_TAID})
    total, values = head_loss(
        hidden, some, head=student, losses=losses, count=COUNT, moment=moment,
        teacher_hidden_BTD=of_teacher, teacher_head=teacher, chunk=7, tile=3,
    )  # fmt: skip
    total.backward()
    actual = values, {"hidden": hidden.grad, "weight": student.output.weight.grad}

    weights = {"weight": student.output.weight.detach().double().requires_grad_()}
    exact = hidden.detach().double().requires_grad_()
    mask = some != NO_LABEL
    z = logits_in_float64(student, exact, weights, {})[mask]
    t = logits_in_float64(teacher, of_teacher.double(), {"weight": teacher.output.weight.detach().double()}, {})[mask]
    sums = {name: reference_of(term, z, t, some[mask]).sum() / COUNT for name, term in losses.terms().items()}
    sum(term.weight * sums[name] for name, term in losses.terms().items()).backward()
    expected = {name: value.detach() for name, value in sums.items()}, {
        "hidden": exact.grad, "weight": weights["weight"].grad
    }  # fmt: skip
    assert_near(actual, expected, 1e-5)


@pytest.mark.parametrize("loss", GIVEN.values(), ids=GIVEN)
def test_working_and_kept_tensors_are_those_that_are_alive(loss: Loss) -> None:
    """Of one tile, beside cross-entropy, whose softmax they share. Flat logits: a nucleus has most tokens."""
    vocabulary, rows = 20_000, 8
    student, teacher = (torch.randn(rows, vocabulary) / 100 for _ in range(2))
    labels_N = torch.randint(vocabulary, (rows,))
    working, kept = loss.tensors()
    with LiveBytes(student, teacher, labels_N) as live:
        before, given = live.now, (Softmax(student), Softmax(teacher), labels_N)
        beside = CrossEntropy().closed_form(*given)
        form = loss.closed_form(*given, T_OF_TAID)
        if form is None:
            gradient_of(loss, *given, T_OF_TAID, graded=True)
        peak = (live.peak - before) / (4 * vocabulary * rows)
    told = 1 + (working if form is not None else max(working, kept + 3)) - (loss.kind == "cross_entropy")
    assert beside is not None
    assert (kept == 0) == (form is not None)
    assert peak == pytest.approx(told, abs=1.01), f"{peak:.2f} of {working}, {kept}"


def test_taid_goes_along_the_line_or_before_it_while_the_loss_falls() -> None:
    def course(loss: TAID, values: list[float], steps: int) -> list[float]:
        run = loss.course(steps)
        return [next(run), *(run.send(value) for value in values)]

    line = course(TAID(start=0.2, end=0.8, schedule="linear"), [3.0, 1.0, 2.0], 4)
    assert line == pytest.approx([0.2, 0.35, 0.5, 0.65])
    values = [5.0, 4.0, 4.5, 2.0, 1.0]
    found = course(TAID(alpha=0.3, beta=0.9), values, 1000)
    t, m, expected = 0.4, 0.0, [0.4, 0.4 + 0.6 / 1000]
    t = expected[-1]
    for step, (before, now) in enumerate(pairwise(values), start=2):
        m = 0.9 * m + 0.1 * (before - now) / before
        t = min(1.0, max(0.4 + 0.6 * step / 1000, t + 0.3 / (1 + math.exp(-m)) * (1 - t)))
        expected.append(t)
    assert found == pytest.approx(expected)
    assert found == sorted(found)


def test_logit_mse_reads_no_temperature() -> None:
    assert "temperature" not in LogitMSE.model_fields
