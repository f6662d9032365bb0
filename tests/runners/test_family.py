"""Families in memory against folders that are assembled of the same layers: same logits, shared weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan, family_of_sets, prefixes, read_layers, teacher_layers
from boomspec.core.sizes import Lineage, Member
from runners.assembly.assemble import assemble
from runners.modeling.family import Family, open_family
from tests.messages import wording
from tests.runners import tiny

LAYERS = 7
KEPT = (0, 2, 4, 5)  # blocks 0 1 | 2 3 | 4 | 5 6
MIXED = read_layers("s0 t2 t3 s2 t5 t6")
TYPES = ["sliding_attention" if (i + 1) % 3 else "full_attention" for i in range(LAYERS)]
SLIDING = {"layer_types": TYPES, "sliding_window": 4}
FAMILIES = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True, "use_sliding_window": True, **SLIDING}),
    "gemma3": ("gemma3_text", SLIDING),
    "gpt2": ("gpt2", {"max_position_embeddings": 32}),
}
INPUTS_BT = torch.arange(2 * 11).reshape(2, 11) % tiny.VOCABULARY


def make_family(folder: Path, name: str) -> Family:
    """A random teacher, and a student assembled from it whose every weight is then moved."""
    kind, fields = FAMILIES[name]
    tiny.model(kind, layers=LAYERS, **fields).save_pretrained(folder / "teacher")
    tied = bool(AutoModelForCausalLM.from_pretrained(folder / "teacher").config.tie_word_embeddings)
    assemble({"t": folder / "teacher"}, teacher_layers(KEPT), folder / "student", tied=tied)
    student = AutoModelForCausalLM.from_pretrained(folder / "student")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    student.save_pretrained(folder / "student")
    return open_family(folder / "teacher", folder / "student", lineage(tied=tied))


def lineage(*, tied: bool) -> Lineage:
    members = [
        Member(k, plan, 1000 * len(plan), 4000 * len(plan), tied and plan[0].owner == plan[-1].owner)
        for k, plan in enumerate(family_of_sets(KEPT, LAYERS, prefixes((3, 1, 0))))
    ]
    return Lineage("teacher", "student", KEPT, members[0], tuple(members))


def assembled(folder: Path, plan: LayerPlan, *, tied: bool) -> PreTrainedModel:
    assemble({"t": folder / "teacher", "s": folder / "student"}, plan, folder / "assembled", tied=tied)
    return AutoModelForCausalLM.from_pretrained(folder / "assembled").eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUTS_BT).logits


def generated(model: PreTrainedModel, *, cache: bool) -> torch.Tensor:
    return model.generate(INPUTS_BT, max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=0)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> tuple[Path, Family]:
    folder = tmp_path_factory.mktemp("family")
    return folder, make_family(folder, request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Family:
    return make_family(tmp_path_factory.mktemp("tied"), "llama tied")


def test_every_size_has_the_logits_of_its_assembled_folder_bit_for_bit(family):
    folder, built = family
    for member in built.sizes:
        expected = assembled(folder, member.plan, tied=member.tied)
        assert torch.equal(logits(built.model(f"{member.layers} layers")), logits(expected))
    assert not torch.equal(logits(built.model("student")), logits(built.model("teacher")))


def test_any_layer_plan_can_be_made_and_generates_the_same_with_and_without_cache(family):
    folder, built = family
    model = built.model(MIXED)
    expected = assembled(folder, MIXED, tied=False)
    assert torch.equal(logits(model), logits(expected))
    assert torch.equal(generated(model, cache=True), generated(expected, cache=True))
    assert torch.equal(generated(model, cache=True), generated(model, cache=False))
    assert type(model) is type(expected)
    assert model.config.to_diff_dict() == expected.config.to_diff_dict()


def test_members_hold_the_parameters_of_teacher_and_student_themselves(family):
    _, built = family
    owned = {id(p): p.data_ptr() for model in (built.teacher, built.student) for p in model.parameters()}
    for size in ("student", "5 layers", "6 layers", "teacher"):
        assert {id(p): p.data_ptr() for p in built.model(size).parameters()}.items() <= owned.items()


def test_a_saved_member_loads_to_the_same_logits(family, tmp_path):
    _, built = family
    for number, plan in enumerate([MIXED, built.sizes[-1].plan]):
        model = built.model(plan)
        model.save_pretrained(tmp_path / f"saved {number}")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"saved {number}").eval()
        assert torch.equal(logits(again), logits(model))


def test_members_that_exist_at_once_do_not_disturb_each_other(tmp_path):
    built = make_family(tmp_path, "qwen3")
    alone = {size: generated(built.model(size), cache=True) for size in ("student", "5 layers", "teacher")}
    models = {size: built.model(size) for size in alone}
    assert all(torch.equal(generated(models[size], cache=True), alone[size]) for size in alone)
    assert [layer.self_attn.layer_idx for layer in models["5 layers"].model.layers] == [0, 1, 2, 3, 4]
    assert [layer.self_attn.layer_idx for layer in built.teacher.model.layers] == list(range(LAYERS))


def test_embedding_and_head_of_a_tied_family_have_the_owners_of_its_first_and_last_layer(tied):
    model = tied.model("5 layers")  # s0 s1 s2 t5 t6
    assert model.config.tie_word_embeddings is False
    assert model.model.embed_tokens.weight is tied.student.model.embed_tokens.weight
    assert model.lm_head.weight is tied.teacher.model.embed_tokens.weight
    whole = tied.model("teacher")
    assert whole.config.tie_word_embeddings is True
    assert whole.lm_head.weight is whole.model.embed_tokens.weight


def test_the_weights_are_loaded_in_the_dtype_that_was_asked_for(tmp_path):
    make_family(tmp_path, "llama tied")
    built = open_family(tmp_path / "teacher", tmp_path / "student", lineage(tied=True), dtype="bfloat16")
    assert {p.dtype for p in built.model("6 layers").parameters()} == {torch.bfloat16}
    with pytest.raises(BoomspecError, match=wording("family.float_not_floating_point")):
        open_family(tmp_path / "teacher", tmp_path / "student", lineage(tied=True), dtype="float31")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("3 layers", wording("family.no_model_size_layers")),
        ("big", wording("family.size_expected_size_such", name="big")),
        (["s0", "t7"], wording("family.does_not_exist_model")),
        (["s0", "x1"], "'x1' is not a layer"),
        ([], wording("family.least_one_layer")),
    ],
)
def test_what_the_family_does_not_have_is_an_error(tied, size, message):
    with pytest.raises(BoomspecError, match=message):
        tied.model(size)


def test_models_of_two_families_cannot_share_layers(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path / "teacher")
    tiny.model("gpt2", layers=2).save_pretrained(tmp_path / "student")
    with pytest.raises(BoomspecError, match=wording("family.llama_gpt_model_cannot")):
        open_family(tmp_path / "teacher", tmp_path / "student", lineage(tied=False))
