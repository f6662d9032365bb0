"""The check of a family on tiny random weights: what is right passes, what is not is refused with its reason.

Each teacher here is real, tiny, and saved by transformers; what is wrong with one was wrong with a published one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import BuiltSize, Check, Outline
from boomspec.models.facts import read_facts
from boomspec.models.outline import config_text, outline
from runners.checking.family import check_family
from runners.runtime.context import Context
from runners.tasks import check as body
from tests.boomspec.public_hub import public_facts
from tests.messages import wording

KEPT = (0, 2, 4, 5)
PLANS = ("s0 t2 t3 s2 t5 t6", "t0 t1 s1 s2 s3")
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 300, "max_position_embeddings": 64, "num_hidden_layers": 7,
}  # fmt: skip


def teacher(folder: Path, model_type: str = "llama", **fields: object) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **fields})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def record(facts, *, kept=KEPT, plans=PLANS) -> Check:
    sizes = tuple(BuiltSize(plan=p, tied=facts.tied and p.split()[0][0] == p.split()[-1][0]) for p in plans)
    teacher = Outline(config=config_text(facts.written), tensors=outline(facts.stored), tied=facts.tied)
    return Check(teacher=teacher, kept=kept, sizes=sizes, transformers="as installed")


def checked(folder: Path) -> list[str]:
    return check_family(record(read_facts(folder)))


def edit(folder: Path, new=lambda tensors: tensors, **config: object) -> Path:
    path = folder / "model.safetensors"
    save_file(new(load_file(path)), path, metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, **config}))
    return folder


def test_what_is_right_passes(tmp_path):
    assert checked(teacher(tmp_path / "llama")) == []
    assert checked(teacher(tmp_path / "tied", tie_word_embeddings=True)) == []


@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (2, 1), (3, 3), (9, 3), (32, 8)])
def test_few_heads_of_attention_are_still_tried(tmp_path, heads, groups):
    folder = tmp_path / "t"
    sizes = {"hidden_size": 8 * heads, "intermediate_size": 32, "vocab_size": 300, "max_position_embeddings": 64}
    config = AutoConfig.for_model(
        "llama", num_hidden_layers=7, num_attention_heads=heads, num_key_value_heads=groups, head_dim=8, **sizes
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    assert checked(folder) == []


def test_published_models_pass():
    """From their real configs and headers, at their real depth."""
    plan = " ".join([*(f"s{i}" for i in range(4)), *(f"t{i}" for i in range(8, 12))])
    facts = public_facts("openai-community/gpt2")
    assert check_family(record(facts, kept=(0, 2, 4, 6, 8, 10), plans=(plan,))) == []


def test_a_student_of_another_family_that_is_read_as_the_teachers():
    """BERT and DistilBERT as published: what cannot be tried in tiny is said."""
    facts, given = public_facts("google-bert/bert-base-uncased"), public_facts("distilbert/distilbert-base-uncased")
    student = Outline(config=config_text(given.written), tensors=outline(given.stored), tied=given.tied)
    plans = ("s0 s1 s2 s3 t9 t10 s5",)
    asked = record(facts, kept=(0, 2, 4, 7, 9, 11), plans=plans).model_copy(update={"student": student})
    assert check_family(asked) == [wording("check.distilbert_student_bert_not")]


def test_the_body_writes_what_was_found(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    given = record(read_facts(teacher(tmp_path / "t")))
    body.run(Context(record=given, inputs={}, path=folder, resume=tmp_path))
    assert json.loads((folder / "check.json").read_text()) == {"right": list(PLANS), "not_checked": []}


def test_layers_that_depend_on_their_index_or_on_their_number(tmp_path, monkeypatch):
    """A family that nothing is known of: the classes of Llama, with one more thing in each layer."""
    folder, forward = teacher(tmp_path / "t"), LlamaDecoderLayer.forward

    def by_index(layer, hidden_BTD, *arguments, **more):
        return forward(layer, hidden_BTD, *arguments, **more) * (1 + 0.1 * layer.self_attn.layer_idx)

    def by_number(layer, hidden_BTD, *arguments, **more):
        return forward(layer, hidden_BTD, *arguments, **more) * layer.depth**-0.5

    monkeypatch.setattr(LlamaDecoderLayer, "forward", by_index)
    with pytest.raises(BoomspecError, match=wording("check.llama_like_teacher_student")):
        checked(folder)
    begun = LlamaDecoderLayer.__init__

    def with_depth(layer, config, layer_idx):
        begun(layer, config, layer_idx)
        layer.depth = config.num_hidden_layers

    monkeypatch.setattr(LlamaDecoderLayer, "__init__", with_depth)
    monkeypatch.setattr(LlamaDecoderLayer, "forward", by_number)
    with pytest.raises(BoomspecError, match=wording("check.llama_like_teacher_student")):
        checked(folder)


def test_layers_that_are_to_be_alone_must_share_nothing_but_the_state(tmp_path, monkeypatch):
    """Sizes of such a family are right; a layer of it cannot be run, or trained, without those before it."""
    folder, forward, left = teacher(tmp_path / "t"), LlamaDecoderLayer.forward, {}

    def leaving(layer, hidden_BTD, *arguments, **more):
        output_BTD = forward(layer, hidden_BTD, *arguments, **more)
        if layer.self_attn.layer_idx == 0:
            left["first"] = output_BTD
            return output_BTD
        return output_BTD + 0.1 * left["first"]

    alone = record(read_facts(folder)).model_copy(update={"alone": True})
    assert check_family(alone) == []
    monkeypatch.setattr(LlamaDecoderLayer, "forward", leaving)
    assert checked(folder) == []
    with pytest.raises(BoomspecError, match=wording("check.one_by_one")):
        check_family(alone)


def test_layers_that_are_scaled_by_their_index(tmp_path):
    sizes = {"n_embd": 32, "n_head": 4, "vocab_size": 300, "n_positions": 64, "n_layer": 7}
    config = AutoConfig.for_model("gpt2", **sizes, scale_attn_by_inverse_layer_idx=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(BoomspecError, match=wording("check.gpt_like_teacher")):
        checked(tmp_path)


def test_what_else_the_files_of_a_teacher_hold(tmp_path):
    """A value head, masks of old versions: the student is saved without them, and sizes are made of both."""
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    assert checked(edit(teacher(tmp_path / "t"), lambda tensors: tensors | head)) == []
    masks = {f"model.layers.{i}.self_attn.bias": torch.ones(1, 1, 64, 64) for i in range(7)}
    with pytest.raises(BoomspecError, match=wording("check.llama_like_teacher_self")):
        checked(edit(teacher(tmp_path / "masks"), lambda tensors: tensors | masks))


def test_a_tied_model_that_stores_its_head(tmp_path):
    def with_head(factor):
        return lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * factor}

    same = edit(teacher(tmp_path / "same", tie_word_embeddings=True), with_head(1.0))
    other = edit(teacher(tmp_path / "other", tie_word_embeddings=True), with_head(2.0))
    assert [read_facts(folder).tied for folder in (same, other)] == [True, False]
    assert checked(same) == []
    assert checked(other) == []


def test_a_tensor_that_the_class_needs_and_the_file_lacks(tmp_path):
    def without(tensors):
        return {name: tensor for name, tensor in tensors.items() if not name.endswith("3.mlp.up_proj.weight")}

    folder = edit(teacher(tmp_path / "t"), without)
    with pytest.raises(BoomspecError, match=wording("check.llama_like_teacher")):
        checked(folder)


def test_a_tensor_of_another_shape_than_the_class_wants(tmp_path):
    folder = edit(teacher(tmp_path / "t"), vocab_size=299)
    with pytest.raises(BoomspecError, match=wording("check.lm_head_weight_shape")):
        checked(folder)


def test_a_model_that_cannot_be_built_tiny_is_checked_by_names_and_shapes(tmp_path, monkeypatch):
    monkeypatch.setattr("runners.checking.tiny.tiny", lambda config, full: {**config, "num_attention_heads": 5})
    [note] = checked(teacher(tmp_path / "t"))
    assert note.startswith(wording("check.only_names_shapes_checked"))


@pytest.mark.parametrize("wrong", [False, True])
def test_plan_and_run_ask_before_anything(tmp_path, wrong):
    """As a person meets it: exit code 2, the place in the spec, and the second time at once."""
    if wrong:
        teacher(tmp_path / "t", "rwkv", attention_hidden_size=32, rescale_every=3)
    else:
        teacher(tmp_path / "t", "olmo2", pad_token_id=0, attention_bias=True)
    vocabulary = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(vocabulary))
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "spec.yaml").write_text(
        "boomspec: 1\nname: asked\nteacher: {model: ./t}\nstudent: {keep: [0, 2, 4, 5]}\n"
        "data: {files: a.txt, sequence_length: 8}\n"
        "distill: {tokens: 64, batch_tokens: 64, losses: {cross_entropy: {weight: 1}}}\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def boomspec(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "boomspec", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    done = boomspec("plan", "spec.yaml")
    assert len(list((tmp_path / "cache" / "boomspec" / "checks").iterdir())) == 1
    if not wrong:
        assert (done.returncode, done.stderr) == (0, "")
        assert "check the family" in done.stdout
        return
    assert done.returncode == 2
    assert wording("check.spec_yaml_teacher_model") in done.stderr
    assert boomspec("run", "spec.yaml").returncode == 2
    assert not (tmp_path / "boomspec-store").exists()


def record_of_two(given: Path, student: Path, *, kept=(0, 3, 6), plans=("t0 t1 t2 s1 s2",)) -> Check:
    facts, of_student = read_facts(given), read_facts(student)
    theirs = Outline(config=config_text(of_student.written), tensors=outline(of_student.stored), tied=of_student.tied)
    return record(facts, kept=kept, plans=plans).model_copy(update={"student": theirs})


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [("mistral", "sliding_window", 8), ("gemma2", "final_logit_softcapping", 9.0), ("olmo", "clip_qkv", 0.5)],
)
def test_null_is_a_value_too(tmp_path, model_type, key, value):
    """No window, no cap: a student that says so is another model than its teacher, which has one."""
    sizes = {"head_dim": 8} if model_type == "gemma2" else {}
    given = teacher(tmp_path / "t", model_type, **sizes, **{key: value})
    same = teacher(tmp_path / "same", model_type, num_hidden_layers=3, **sizes, **{key: value})
    other = teacher(tmp_path / "other", model_type, num_hidden_layers=3, **sizes, **{key: None})
    assert json.loads((other / "config.json").read_text())[key] is None
    assert check_family(record_of_two(given, same)) == []
    with pytest.raises(BoomspecError, match=wording("check.configs_differ_none", key=key, value=value)):
        check_family(record_of_two(given, other))


def test_null_that_a_class_works_out_is_none(tmp_path):
    given = teacher(tmp_path / "t")
    student = edit(teacher(tmp_path / "s", num_hidden_layers=3), head_dim=None)
    assert check_family(record_of_two(given, student)) == []


def test_a_student_that_is_another_model_under_its_teachers_config(tmp_path, monkeypatch):
    """Found on tiny weights, too, should nobody have compared the field that makes the difference."""
    given = teacher(tmp_path / "t", "granite", logits_scaling=2.0)
    student = teacher(tmp_path / "s", "granite", num_hidden_layers=3, logits_scaling=4.0)
    monkeypatch.setattr("boomspec.models.plan_config.check_agreement", lambda *_: None)
    with pytest.raises(BoomspecError, match=wording("check.student_another_model_teacher")):
        check_family(record_of_two(given, student))


def test_a_vocabulary_of_a_few_letters_is_tried(tmp_path):
    assert checked(teacher(tmp_path / "t", "gemma2", head_dim=8, vocab_size=90, pad_token_id=0)) == []


@pytest.mark.parametrize("before", [True, False])
def test_a_projection_behind_the_layers_is_of_the_last_ones_owner(tmp_path, before):
    """OPT-350m, which has no final norm either."""
    given = teacher(tmp_path / "t", "opt", word_embed_proj_dim=16, ffn_dim=48, do_layer_norm_before=before)
    assert checked(given) == []
    names = {entry.name for entry in read_facts(given).norm}
    assert "model.decoder.project_out.weight" in names
    assert ("model.decoder.final_layer_norm.weight" in names) == before
