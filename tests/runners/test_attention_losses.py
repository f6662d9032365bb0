"""Losses on attention: what is recorded against `output_attentions`, and each formula in float64 from these."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from boomspec.core.errors import BoomspecError
from boomspec.core.losses import LOSSES, Losses
from boomspec.models.families import OWN_ATTENTION
from runners.modeling.attention import AttentionPart, check_attention, record_attention
from runners.modeling.hidden_states import decoder_layers, trunk
from runners.tasks.distill import distillation_loss
from runners.training.distillation import alignment
from runners.training.losses import NO_LABEL
from runners.training.parallel import with_checkpointing_or_compile
from runners.training.position_relations import attention_sum
from runners.training.sites import capture_all
from tests.messages import wording
from tests.runners import tiny
from tests.runners.pair_losses import FAMILIES, KEPT, LAYERS, alone, assert_close, gradients, labels_of, positions_of

PARTS = ("queries", "keys", "values", "frame")
OWN = ["bloom", "gptj", "gpt_neo", "mpt"]  # families with attention of their own


def eager(model: torch.nn.Module) -> torch.nn.Module:
    model.set_attn_implementation("eager")
    return model


def recorded(model: torch.nn.Module, inputs: Tensor, layers: range) -> tuple[dict, Tensor]:
    found: dict = {}
    with record_attention(model, [AttentionPart(i, part) for i in layers for part in PARTS], found):
        return found, trunk(model, inputs)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FAMILIES, "gpt_neox", "olmo2", "mistral"])
def test_recorded_queries_and_keys_give_the_attention_of_transformers(family: str, implementation: str) -> None:
    model = tiny.model(family, **FAMILIES.get(family, {}))
    inputs = labels_of(4, 9).clamp(min=0)
    expected = eager(model)(input_ids=inputs, output_attentions=True).attentions
    model.set_attn_implementation(implementation)
    plain = trunk(model, inputs)
    found, hidden = recorded(model, inputs, range(4))
    assert torch.equal(hidden, plain)
    assert not ALL_ATTENTION_FUNCTIONS._local_mapping  # nothing is left behind
    for layer, probabilities in enumerate(expected):
        queries, keys, values, frame = (found[AttentionPart(layer, part)] for part in PARTS)
        assert keys.shape == values.shape
        scores = (
            queries @ keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1).transpose(-1, -2) * frame.scaling
        )
        for sequence in range(4):
            allowed = frame.allowed(sequence, slice(0, 9), 9, scores.device)
            assert torch.equal(allowed, torch.ones(9, 9).tril().bool())
            shown = scores[sequence].masked_fill(~allowed, -torch.inf).softmax(-1)
            torch.testing.assert_close(shown, probabilities[sequence], rtol=1e-4, atol=1e-6)


def test_a_sliding_window_is_part_of_the_frame() -> None:
    model = tiny.model("mistral", sliding_window=3)
    inputs = labels_of(4, 9).clamp(min=0)
    found, _ = recorded(model, inputs, range(1))
    allowed = found[AttentionPart(0, "frame")].allowed(1, slice(4, 9), 9, inputs.device)
    assert torch.equal(allowed, torch.ones(9, 9).tril().triu(-2).bool()[4:])


def attention_of(model: torch.nn.Module, inputs: Tensor, layer: int) -> list[Tensor]:
    """Queries, keys and values of each head of queries, in float64: [B, H, T, E]."""
    found, _ = recorded(model, inputs, range(layer, layer + 1))
    queries, keys, values = (found[AttentionPart(layer, part)].double() for part in PARTS[:3])
    return [queries, keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1), values]


def kl(p_row: Tensor, q_row: Tensor) -> Tensor:
    p, q = p_row.softmax(-1), q_row.softmax(-1)
    return (p * (p / q).log()).sum()


def cut(z: Tensor, heads: int) -> Tensor:
    """All heads joined and cut again: [B, T, ...] -> [B, heads, T, ...]."""
    batch, own, length, size = z.shape
    return torch.stack(z.permute(0, 2, 1, 3).reshape(batch, length, own * size).chunk(heads, -1), 1)


def by_hand(kind: str, fields: dict, student: list[Tensor], teacher: list[Tensor], labels: Tensor) -> Tensor:
    """The sum over labelled positions, and relations, of the mean over heads."""
    (q, k, v), (tq, tk, tv) = student, teacher
    if kind == "minilmv2":
        groups = 2 if q.shape[1] == 4 else q.shape[1]
        own = [z[:, :: z.shape[1] // groups] if z is not q and z is not tq else z for z in (q, k, tq, tk)]
        q, k, tq, tk = (cut(z, fields["relation_heads"]) for z in own)
        v, tv = cut(v, fields["relation_heads"]), cut(tv, fields["relation_heads"])
        relations = [(q, q, tq, tq), (k, k, tk, tk), (v, v, tv, tv)]
    else:
        relations = [(q, k, tq, tk), *([(v, v, tv, tv)] if kind == "minilm" else [])]
    total = torch.zeros((), dtype=torch.float64)
    for rows, columns, their_rows, their_columns in relations:
        heads, size = rows.shape[1], rows.shape[-1]
        for b, t in positions_of(labels):
            for h in range(heads):
                row, theirs = (
                    (c[b, h, : t + 1] @ r[b, h, t]) / size**0.5
                    for r, c in ((rows, columns), (their_rows, their_columns))
                )
                if kind == "attention_maps":
                    if fields.get("maps") == "probabilities":
                        row, theirs = row.softmax(-1), theirs.softmax(-1)
                    total = total + ((row - theirs) ** 2).mean() / heads
                else:
                    total = total + kl(theirs, row) / heads
    return total


CASES = [
    ("attention_maps", {}), ("attention_maps", {"maps": "probabilities"}), ("minilm", {}),
    ("minilmv2", {"relation_heads": 4, "pairs": "all"}),
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "fields"), CASES, ids=["scores", "probabilities", "minilm", "minilmv2"])
def test_value_is_that_of_the_formula_in_float64(family: str, kind: str, fields: dict) -> None:
    student, teacher = (tiny.model(family, layers=n, seed=n, **FAMILIES[family]) for n in (3, LAYERS))
    labels = labels_of(4, 7)
    inputs, losses = labels.clamp(min=0), alone(kind, **fields)
    loss, terms = distillation_loss(student, [teacher], losses, KEPT)(inputs, labels, 20)
    with torch.no_grad():
        pairs = [
            (attention_of(student, inputs, i), attention_of(teacher, inputs, end)) for i, end in enumerate((1, 2, 3))
        ]
    wanted = sum(by_hand(kind, fields, one, other, labels) for one, other in pairs) / (20 * 3)
    assert_close(terms[kind], wanted, 1e-4)
    assert_close(loss.detach(), 1.5 * wanted, 1e-4)


@pytest.mark.parametrize(("kind", "fields"), CASES, ids=["scores", "probabilities", "minilm", "minilmv2"])
@pytest.mark.parametrize("tile", [1, 7, 14, 30, 10_000])
def test_gradients_are_those_of_the_formula_in_float64_for_any_size_of_a_block(
    kind: str, fields: dict, tile: int
) -> None:
    torch.manual_seed(0)
    term, labels = alone(kind, **fields).terms()[kind], labels_of(3, 7)
    shapes = {"queries": (3, 4, 7, 6), "keys": (3, 2, 7, 6), "values": (3, 2, 7, 6)}
    given = {part: [torch.randn(shape) for _ in range(2)] for part, shape in shapes.items()}
    frame = recorded(tiny.model(layers=1), labels.clamp(min=0), range(1))[0][AttentionPart(0, "frame")]
    frame = type(frame)(frame.mask, 6**-0.5)
    leaves = [student.requires_grad_() for student, _ in given.values()]
    read = {part: student for part, (student, _) in given.items()} | {"frame": frame, "teacher_frame": frame}
    read |= {f"teacher_{part}": teacher for part, (_, teacher) in given.items()}
    value = attention_sum(term, read, labels != NO_LABEL, tile=tile)
    found = torch.autograd.grad(2 * value, leaves, allow_unused=True)

    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    sides = [[q, k.repeat_interleave(2, 1), v] for q, k, v in (exact, [of[1].double() for of in given.values()])]
    wanted = by_hand(kind, fields, *sides, labels)
    assert_close(value.detach(), wanted.detach())
    for ours, theirs in zip(found, torch.autograd.grad(2 * wanted, exact, allow_unused=True), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, theirs, 1e-4)


@pytest.mark.parametrize("kind", ["attention_maps", "minilm"])
def test_layers_that_compute_their_activations_again_have_equal_gradients(kind: str) -> None:
    student, teacher = tiny.model(layers=3, seed=1), tiny.model(layers=LAYERS, seed=2)
    labels, found = labels_of(4, 9), []
    for again in (False, True):
        with with_checkpointing_or_compile(student, checkpointing=again):
            loss, _ = distillation_loss(student, [teacher], alone(kind), KEPT)(labels.clamp(min=0), labels, 20)
            loss.backward()
        found.append(gradients(student))
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient)


def test_several_students_share_one_recording_of_their_teacher() -> None:
    teacher = tiny.model(layers=LAYERS)
    both = [alignment(alone(kind), KEPT, LAYERS) for kind in ("attention_maps", "minilmv2")]
    places = dict.fromkeys(place for each in both for place in each.places(teacher=True))
    with capture_all(teacher, places) as found:
        trunk(teacher, labels_of(4, 9).clamp(min=0))
    assert found.keys() == places.keys()
    assert sum(place.part == "values" for place in places) == 1  # of the last layer, for MiniLMv2
    assert sum(place.part == "queries" for place in places) == 3


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_neox", "opt", "phi3"])
def test_a_family_that_uses_the_interface_is_checked_at_the_start(family: str) -> None:
    check_attention(tiny.model(family), range(4))
    check_attention(eager(tiny.model(family)), [3])


@pytest.mark.parametrize("family", OWN)
def test_a_family_with_attention_of_its_own_is_refused(family: str) -> None:
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 4, "hidden_size": 16} if family in ("gptj", "mpt") else {}
    fields = {"gpt_neo": {"attention_types": [[["global"], 4]], "num_heads": 2}, "gptj": {"rotary_dim": 4}}
    model = tiny.model(family, **{**sizes, **fields.get(family, {})})
    with pytest.raises(BoomspecError, match=family) as error:
        check_attention(model, [0, 2])
    assert wording("losses.no_attention_interface") in str(error.value)


def test_the_families_that_the_compiler_refuses_are_those_without_the_interface() -> None:
    folder, own = Path(transformers.__file__).parent / "models", set()
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        name = model_type_to_module_name(model_type)
        file = folder / name / f"modeling_{name}.py"
        if file.exists() and "ALL_ATTENTION_FUNCTIONS" not in file.read_text():
            own.add(model_type)
    assert own == OWN_ATTENTION


def test_scores_that_are_more_than_products_are_refused() -> None:
    capped = eager(tiny.model("gemma2", attn_logit_softcapping=5.0))
    with pytest.raises(BoomspecError, match="softcap"):
        check_attention(capped, [0])
    model = tiny.model("llama")
    attention = decoder_layers(model)[1].self_attn
    attention.forward = lambda *args, **kwargs: (torch.zeros_like(kwargs["hidden_states"]), None)
    with pytest.raises(BoomspecError, match="layer 1 "):
        check_attention(model, [0, 1])


def test_relation_heads_must_divide_the_width() -> None:
    model, labels = tiny.model(layers=LAYERS), labels_of(4, 9)
    loss = distillation_loss(model, [model], Losses(minilmv2=LOSSES["minilmv2"](relation_heads=3)), range(LAYERS))
    with pytest.raises(BoomspecError, match="3 relation heads"):
        loss(labels.clamp(min=0), labels, 20)
