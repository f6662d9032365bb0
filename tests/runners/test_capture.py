"""Which hidden states are caught, and which are compared, on models whose layers add a known constant."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from boomspec.core.errors import BoomspecError
from runners.modeling.hidden_states import (
    EMBEDDING,
    FINAL_NORM,
    capture,
    decoder_layers,
    embedding_parameters,
    hidden_pairs,
    trunk,
)
from tests.messages import wording
from tests.runners import tiny

TOKENS = torch.arange(6).view(2, 3)


def adding_model(constants: list[float]) -> PreTrainedModel:
    """A real Llama whose embedding is 1 everywhere and whose layer i adds constants[i] to every entry."""
    model = tiny.model(layers=len(constants))
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(1.0)
        for layer, constant in zip(decoder_layers(model), constants, strict=True):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            layer.mlp.down_proj.bias = torch.nn.Parameter(torch.full((16,), constant))
    return model


def test_each_pair_holds_equal_states_when_a_student_layer_adds_what_its_block_adds() -> None:
    # Distinct powers of two: every sum of layers is another number, so only the right pairs are equal.
    adds = [float(2**i) for i in range(7)]
    kept = [0, 2, 3, 6]  # blocks 0 1 | 2 | 3 4 5 | 6
    teacher = adding_model(adds)
    student = adding_model([sum(adds[0:2]), adds[2], sum(adds[3:6]), adds[6]])
    pairs = hidden_pairs(kept, 7, final_norm=False)

    with capture(student, [s for s, _ in pairs]) as student_states:
        trunk(student, TOKENS)
    with capture(teacher, [t for _, t in pairs]) as teacher_states:
        trunk(teacher, TOKENS)

    assert pairs == [(EMBEDDING, EMBEDDING), (0, 1), (1, 2), (2, 5), (3, 6)]
    values = [(student_states[s].unique().item(), teacher_states[t].unique().item()) for s, t in pairs]
    assert values == [(1, 1), (4, 4), (8, 8), (64, 64), (128, 128)]


def test_qwen3_4b_has_the_twenty_pairs_of_the_paper() -> None:
    kept = [*range(0, 36, 2), 35]
    pairs = hidden_pairs(kept, 36)
    assert len(kept) == 19
    blocks_of_two = [(i, 2 * i + 1) for i in range(17)]  # layer i, behind teacher layers 2i and 2i + 1
    assert pairs == [(EMBEDDING, EMBEDDING), *blocks_of_two, (17, 34), (FINAL_NORM, FINAL_NORM)]
    assert len(pairs) == 20


def test_embedding_and_final_norm_can_be_left_out() -> None:
    assert hidden_pairs([0, 2], 5, embedding=False, final_norm=False) == [(0, 1), (1, 4)]
    assert hidden_pairs([0, 2], 5, embedding=False) == [(0, 1), (FINAL_NORM, FINAL_NORM)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "gemma2", "qwen3"])
def test_captured_states_are_the_hidden_states_of_transformers(family: str) -> None:
    model = tiny.model(family)
    points = [EMBEDDING, 0, 1, 2, FINAL_NORM]
    expected = model(input_ids=TOKENS, output_hidden_states=True).hidden_states
    with capture(model, points) as states:
        hidden = trunk(model, TOKENS)
    assert list(states) == points
    for point, state in states.items():
        # transformers' entry 0 is the embedding's output, the last one is behind the final norm.
        index = {EMBEDDING: 0, FINAL_NORM: 4}.get(point, point if isinstance(point, str) else point + 1)
        assert torch.equal(state, expected[index])
    assert torch.equal(hidden, states[FINAL_NORM])


def test_gradients_flow_through_captured_states_and_no_hook_is_left() -> None:
    model = tiny.model()
    with capture(model, [1]) as states:
        trunk(model, TOKENS)
    states.pop(1).sum().backward()
    assert decoder_layers(model)[1].mlp.up_proj.weight.grad is not None
    assert decoder_layers(model)[2].mlp.up_proj.weight.grad is None
    trunk(model, TOKENS)
    assert states == {}


def test_the_layer_stack_is_found_even_when_a_layer_holds_a_list_of_the_same_length() -> None:
    model = tiny.model("mixtral", layers=4, num_local_experts=4, num_experts_per_tok=2)
    for layer in decoder_layers(model):
        layer.extra = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    assert decoder_layers(model) is model.model.layers


def test_a_model_with_two_possible_stacks_is_an_error_that_names_them() -> None:
    model = tiny.model(layers=4)
    model.model.others = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    with pytest.raises(BoomspecError, match=wording("capture.expected_one_list_layers")):
        decoder_layers(model)


def test_learned_positions_belong_to_the_embedding() -> None:
    assert len(embedding_parameters(tiny.model("gpt2"))) == 2
    assert len(embedding_parameters(tiny.model("llama"))) == 1
