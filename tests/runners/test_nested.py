"""Text decoders among other parts: what is measured, distilled and built is the decoder, a plain language model."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.layers import read_layers, student_layers, teacher_layers
from boomspec.core.sizes import Lineage, Member
from boomspec.models.checkpoint import read_header
from boomspec.models.facts import decoder_name, read_facts, total_parameters
from boomspec.models.family_file import FamilyFile, size_folders
from boomspec.models.fit import with_rest
from boomspec.plan.plan_text import print_family
from boomspec.spec.experiments import load_spec
from runners.assembly.assemble import assemble
from runners.assembly.family_folder import write_family
from runners.checking.family import try_sizes
from runners.checking.in_memory import logits
from runners.checking.tiny import randomise
from runners.modeling.family import torch_dtype
from runners.modeling.family_folder import open_family_folder
from runners.modeling.hidden_states import check_head
from runners.modeling.models import load, save_weights
from tests.messages import wording
from tests.runners.test_families_more import KEPT, LAYERS, LINEAR, PLANS, SIZED, sizes

TOKENS_BT = (torch.arange(22).reshape(2, 11) * 7) % 80 + 3
IMAGES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4}  # fmt: skip
WHOLE = {
    "gemma3": ({**SIZED, "sliding_window": 4}, {**IMAGES}, {"mm_tokens_per_image": 4, "image_token_index": 90}),
    "mistral3": ({**SIZED, "model_type": "mistral"}, {**IMAGES, "model_type": "pixtral", "head_dim": 8},
        {"image_token_index": 90}),
    "llama4": ({**SIZED, "num_local_experts": 4, "intermediate_size_mlp": 40, "attention_chunk_size": 8},
        {**IMAGES, "intermediate_size": 64, "vision_output_dim": 16, "projector_input_dim": 16,
            "projector_output_dim": 16}, {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}),
    "qwen3_5": ({**SIZED, **LINEAR}, {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
        "patch_size": 4, "out_hidden_size": 32, "num_position_embeddings": 16}, {}),
    "llava": ({**SIZED, "model_type": "llama"}, {**IMAGES, "model_type": "clip_vision_model"},
        {"image_token_index": 90}),
}  # fmt: skip


@pytest.fixture(params=WHOLE)
def whole(request, tmp_path):
    """A whole model in memory, saved in tmp_path / "teacher"."""
    text, images, fields = WHOLE[request.param]
    config = AutoConfig.for_model(request.param, text_config=text, vision_config=images, **fields)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    randomise(model, seed=1)
    model.save_pretrained(tmp_path / "teacher")
    return model


def test_a_decoder_among_other_parts_is_the_model(whole, tmp_path):
    teacher = load(tmp_path / "teacher", dtype=torch.float32)
    kinds = {"token_type_ids": torch.zeros_like(TOKENS_BT)} if whole.config.model_type == "gemma3" else {}
    with torch.no_grad():
        expected = whole(input_ids=TOKENS_BT, use_cache=False, **kinds).logits
    torch.testing.assert_close(logits(teacher, TOKENS_BT), expected, rtol=1e-5, atol=1e-5)
    check_head(teacher)
    facts = read_facts(tmp_path / "teacher")
    own = {tensor.data_ptr(): tensor.numel() for tensor in teacher.state_dict().values()}
    assert facts.count == LAYERS
    assert total_parameters(facts.tensors(range(LAYERS), tied=facts.tied)) == sum(own.values())
    assert facts.left_out
    assert not any("language_model" in tensor.name for tensor in facts.left_out)
    assert torch_dtype(None, tmp_path / "teacher") == torch.float32


def test_its_sizes_are_plain_language_models(whole, tmp_path):
    try_sizes(tmp_path / "teacher", KEPT, sizes(*PLANS[:2]), tmp_path)
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert "text_config" not in config
    assert config["architectures"][0].endswith("ForCausalLM")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    save_weights(student, tmp_path / "student", dtype=torch.bfloat16)
    assert read_facts(tmp_path / "student").dtype == "BF16"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "as the teacher"])
def test_the_rest_is_kept_where_it_is_asked_for(whole, tmp_path, tied):
    """A whole model again: of its teacher's class and names, with the decoder's logits, and its other parts as is."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    facts = read_facts(teacher)
    assemble({"t": teacher}, teacher_layers(KEPT), student, tied=facts.tied)
    (teacher / "preprocessor_config.json").write_text("{}")
    plan, tied = read_layers("s0 t2 t3 s2") + teacher_layers(range(5, LAYERS)), tied and facts.tied
    sources = {"t": teacher, "s": student}
    if tied:
        plan = read_layers("t0") + plan[1:]
    assemble(sources, plan, tmp_path / "decoder", tied=tied)
    assemble(sources, plan, tmp_path / "kept", tied=tied, rest=True)
    loaded, report = type(whole).from_pretrained(tmp_path / "kept", output_loading_info=True)
    assert not any(report.values()), report
    assert (tmp_path / "kept" / "preprocessor_config.json").is_file()
    kinds = {"token_type_ids": torch.zeros_like(TOKENS_BT)} if whole.config.model_type == "gemma3" else {}
    with torch.no_grad():
        found = loaded.eval()(input_ids=TOKENS_BT, use_cache=False, **kinds).logits
    for folder in ("decoder", "kept"):  # a task that measures reads the decoder of either
        measured = load(tmp_path / folder, dtype=torch.float32)
        torch.testing.assert_close(logits(measured, TOKENS_BT), found, rtol=1e-5, atol=1e-5)
    before, after = whole.state_dict(), loaded.state_dict()
    others = [name for name in before if decoder_name(name) is None]
    assert others
    assert [name for name in after if decoder_name(name) is None] == others
    assert all(torch.equal(before[name], after[name]) for name in others)
    assert loaded.config.get_text_config().num_hidden_layers == len(plan)
    kept, alone = read_facts(tmp_path / "kept"), read_facts(tmp_path / "decoder")
    stored = with_rest(facts, plan, alone.tensors(range(alone.count), tied=alone.tied))
    assert total_parameters(kept.stored) == total_parameters(stored)
    assert {tensor.name for tensor in kept.left_out} == {tensor.name for tensor in facts.left_out}


@pytest.mark.parametrize("whole", ["gemma3", "llama4"], indirect=True)
def test_a_family_in_one_folder_keeps_the_rest_once(whole, tmp_path):
    teacher, student, folder = tmp_path / "teacher", tmp_path / "student", tmp_path / "family"
    facts = read_facts(teacher)
    assemble({"t": teacher}, teacher_layers(KEPT), student, tied=facts.tied)
    plans = (read_layers("s0 t2 t3 s2") + teacher_layers(range(5, LAYERS)), teacher_layers(range(LAYERS)))
    members = tuple(Member(i, plan, i + 1, i + 1, tied=i == 1 and facts.tied) for i, plan in enumerate(plans))
    lineage = Lineage("t", "s", KEPT, members[0], members, rest=True)
    about = FamilyFile(name="kept", model_type="any", family=lineage.to_json(), counts={"t": LAYERS, "s": 3}, sizes=())
    sources, sizes = {"t": teacher, "s": student}, size_folders(lineage)
    write_family(sources, sizes, folder, about, rest=True, fitted={})
    stored = sum(entry.bytes for shard in (folder / "shards").iterdir() for entry in read_header(shard))
    once = sum(entry.bytes for entry in (*facts.tensors(range(LAYERS), tied=facts.tied), *facts.left_out))
    assert once <= stored < 2 * once
    for name, member in sizes.items():
        assemble(sources, member.plan, tmp_path / name, tied=member.tied, rest=True)
        expected = AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict()
        names = json.loads((folder / name / "key_mapping.json").read_text())
        read = AutoModelForImageTextToText.from_pretrained(folder, subfolder=name, key_mapping=names)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in read.state_dict().items())
        decoder = open_family_folder(folder).weights.model(member.plan, tied=member.tied)
        plain = load(tmp_path / name, dtype=torch.float32)
        assert torch.equal(logits(decoder, TOKENS_BT), logits(plain, TOKENS_BT))


@pytest.mark.parametrize("whole", ["llava"], indirect=True)
def test_a_student_has_no_rest_to_keep(whole, tmp_path):
    student = tmp_path / "student"
    assemble({"t": tmp_path / "teacher"}, teacher_layers(KEPT), student, tied=read_facts(tmp_path / "teacher").tied)
    sources = {"t": tmp_path / "teacher", "s": student}
    assemble(sources, student_layers(len(KEPT)), tmp_path / "same", tied=read_facts(student).tied, rest=True)
    assert not read_facts(tmp_path / "same").left_out
    with pytest.raises(BoomspecError, match="a text decoder alone"):
        assemble({"t": student}, read_layers("t0"), tmp_path / "none", tied=read_facts(student).tied, rest=True)


SPEC = """\
boomspec: 1
name: nested
teacher: {{model: ./{model}, rest: {rest}}}
student: {{keep: {{every: 2}}}}
data: {{files: text.txt, sequence_length: 8}}
distill: {{tokens: 64, batch_tokens: 8}}
baselines: [naive_pruning, standard_distillation]
"""


@pytest.mark.parametrize("whole", ["gemma3"], indirect=True)
def test_a_spec_says_whether_the_rest_travels(whole, tmp_path, capsys):
    shutil.copytree(tmp_path / "teacher", tmp_path / "alone")
    assemble(
        {"t": tmp_path / "teacher"},
        read_layers("t0 t1"),
        tmp_path / "decoder",
        tied=read_facts(tmp_path / "alone").tied,
    )
    (tmp_path / "text.txt").write_text("text")

    def compiled(rest, model="teacher"):
        for folder in ("teacher", "decoder"):
            (tmp_path / folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}, "added_tokens": []}')
        (tmp_path / "spec.yaml").write_text(SPEC.format(rest=rest, model=model))
        return compile_experiments([load_spec(tmp_path / "spec.yaml")])

    keep, drop = compiled("keep"), compiled("drop")
    (tmp_path / "spec.yaml").write_text(SPEC.format(rest="drop", model="teacher").replace(", rest: drop", ""))
    assert compile_experiments([load_spec(tmp_path / "spec.yaml")]).graph.nodes.keys() == drop.graph.nodes.keys()
    assert all("rest" not in node.task.record.model_dump_json(exclude_none=True) for node in drop.graph.nodes.values())
    rest = total_parameters(read_facts(tmp_path / "teacher").left_out)
    for one, other in zip(keep.family.members, drop.family.members, strict=True):
        assert one.parameters - other.parameters == (0 if one.is_student else rest)
    changed = {n.task.kind for i, n in keep.graph.nodes.items() if i not in drop.graph.nodes}
    assert changed == {"interpolate", "baseline"}  # a training's ids are the same
    for family in (keep.family, drop.family):
        print_family(family)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Kept: " in shown
    assert wording("nested.teacher_rest_keep_part") in shown
    assert "Left out: " in shown
    assert "(teacher.rest: drop)." in shown
    with pytest.raises(SpecError, match=wording("nested.spec_yaml_teacher_rest")):
        compiled("keep", model="decoder")
