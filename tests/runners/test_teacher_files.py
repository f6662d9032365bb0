"""A teacher's file as people have it: wrapped names, heads of other tasks, one matrix for two, layers that predict
further tokens. What is made of it is what transformers loads of it.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import read_layers, teacher_layers
from boomspec.models.facts import read_facts, total_parameters
from runners.assembly.assemble import assemble
from runners.checking.in_memory import logits, patched
from runners.checking.tiny import random_model, randomise
from runners.modeling.models import load, save_weights
from tests.messages import wording
from tests.runners.test_families_more import COMMON, EXPERTS, FAMILIES, KEPT, LAYERS, SIZED

TOKENS_BT = (torch.arange(22).reshape(2, 11) * 7) % 100 + 3
GPTJ = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "rotary_dim": 4, "n_inner": 48, "vocab_size": 128,
    "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
JAPANESE = {**{k: v for k, v in COMMON.items() if k != "num_key_value_heads"}, "tie_word_embeddings": False,
    "intermediate_multiple_size": 2}  # fmt: skip


def saved(folder: Path, model_type: str, **fields):
    model = random_model(AutoConfig.for_model(model_type, **fields), seed=1)
    model.save_pretrained(folder)
    return model


def edit(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def edit_config(folder: Path, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def renamed(new_name):
    return lambda tensors: {new_name(name): tensor for name, tensor in tensors.items()}


def check(folder: Path, teacher, *, tied: bool, kept=KEPT, plans=("s0 s1 s2 t5 t6", "t0 t1 s1 s2 s3")) -> None:
    """Teacher, student and sizes of the teacher's folder are what `teacher` in memory makes of them."""
    facts = read_facts(folder)
    assert facts.tied is tied
    stored = {tensor.data_ptr(): tensor.numel() for tensor in teacher.state_dict().values()}
    assert total_parameters(facts.tensors(range(LAYERS), tied=tied)) == sum(stored.values())
    assert torch.equal(logits(load(folder, dtype=torch.float32), TOKENS_BT), logits(teacher, TOKENS_BT))
    counts = {"t": LAYERS, "s": len(kept)}
    target = folder.parent / "student"
    assemble({"t": folder}, teacher_layers(kept), target, tied=tied)
    student = load(target, dtype=torch.float32)
    close(student, patched({"t": teacher}, teacher_layers(kept), counts, TOKENS_BT))
    randomise(student, seed=2)
    save_weights(student, target, dtype=torch.float32)
    student = load(target, dtype=torch.float32)
    assert read_facts(target).tied is tied
    for i, plan in enumerate(plans):
        size = folder.parent / f"size-{i}"
        assemble({"t": folder, "s": target}, read_layers(plan), size, tied=tied and plan[0] == plan.split()[-1][0])
        model, found = AutoModelForCausalLM.from_pretrained(size, output_loading_info=True)
        assert not any(found.values()), found
        close(model.eval(), patched({"t": teacher, "s": student}, read_layers(plan), counts, TOKENS_BT))


def close(model, expected) -> None:
    torch.testing.assert_close(logits(model, TOKENS_BT), logits(expected, TOKENS_BT), rtol=1e-5, atol=1e-5)


def test_a_file_that_holds_another_head_than_its_config_ties_is_believed_as_transformers_does(tmp_path):
    saved(tmp_path / "t", "llama", **COMMON, tie_word_embeddings=True)
    edit(tmp_path / "t", lambda t: t | {"lm_head.weight": torch.randn_like(t["model.embed_tokens.weight"])})
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "t").eval()
    assert teacher.lm_head.weight is not teacher.model.embed_tokens.weight
    check(tmp_path / "t", teacher, tied=False)
    assert json.loads((tmp_path / "size-0" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_head_that_differs_in_one_number_is_another_head(tmp_path):
    saved(tmp_path / "t", "llama", **{**COMMON, "vocab_size": 9000}, tie_word_embeddings=True)

    def last_number(tensors):
        head = tensors["model.embed_tokens.weight"].clone()
        head[-3, -2] += 1.0
        return tensors | {"lm_head.weight": head}

    edit(tmp_path / "t", last_number)
    assert read_facts(tmp_path / "t").tied is False
    edit(tmp_path / "t", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert read_facts(tmp_path / "t").tied is True


def test_a_tied_model_may_hold_its_one_matrix_twice(tmp_path):
    teacher = saved(tmp_path / "t", "llama", **COMMON, tie_word_embeddings=True)
    edit(tmp_path / "t", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    check(tmp_path / "t", teacher, tied=True)


@pytest.mark.parametrize(("family", "fields"), [("llama", {**COMMON, "tie_word_embeddings": True}), ("gpt2", {})])
def test_a_tied_model_may_hold_its_one_matrix_as_the_head_alone(tmp_path, family, fields):
    fields = fields or {**GPTJ, "n_ctx": 64}
    teacher = saved(tmp_path / "t", family, **fields)
    embedding = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}[family]
    edit(tmp_path / "t", renamed(lambda name: "lm_head.weight" if name == embedding else name))
    check(tmp_path / "t", teacher, tied=True)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("layers.3.", "layers.3._orig_mod."),
    ],
)
def test_wrappers_around_a_model_leave_its_names(tmp_path, wrap):
    teacher = saved(tmp_path / "t", "llama", **COMMON)
    edit(tmp_path / "t", renamed(wrap))
    check(tmp_path / "t", teacher, tied=False)


@pytest.mark.parametrize(("family", "fields"), [("llama", {**COMMON, "tie_word_embeddings": True}), ("gpt2", GPTJ)])
def test_a_tied_trunk_that_was_saved_without_its_head_is_a_whole_model(tmp_path, family, fields):
    teacher = saved(tmp_path / "whole", family, **fields)
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "t")
    assert not any(name.startswith(("model.", "transformer.")) for name in load_file(tmp_path / "t/model.safetensors"))
    check(tmp_path / "t", teacher, tied=True)


def test_a_trunk_without_a_head_that_is_not_tied_is_refused(tmp_path):
    saved(tmp_path / "whole", "llama", **COMMON, tie_word_embeddings=False)
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "t")
    with pytest.raises(BoomspecError, match=wording("teacher_files.tie_word_embeddings_false")):
        read_facts(tmp_path / "t")


@pytest.mark.parametrize("tied", [False, True])
def test_heads_of_other_tasks_are_left_out(tmp_path, tied):
    teacher = saved(tmp_path / "t", "llama", **COMMON, tie_word_embeddings=tied)
    others = {
        "v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1),
        "score.weight": torch.ones(2, 32), "some_probe.weight": torch.ones(3, 32),
    }  # fmt: skip
    if tied:
        del others["some_probe.weight"]  # nothing tells it from a head
    edit(tmp_path / "t", lambda t: t | others)
    check(tmp_path / "t", teacher, tied=tied)


def test_buffers_that_older_versions_stored_are_left_out(tmp_path):
    teacher = saved(tmp_path / "t", "gptj", **GPTJ)
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(LAYERS)}
    masks |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e9) for i in range(LAYERS)}
    edit(tmp_path / "t", lambda t: t | masks)
    check(tmp_path / "t", teacher, tied=False)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_a_layer_that_predicts_further_tokens_is_left_out(tmp_path, family):
    teacher = saved(tmp_path / "t", family, **{**FAMILIES[family], "num_nextn_predict_layers": 1})
    behind = {f"model.layers.{LAYERS}.{name}.weight": torch.ones(32, 64) for name in ("eh_proj", "self_attn.q_proj")}
    edit(tmp_path / "t", lambda t: t | behind)
    check(tmp_path / "t", teacher, tied=False)
    assert json.loads((tmp_path / "size-0" / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_modules_that_predict_further_tokens_are_left_out(tmp_path):
    teacher = saved(tmp_path / "t", "qwen3_5_text", **FAMILIES["qwen3_5_text"])
    edit(tmp_path / "t", lambda t: t | {"mtp.fc.weight": torch.ones(32, 64), "mtp.layers.0.mlp.weight": torch.ones(3)})
    check(tmp_path / "t", teacher, tied=False)


def test_more_layers_than_the_config_says_are_an_error(tmp_path):
    saved(tmp_path / "t", "llama", **COMMON)
    edit(tmp_path / "t", lambda t: t | {f"model.layers.{LAYERS}.self_attn.q_proj.weight": torch.ones(3)})
    with pytest.raises(BoomspecError, match=wording("teacher_files.says_layers_checkpoint_holds")):
        read_facts(tmp_path / "t")


@pytest.mark.parametrize("limit", [[0.0, float("inf")], [0.0, {"__float__": "Infinity"}]])
def test_numbers_that_json_has_not(tmp_path, limit):
    teacher = saved(tmp_path / "t", "granitemoehybrid", **FAMILIES["granitemoehybrid"])
    edit_config(tmp_path / "t", lambda config: config.update(time_step_limit=limit))
    check(tmp_path / "t", teacher, tied=False)
    assert "Infinity" in (tmp_path / "size-0" / "config.json").read_text()
    json.loads((tmp_path / "size-0" / "config.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_letters_for_layers(tmp_path):
    teacher = saved(tmp_path / "t", "nemotron_h", **FAMILIES["nemotron_h"])
    assert teacher.config.hybrid_override_pattern == "M-*ME-M"

    def letters(config):
        del config["layers_block_type"]
        config |= {"hybrid_override_pattern": "M-*ME-M", "num_hidden_layers": LAYERS}

    edit_config(tmp_path / "t", letters)
    check(tmp_path / "t", teacher, tied=False)
    assert json.loads((tmp_path / "size-0" / "config.json").read_text())["hybrid_override_pattern"] == "M*E-M"


def test_a_head_of_another_name(tmp_path):
    teacher = saved(tmp_path / "t", "gpt_neox_japanese", **JAPANESE)
    plans = ("s0 s1 s2 t5 t6", "s0 t2 t3 s2 s3")
    check(tmp_path / "t", teacher, tied=False, kept=(0, 2, 4, 6), plans=plans)


def test_a_tied_head_of_another_name_is_written_out_where_the_owners_differ(tmp_path):
    teacher = saved(tmp_path / "t", "gpt_neox_japanese", **{**JAPANESE, "tie_word_embeddings": True})
    plans = ("s0 s1 s2 t5 t6", "s0 t2 t3 s2 s3")
    check(tmp_path / "t", teacher, tied=True, kept=(0, 2, 4, 6), plans=plans)


ROPES = (
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16},
    {"rope_type": "default", "rope_theta": 5e5},
)


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_a_student_of_another_rope_is_refused(tmp_path, rope):
    saved(tmp_path / "t", "llama", **COMMON)
    saved(tmp_path / "s", "llama", **{**COMMON, "num_hidden_layers": 4, "rope_parameters": rope})
    with pytest.raises(BoomspecError, match=wording("teacher_files.configs_differ_rope_parameters")):
        assemble({"t": tmp_path / "t", "s": tmp_path / "s"}, read_layers("s0 t2 s2 s3"), tmp_path / "x", tied=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gemma2", {**SIZED, "query_pre_attn_scalar": 64}),
        ("cohere", {**COMMON, "logit_scale": 0.5}),
        ("granite", {**COMMON, "residual_multiplier": 0.5}),
        ("glm4_moe", {**SIZED, **EXPERTS, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5}),
        ("falcon_h1", {**FAMILIES["falcon_h1"], "lm_head_multiplier": 2.0}),
    ],
)
def test_a_default_that_one_config_leaves_out_is_compared_all_the_same(tmp_path, family, fields):
    """The teacher's config.json says it, the student's says nothing: transformers' own default is another."""
    more = [key for key in fields if key not in FAMILIES.get(family, {**SIZED, **EXPERTS})]
    saved(tmp_path / "t", family, **fields)
    less = {key: value for key, value in fields.items() if key not in more} | {"num_hidden_layers": 4}
    saved(tmp_path / "s", family, **less)
    edit_config(tmp_path / "s", lambda config: [config.pop(key, None) for key in more])
    with pytest.raises(BoomspecError, match=f"configs differ in ({'|'.join(more)})"):
        assemble({"t": tmp_path / "t", "s": tmp_path / "s"}, read_layers("s0 s1 t2 s3"), tmp_path / "x", tied=False)
