"""Losses against stored outputs of a teacher and against several teachers, compared with formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from boomspec.core.losses import KL, CrossEntropy, Losses
from boomspec.core.losses import LOSSES as LOSSES_OF_THE_FIELD
from runners.training.head import head_loss, logits_by_chunks
from runners.training.losses import NO_LABEL
from runners.training.stored_outputs import SampledTokens, StoredOutputs, TopTokens
from runners.training.teachers import Teachers
from tests.runners.test_head import COUNT, VOCABULARY, labels, made_head, states

LOSSES = Losses(cross_entropy=CrossEntropy(weight=0.7), kl=KL(weight=0.3))
SHAPE = (3, 11)


def log_p_of(teacher: object, hidden: Tensor) -> Tensor:
    """log_probs_BTV of a teacher, in float64."""
    found = [logits for _, logits in logits_by_chunks(teacher, hidden.flatten(0, 1))]
    return torch.cat(found).double().log_softmax(-1).view(*hidden.shape[:2], -1)


def top(log_p_BTV: Tensor, k: int) -> TopTokens:
    values, ids = log_p_BTV.topk(k, dim=-1)
    if k < log_p_BTV.shape[-1]:
        values = torch.cat([values, log_p_BTV.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)], dim=-1)
    return TopTokens(ids, values.float())


def found(losses: Losses, stored: StoredOutputs | None, **options: object) -> tuple[dict[str, Tensor], list[Tensor]]:
    student, hidden = made_head(1), states(3).requires_grad_()
    given = {"head": student, "losses": losses, "count": COUNT, "stored": stored, **options}
    total, values = head_loss(hidden, labels(masked=0.3), **given)
    total.backward()
    return values, [hidden.grad, student.output.weight.grad]


def near(ours: list[Tensor], theirs: list[Tensor], relative: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= relative * other.abs().max()


@pytest.mark.parametrize(("chunk", "tile"), [(1, 1), (7, 3), (1000, 1000)])
@pytest.mark.parametrize("closed", [True, False])
def test_the_whole_vocabulary_as_top_k_is_the_teacher_itself(
    monkeypatch: pytest.MonkeyPatch, chunk: int, tile: int, *, closed: bool
) -> None:
    teacher, of_teacher = made_head(2), states(4)
    online = found(LOSSES, None, teacher_hidden_BTD=of_teacher, teacher_head=teacher)
    if not closed:
        monkeypatch.setattr(KL, "closed_form", lambda *_: None)
    stored = found(LOSSES, top(log_p_of(teacher, of_teacher), VOCABULARY), chunk=chunk, tile=tile)
    assert stored[0]["kl"] == pytest.approx(float(online[0]["kl"]), rel=1e-5)
    near(stored[1], online[1], 1e-5)


@pytest.mark.parametrize(("chunk", "tile"), [(7, 3), (1000, 1000)])
@pytest.mark.parametrize("k", [1, 5, VOCABULARY - 1])
def test_top_k_is_the_divergence_of_the_bins(k: int, chunk: int, tile: int) -> None:
    """Against the bins written down in float64: gradients go through the log-sum of the student's rest."""
    teacher, of_teacher, student, hidden = made_head(2), states(4), made_head(1), states(3).double().requires_grad_()
    log_p, weight = log_p_of(teacher, of_teacher), student.output.weight.detach().double().requires_grad_()
    log_q = (hidden @ weight.T).log_softmax(-1)
    values, ids = log_p.topk(k, dim=-1)
    is_top = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, ids, True)
    p_rest, q_rest = (x.exp().masked_fill(is_top, 0.0).sum(-1) for x in (log_p, log_q))
    kl = (values.exp() * (values - log_q.gather(-1, ids))).sum(-1) + p_rest * (p_rest.log() - q_rest.log())
    expected = kl[labels(masked=0.3) != NO_LABEL].sum() / COUNT
    expected.backward()
    ours = found(Losses(kl=KL(weight=1.0)), top(log_p, k), chunk=chunk, tile=tile)
    assert float(ours[0]["kl"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    near(ours[1], [hidden.grad, weight.grad], 1e-5)
    assert float(ours[0]["kl"]) <= float(found(LOSSES, top(log_p, VOCABULARY))[0]["kl"]) + 1e-6  # a lower bound


def drawn(log_p: Tensor, count: int, temperature: float, seed: int) -> SampledTokens:
    log_s = (log_p / temperature).log_softmax(-1)
    numbers = torch.Generator().manual_seed(seed)
    ids = log_s.exp().flatten(0, 1).multinomial(count, replacement=True, generator=numbers).view(*SHAPE, count)
    weights = None if temperature == 1 else (log_p - log_s).gather(-1, ids).float()
    return SampledTokens(ids, weights, -(log_p.exp() * log_p).sum(-1).float())


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_samples_give_the_gradient_of_the_whole_distribution_and_top_k_alone_does_not(temperature: float) -> None:
    """The mean of R estimates lies within 5 standard errors of the gradient; what top-k alone gives does not.

    Top-k alone: the k tokens' probabilities, scaled to add up to 1 (the baseline of arXiv 2503.16870, section 3).
    """
    teacher, of_teacher, losses = made_head(2), states(4) / 4, Losses(kl=KL(weight=1.0))
    log_p = log_p_of(teacher, of_teacher)
    whole = found(losses, None, teacher_hidden_BTD=of_teacher, teacher_head=teacher)
    runs = [found(losses, drawn(log_p, 8, temperature, seed)) for seed in range(200)]
    gradients = torch.stack([gradients[0] for _, gradients in runs]).double()
    error = gradients.std(0) / math.sqrt(len(runs))
    has_label = (labels(masked=0.3) != NO_LABEL).unsqueeze(-1).expand_as(error)
    distance = ((gradients.mean(0) - whole[1][0]).abs() / error)[has_label]
    assert distance.max() < 5
    values = torch.stack([values["kl"] for values, _ in runs]).double()
    assert abs(values.mean() - whole[0]["kl"]) < 5 * values.std() / math.sqrt(len(runs))

    kept, ids = log_p.topk(8, dim=-1)
    alone = SampledTokens(ids, (kept.log_softmax(-1) + math.log(8)).float(), torch.zeros(SHAPE))
    biased = found(losses, alone)[1][0]
    assert ((biased - whole[1][0]).abs() / error)[
        has_label
    ].max() > 25  # standard errors: no number of samples mends it


def test_the_gradient_of_samples_is_that_of_their_weighted_likelihood() -> None:
    """Every position, with tokens drawn twice, in float64 by autograd."""
    log_p = log_p_of(made_head(2), states(4))
    stored, student, hidden = drawn(log_p, 40, 2.0, 0), made_head(1), states(3).double().requires_grad_()
    log_q = (hidden @ student.output.weight.detach().double().T).log_softmax(-1)
    weights = stored.log_weights.double().exp() / 40
    loss = -(weights * log_q.gather(-1, stored.ids)).sum(-1) - stored.entropy.double()
    expected = loss[labels(masked=0.3) != NO_LABEL].sum() / COUNT
    expected.backward()
    for sizes in ({"chunk": 7, "tile": 3}, {}):
        values, gradients = found(Losses(kl=KL(weight=1.0)), stored, **sizes)
        assert float(values["kl"]) == pytest.approx(float(expected.detach()), rel=1e-5)
        near(gradients[:1], [hidden.grad], 1e-5)


def of_several(teachers: Teachers, *, closed: bool, monkeypatch: pytest.MonkeyPatch, **sizes: int) -> tuple:
    heads, hidden = [made_head(seed) for seed in (2, 5, 6)], [states(seed) for seed in (4, 7, 8)]
    if not closed:
        monkeypatch.setattr(KL, "closed_form", lambda *_: None)
    losses = Losses(cross_entropy=CrossEntropy(weight=0.7), kl=KL(weight=0.3, temperature=2.0))
    return found(losses, None, teacher_hidden_BTD=hidden, teacher_head=heads, teachers=teachers, **sizes)


@pytest.mark.parametrize(("chunk", "tile"), [(7, 3), (1000, 1000)])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("combine", ["losses", "mixture"])
def test_several_teachers_are_their_weighted_losses_or_their_mixture(
    monkeypatch: pytest.MonkeyPatch, combine: str, chunk: int, tile: int, *, closed: bool
) -> None:
    teachers = Teachers((0.5, 0.3, 0.2), combine)
    ours = of_several(teachers, closed=closed, monkeypatch=monkeypatch, chunk=chunk, tile=tile)
    log_p = [log_p_of(made_head(head), states(seed)) for head, seed in ((2, 4), (5, 7), (6, 8))]
    student, hidden = made_head(1), states(3).double().requires_grad_()
    weight = student.output.weight.detach().double().requires_grad_()
    z, has_label = hidden @ weight.T, labels(masked=0.3) != NO_LABEL

    def kl(log_p: Tensor) -> Tensor:
        log_pt, log_qt = (log_p / 2).log_softmax(-1), (z / 2).log_softmax(-1)
        return 4 * (log_pt.exp() * (log_pt - log_qt)).sum(-1)[has_label].sum() / COUNT

    if combine == "losses":
        expected = sum(w * kl(each) for w, each in zip(teachers.weights, log_p, strict=True))
    else:
        expected = kl(sum(w * each.exp() for w, each in zip(teachers.weights, log_p, strict=True)).log())
    likelihood = -z.log_softmax(-1).gather(-1, labels(masked=0.3).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    (0.7 * likelihood[has_label].sum() / COUNT + 0.3 * expected).backward()
    assert float(ours[0]["kl"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    near(ours[1], [hidden.grad, weight.grad], 1e-5)


OVER_BINS = [kind for kind, loss in LOSSES_OF_THE_FIELD.items() if loss.over_bins]


@pytest.mark.parametrize("kind", OVER_BINS)
def test_every_divergence_over_bins_is_that_of_the_teacher_where_all_are_stored(kind: str) -> None:
    teacher, of_teacher = made_head(2), states(4) / 4
    losses = Losses(**{kind: LOSSES_OF_THE_FIELD[kind](weight=1.0)})
    online = found(losses, None, teacher_hidden_BTD=of_teacher, teacher_head=teacher)
    stored = found(losses, top(log_p_of(teacher, of_teacher), VOCABULARY))
    assert float(stored[0][kind]) == pytest.approx(float(online[0][kind]), rel=1e-4)
    near(stored[1], online[1], 1e-4)


def test_several_losses_of_several_teachers_are_those_of_each_teacher_weighted() -> None:
    """Losses that share softmaxes do not spoil them for the next teacher."""
    kinds = [kind for kind, loss in LOSSES_OF_THE_FIELD.items() if loss.over_bins]
    losses = Losses(**{kind: LOSSES_OF_THE_FIELD[kind](weight=1.0) for kind in kinds})
    heads, hidden, weights = [made_head(2), made_head(5)], [states(4), states(7)], (0.6, 0.4)
    both = found(losses, None, teacher_hidden_BTD=hidden, teacher_head=heads, teachers=Teachers(weights))
    each = [
        found(losses, None, teacher_hidden_BTD=states_BTD, teacher_head=head)
        for head, states_BTD in zip(heads, hidden, strict=True)
    ]
    for kind in kinds:
        expected = sum(w * float(values[kind]) for w, (values, _) in zip(weights, each, strict=True))
        assert float(both[0][kind]) == pytest.approx(expected, rel=1e-5)
    near(
        both[1],
        [sum(w * g for w, g in zip(weights, of, strict=True)) for of in zip(*(g for _, g in each), strict=True)],
        1e-5,
    )
