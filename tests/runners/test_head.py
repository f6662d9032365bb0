"""The head's losses and gradients in chunks and tiles, against the same formulas written down in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from boomspec.core.losses import KL, CrossEntropy, Losses
from runners.modeling.hidden_states import LMHead
from runners.training import head
from runners.training.head import head_loss
from runners.training.losses import NO_LABEL, labelled
from tests.runners.instruments import LiveBytes

VOCABULARY, TOKENS_IN_USE, HIDDEN, COUNT = 61, 50, 12, 40  # the vocabulary is padded: some logits have no token
CE, CE_KL = CrossEntropy(weight=0.7), {"cross_entropy": CrossEntropy(weight=0.7), "kl": KL(weight=0.3)}
TERMS = {
    "ce": Losses(cross_entropy=CE),
    "ce + kl": Losses(**CE_KL),
    "kl at 2": Losses(kl=KL(weight=0.3, temperature=2.0)),
    "ce + kl at 2": Losses(cross_entropy=CE, kl=KL(weight=0.3, temperature=2.0)),
}
TRANSFORMS: dict[str, dict[str, float]] = {
    "plain": {},
    "capped": {"final_logit_softcapping": 3.0},
    "divided": {"logits_scaling": 4.0},
    "multiplied": {"logit_scale": 0.25},
    "capped, then multiplied": {"final_logit_softcapping": 3.0, "logit_scale": 1.7},
}


class OtherLinear(nn.Linear):
    """A head that is no plain product for all that anyone knows."""


def made_head(seed: int, *, kind: type[nn.Linear] = nn.Linear, bias: bool = False, **config: float) -> LMHead:
    torch.manual_seed(seed)
    output = kind(HIDDEN, VOCABULARY, bias=bias)
    of_text = SimpleNamespace(**config)
    described = SimpleNamespace(model_type="any", get_text_config=lambda: of_text)
    return LMHead(SimpleNamespace(config=described, get_output_embeddings=lambda: output))


def states(seed: int, shape: tuple[int, int] = (3, 11)) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(seed)) * 2


def labels(*, masked: float, shape: tuple[int, int] = (3, 11)) -> Tensor:
    numbers = torch.Generator().manual_seed(5)
    found = torch.randint(TOKENS_IN_USE, shape, generator=numbers)
    return found.masked_fill(torch.rand(shape, generator=numbers) < masked, NO_LABEL)


def logits_in_float64(head: LMHead, hidden: Tensor, weights: dict[str, Tensor], config: dict[str, float]) -> Tensor:
    logits = hidden @ weights["weight"].T + weights.get("bias", 0.0)
    if "final_logit_softcapping" in config:
        logits = config["final_logit_softcapping"] * torch.tanh(logits / config["final_logit_softcapping"])
    return logits / config.get("logits_scaling", 1.0) * config.get("logit_scale", 1.0)


def reference(
    losses: Losses,
    student: LMHead,
    teacher: LMHead,
    hidden: Tensor,
    of_teacher: Tensor,
    labels: Tensor,
    **config: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values of the terms and gradients of their weighted sum, all in float64."""
    weights = {name: p.detach().double().requires_grad_() for name, p in student.output.named_parameters()}
    hidden = hidden.detach().double().requires_grad_()
    z = logits_in_float64(student, hidden, weights, config)[labels != NO_LABEL]
    frozen = {name: p.detach().double() for name, p in teacher.output.named_parameters()}
    t = logits_in_float64(teacher, of_teacher.double(), frozen, config)[labels != NO_LABEL]
    values, total = {}, torch.zeros((), dtype=torch.float64)
    if losses.cross_entropy is not None:
        values["cross_entropy"] = F.cross_entropy(z, labels[labels != NO_LABEL], reduction="sum") / COUNT
        total = total + losses.cross_entropy.weight * values["cross_entropy"]
    if losses.kl is not None:
        T = losses.kl.temperature
        log_p, log_q = (t / T).log_softmax(-1), (z / T).log_softmax(-1)
        values["kl"] = T**2 * (log_p.exp() * (log_p - log_q)).sum() / COUNT
        total = total + losses.kl.weight * values["kl"]
    total.backward()
    return values, {"hidden": hidden.grad, **{name: weight.grad for name, weight in weights.items()}}


def found(
    losses: Losses, student: LMHead, teacher: LMHead, hidden: Tensor, of_teacher: Tensor, labels: Tensor, **sizes: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    hidden = hidden.detach().requires_grad_()
    student.output.zero_grad()
    total, values = head_loss(
        hidden,
        labels,
        head=student,
        losses=losses,
        count=COUNT,
        teacher_hidden_BTD=of_teacher,
        teacher_head=teacher,
        **sizes,
    )
    weighted = sum(term.weight * values[kind] for kind, term in losses.terms().items())
    torch.testing.assert_close(total.detach(), weighted)
    total.backward()
    return values, {"hidden": hidden.grad, **{name: p.grad for name, p in student.output.named_parameters()}}


def assert_near(actual: tuple[dict, dict], expected: tuple[dict, dict], relative: float) -> None:
    """Relative to the largest entry of each gradient; values also within 1e-6 nats, which is what log-sums leave."""
    for ours, theirs, least in zip(actual, expected, (1e-6, 0.0), strict=True):
        assert ours.keys() == theirs.keys()
        for name, wanted in theirs.items():
            assert (ours[name] - wanted).abs().max() <= max(least, relative * wanted.abs().max()), name


@pytest.mark.parametrize(("chunk", "tile"), [(1, 1), (7, 3), (5, 1000), (1000, 4), (1000, 1000)])
@pytest.mark.parametrize("terms", TERMS)
def test_values_and_gradients_are_those_of_float64_however_they_are_cut(terms: str, chunk: int, tile: int) -> None:
    given = TERMS[terms], made_head(1), made_head(2), states(3), states(4), labels(masked=0.3)
    assert_near(found(*given, chunk=chunk, tile=tile), reference(*given), 2e-6)


@pytest.mark.parametrize("masked", [0.0, 0.5, 0.97])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, OtherLinear])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_head_with_bias_transforms_and_a_class_of_its_own(
    transform: str, kind: type[nn.Linear], bias: bool, masked: float
) -> None:
    config = TRANSFORMS[transform]
    student, teacher = (made_head(seed, kind=kind, bias=bias, **config) for seed in (1, 2))
    given = TERMS["ce + kl"], student, teacher, states(3), states(4), labels(masked=masked)
    assert_near(found(*given, chunk=7, tile=3), reference(*given, **config), 3e-6)


@pytest.mark.parametrize("by_hand", [{KL}, {CrossEntropy}, set()], ids=["kl", "ce", "neither"])
@pytest.mark.parametrize("transform", ["plain", "capped"])
def test_a_loss_without_a_closed_form_goes_through_autograd_tile_by_tile(
    monkeypatch: pytest.MonkeyPatch, transform: str, by_hand: set[type]
) -> None:
    for loss in {KL, CrossEntropy} - by_hand:
        monkeypatch.setattr(loss, "closed_form", lambda *_: None)
    config = TRANSFORMS[transform]
    student, teacher = made_head(1, **config), made_head(2, **config)
    given = TERMS["ce + kl at 2"], student, teacher, states(3), states(4), labels(masked=0.3)
    assert_near(found(*given, chunk=7, tile=3), reference(*given, **config), 3e-6)


def test_far_apart_logits_do_not_overflow_and_equal_ones_have_no_divergence() -> None:
    losses, student, teacher = TERMS["ce + kl"], made_head(1), made_head(2)
    given = losses, student, teacher, states(3) * 200, states(4) * 200, labels(masked=0.0)
    actual = found(*given)
    assert all(tensor.isfinite().all() for part in actual for tensor in part.values())
    assert_near(actual, reference(*given), 1e-4)
    same, _ = found(losses, student, student, states(3), states(3), labels(masked=0.0))
    assert same["kl"].abs() < 1e-6


@pytest.mark.parametrize("slow", [False, True], ids=["instructions for bf16", "none"])
@pytest.mark.parametrize("kind", [nn.Linear, OtherLinear])
def test_under_autocast_gradients_are_fp32_and_near_those_of_float64(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Linear], slow: bool
) -> None:
    monkeypatch.setattr(head, "slow_in_bf16", lambda _device: slow)
    student, teacher = made_head(1, kind=kind), made_head(2, kind=kind)
    given = TERMS["ce + kl"], student, teacher, states(3), states(4), labels(masked=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, gradients = found(*given, chunk=7, tile=3)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert_near((values, gradients), reference(*given), 0.02)


@pytest.mark.parametrize("kind", [nn.Linear, OtherLinear])
def test_a_frozen_head_has_no_gradient_and_without_any_nothing_is_kept(kind: type[nn.Linear]) -> None:
    student, teacher = made_head(1, kind=kind), made_head(2)
    given = TERMS["ce + kl"], student, teacher, states(3), states(4), labels(masked=0.3)
    values, gradients = reference(*given)
    student.output.requires_grad_(False)
    actual, ours = found(*given)
    assert ours.pop("weight") is None
    assert_near((actual, ours), (values, {"hidden": gradients["hidden"]}), 2e-6)
    with torch.no_grad():
        options: dict[str, Any] = {"head": student, "losses": TERMS["ce"], "count": COUNT}
        total, _ = head_loss(states(3), labels(masked=0.3), **options)
    assert not total.requires_grad
    assert total == pytest.approx(0.7 * values["cross_entropy"].item(), rel=1e-5)


def test_where_all_positions_have_a_label_states_are_not_copied() -> None:
    hidden = states(3)
    pick, found_labels = labelled(labels(masked=0.0), hidden.device)
    assert pick(hidden).data_ptr() == hidden.data_ptr()
    assert torch.equal(found_labels, labels(masked=0.0).flatten())
    some = labels(masked=0.5)
    pick, found_labels = labelled(some, hidden.device)
    assert torch.equal(pick(hidden), hidden[some != NO_LABEL])
    assert torch.equal(found_labels, some[some != NO_LABEL])


def test_logits_of_a_chunk_lie_in_two_buffers_and_all_else_is_of_a_tile() -> None:
    student, teacher = made_head(1), made_head(2)
    rows, chunk, tile = 1024, 256, 8
    hidden, of_teacher = (states(seed, (2, rows // 2)) for seed in (3, 4))
    given = {"head": student, "losses": TERMS["ce + kl"], "count": rows, "chunk": chunk, "tile": tile}
    some = labels(masked=0.0, shape=(2, rows // 2))
    with LiveBytes(*student.output.parameters(), *teacher.output.parameters(), hidden, of_teacher, some) as live:
        before = live.now
        hidden.requires_grad_()
        total, _ = head_loss(hidden, some, **given, teacher_hidden_BTD=of_teacher, teacher_head=teacher)
        peak = live.peak - before
    assert total.requires_grad
    of_logits = 4 * VOCABULARY
    assert peak < of_logits * (2 * chunk + 8 * tile) + hidden.nbytes + 2 * student.output.weight.nbytes + 8 * rows * 3
