"""The chunked head losses against plain autograd on whole logits, and the one mask and reduction of all terms."""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from boomspec.core.errors import BoomspecError
from boomspec.core.losses import KL, LOSSES, CrossEntropy, HiddenCosine, Loss, Losses, PairLoss
from boomspec.core.losses.attention_loss import AttentionLoss
from boomspec.core.losses.kl import kl_divergence
from boomspec.models import families
from runners.modeling.hidden_states import LMHead, check_head, trunk
from runners.training.head import head_loss
from runners.training.losses import NO_LABEL, state_loss
from tests.runners import tiny
from tests.runners.instruments import LiveBytes

BOTH = Losses(cross_entropy=CrossEntropy(weight=0.7), kl=KL(weight=0.3, temperature=2.0))
FAMILIES = ["llama", "qwen3", "gpt2", "gpt_neox", "opt", "gemma2", "granite", "cohere", "falcon_h1"]
SPECIAL = {
    "gemma2": {"final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "falcon_h1": {"lm_head_multiplier": 0.5, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8},
}


def tokens(rows: int = 3, columns: int = 11) -> tuple[Tensor, Tensor]:
    """inputs_BT and labels_BT, a third of them without label."""
    numbers = torch.Generator().manual_seed(1)
    inputs = torch.randint(tiny.VOCABULARY, (rows, columns), generator=numbers)
    labels = torch.randint(tiny.VOCABULARY, (rows, columns), generator=numbers)
    return inputs, labels.masked_fill(torch.rand((rows, columns), generator=numbers) < 0.33, NO_LABEL)


def plain_loss(student, teacher, inputs: Tensor, labels: Tensor, losses: Losses, count: int) -> Tensor:
    """The formula of boomspec/core/losses written down once more, on the models' own full logits."""
    logits = student(input_ids=inputs).logits.float()
    with torch.no_grad():
        wanted = teacher(input_ids=inputs).logits.float()
    mask = (labels != NO_LABEL).float()
    total = losses.cross_entropy.weight * F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL, reduction="sum"
    )
    temperature = losses.kl.temperature
    p, q = (wanted / temperature).softmax(-1), (logits / temperature).softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1)
    return (total + losses.kl.weight * temperature**2 * (kl * mask).sum()) / count


def gradients(model) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Relative to the largest entry of a tensor: entries that cancel to nearly 0 have no relative precision."""
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma2", SPECIAL["gemma2"]),
    ],
    ids=["untied", "tied", "softcapped"],
)
def test_chunked_loss_and_gradients_equal_those_of_plain_autograd(family: str, fields: dict, chunk: int) -> None:
    student, teacher = tiny.model(family, layers=2, seed=1, **fields), tiny.model(family, layers=3, seed=2, **fields)
    inputs, labels = tokens()
    count = 100  # of an effective batch that is larger than these tokens

    expected = plain_loss(student, teacher, inputs, labels, BOTH, count)
    expected.backward()
    expected_gradients = gradients(student)
    actual, terms = head_loss(
        trunk(student, inputs),
        labels,
        head=LMHead(student),
        losses=BOTH,
        count=count,
        teacher_hidden_BTD=trunk(teacher, inputs),
        teacher_head=LMHead(teacher),
        chunk=chunk,
    )
    actual.backward()

    assert_close(actual.detach(), expected.detach(), 1e-5)
    assert_close(0.7 * terms["cross_entropy"] + 0.3 * terms["kl"], expected.detach(), 1e-5)
    actual_gradients = gradients(student)
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert_close(actual_gradients[name], gradient, 1e-5)
    assert not gradients(teacher)


def test_the_gradient_is_scaled_like_the_loss() -> None:
    student = tiny.model(layers=2)
    inputs, labels = tokens()
    losses = Losses(cross_entropy=CrossEntropy())

    def loss() -> Tensor:
        return head_loss(trunk(student, inputs), labels, head=LMHead(student), losses=losses, count=10)[0]

    loss().backward()
    once = gradients(student)
    (3 * loss()).backward()
    for name, gradient in gradients(student).items():
        assert_close(gradient, 3 * once[name], 1e-5)


def test_a_bf16_forward_gives_gradients_near_those_of_fp32() -> None:
    student, teacher = tiny.model(layers=2, seed=1), tiny.model(layers=2, seed=2)
    inputs, labels = tokens()
    plain_loss(student, teacher, inputs, labels, BOTH, 10).backward()
    expected = gradients(student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = head_loss(
            trunk(student, inputs),
            labels,
            head=LMHead(student),
            losses=BOTH,
            count=10,
            teacher_hidden_BTD=trunk(teacher, inputs),
            teacher_head=LMHead(teacher),
            chunk=4,
        )
    loss.backward()
    actual = gradients(student)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert actual[name].dtype == torch.float32
        assert_close(actual[name], gradient, 0.05)


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    student = tiny.model(layers=2)
    inputs, labels = tokens()
    loss, terms = head_loss(
        trunk(student, inputs),
        torch.full_like(labels, NO_LABEL),
        head=LMHead(student),
        losses=Losses(cross_entropy=CrossEntropy()),
        count=10,
    )
    loss.backward()
    assert loss == 0
    assert terms["cross_entropy"] == 0
    assert all((gradient == 0).all() for gradient in gradients(student).values())


def test_cosine_is_the_mean_over_pairs_and_labelled_positions() -> None:
    _, labels = tokens()
    student = {0: torch.randn(3, 11, 5), "final norm": torch.randn(3, 11, 5)}
    teacher = {3: torch.randn(3, 11, 5), "final norm": torch.randn(3, 11, 5)}
    losses = Losses(hidden_cosine=HiddenCosine(weight=2.0))
    pairs = [(0, 3), ("final norm", "final norm")]
    mask = labels != NO_LABEL
    count = int(mask.sum())
    loss, terms = state_loss(student, teacher, labels, pairs={"hidden_cosine": pairs}, losses=losses, count=count)
    by_hand = []
    for one, other in pairs:
        a, b = student[one][mask], teacher[other][mask]
        by_hand.append((1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean())
    assert_close(terms["hidden_cosine"], torch.stack(by_hand).mean(), 1e-5)
    assert_close(loss, 2 * torch.stack(by_hand).mean(), 1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_formula_takes_what_its_loss_says_that_it_reads(loss: type[Loss]) -> None:
    assert ("logits" in loss.reads) != issubclass(loss, PairLoss)
    if not issubclass(loss, AttentionLoss):  # its formula reads what is made of these
        taken = [name for name, of in signature(loss.formula).parameters.items() if of.kind != of.VAR_KEYWORD]
        assert len(taken) == 1 + len(loss.reads)


def test_kl_is_that_of_torch_with_its_gradient_and_also_of_probabilities_at_hand() -> None:
    log_p, log_q = (torch.randn(5, 40).log_softmax(-1) for _ in range(2))
    ours, theirs = log_q.clone().requires_grad_(), log_q.clone().requires_grad_()
    found = kl_divergence(log_p, ours)
    wanted = F.kl_div(theirs, log_p, reduction="none", log_target=True).sum(-1)
    for value in (found, wanted):
        (value * torch.arange(5)).sum().backward()
    assert torch.equal(found, wanted)
    assert torch.equal(ours.grad, theirs.grad)
    torch.testing.assert_close(kl_divergence(log_p, log_q, p_NV=log_p.exp()), wanted.detach())


@pytest.mark.parametrize(
    ("losses", "teacher", "teacher_head"),
    [
        (Losses(cross_entropy=CrossEntropy()), False, False),
        (Losses(cross_entropy=CrossEntropy(), hidden_cosine=HiddenCosine()), True, False),
        (Losses(kl=KL()), True, True),
    ],
)
def test_the_teacher_is_needed_only_for_what_the_terms_read(losses: Losses, teacher: bool, teacher_head: bool) -> None:
    assert losses.reads_teacher == teacher
    assert bool(losses.reading("teacher_logits")) == teacher_head


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_trunk_taken_apart_are_the_model(family: str) -> None:
    model = tiny.model(family, **SPECIAL.get(family, {}))
    check_head(model)
    inputs, _ = tokens()
    torch.testing.assert_close(LMHead(model)(trunk(model, inputs)), model(input_ids=inputs).logits)


def test_a_logit_transform_that_is_not_known_is_an_error_that_names_the_model_type(monkeypatch) -> None:
    monkeypatch.delitem(families.LOGITS, "logits_scaling")
    with pytest.raises(BoomspecError, match="'granite'") as error:
        check_head(tiny.model("granite", logits_scaling=4.0))
    assert "LOGITS of boomspec/models/families.py" in str(error.value)


def test_a_chunk_never_finds_the_head_gradient_of_the_one_before_it():
    """At most two tensors as large as the head: the sum of the gradients, and that of the chunk at hand."""
    vocabulary, hidden, rows = 2048, 128, 8
    torch.manual_seed(0)
    output = torch.nn.Linear(hidden, vocabulary, bias=False)
    model = SimpleNamespace(
        config=SimpleNamespace(model_type="linear", get_text_config=lambda: None), get_output_embeddings=lambda: output
    )
    states_BTD = torch.randn(2, 2 * rows, hidden, requires_grad=True)
    labels_BT = torch.randint(vocabulary, (2, 2 * rows))
    losses = Losses(cross_entropy=CrossEntropy())
    with LiveBytes(output.weight, states_BTD, labels_BT) as live:
        before = live.now
        head_loss(states_BTD, labels_BT, head=LMHead(model), losses=losses, count=4 * rows, chunk=rows)
        peak = live.peak - before
    matrix, logits = 4 * vocabulary * hidden, 4 * vocabulary * rows
    assert peak < 2 * matrix + 4 * logits + 4 * states_BTD.nbytes
