"""Assembled models against patching in memory, layer by layer, with real transformers models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import family_of_sets, prefixes, read_layers, teacher_layers
from boomspec.models.checkpoint import read_checkpoint
from runners.assembly import checkpoint_writer
from runners.assembly.assemble import assemble, assemble_family
from runners.assembly.checkpoint_writer import shares_blocks
from tests.messages import wording

KEPT = (0, 2, 4, 5)
LAYERS = 7  # blocks 0 1 | 2 3 | 4 | 5 6
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 97}
INPUTS_BT = torch.arange(2 * 11).reshape(2, 11) % 97


def make_pair(folder: Path, *, tied: bool, kind: str = "llama") -> tuple[Path, Path]:
    """A random teacher, and a student assembled from it whose every weight is then moved."""
    torch.manual_seed(7)
    common = {**SIZES, "num_hidden_layers": LAYERS, "tie_word_embeddings": tied, "num_key_value_heads": 2}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common))
    else:
        types = ["sliding_attention" if i % 3 else "full_attention" for i in range(LAYERS)]
        config = Qwen3Config(**common, head_dim=8, layer_types=types, use_sliding_window=True, sliding_window=4)
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder / "teacher")
    assemble({"t": folder / "teacher"}, teacher_layers(KEPT), folder / "student", tied=tied)
    student = AutoModelForCausalLM.from_pretrained(folder / "student")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    student.save_pretrained(folder / "student")
    return folder / "teacher", folder / "student"


def patched_logits(teacher, student, plan) -> torch.Tensor:
    """Logits [B, T, V] of a plan run by hand: embedding of the first layer's owner, head of the last one's."""
    models = {"t": teacher, "s": student}
    hidden_BTD = models[plan[0].owner].model.embed_tokens(INPUTS_BT)
    positions_BT = torch.arange(INPUTS_BT.shape[1])[None].expand(INPUTS_BT.shape)
    length = INPUTS_BT.shape[1]
    for layer in plan:
        model, index = models[layer.owner], layer.index
        types = getattr(model.config, "layer_types", None)
        ahead_TT = torch.ones(length, length, dtype=torch.bool).triu(1)
        if types is not None and types[index] == "sliding_attention":
            ahead_TT |= torch.ones(length, length, dtype=torch.bool).tril(-model.config.sliding_window)
        mask_TT = torch.zeros(length, length).masked_fill(ahead_TT, torch.finfo(torch.float32).min)
        hidden_BTD = model.model.layers[index](
            hidden_BTD,
            attention_mask=mask_TT[None, None].expand(len(INPUTS_BT), 1, -1, -1),
            position_ids=positions_BT,
            position_embeddings=model.model.rotary_emb(hidden_BTD, positions_BT),
        )
    last = models[plan[-1].owner]
    return last.lm_head(last.model.norm(hidden_BTD))


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def logits_of(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load(folder)(INPUTS_BT).logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_patching_nothing_is_the_student_and_everything_the_teacher_bit_for_bit(tmp_path, tied):
    teacher, student = make_pair(tmp_path, tied=tied)
    plans = family_of_sets(KEPT, LAYERS, prefixes((3, 1, 0)))
    sources = {"t": teacher, "s": student}
    assemble(sources, plans[0], tmp_path / "nothing", tied=tied)
    assemble(sources, plans[-1], tmp_path / "everything", tied=tied)
    assert torch.equal(logits_of(tmp_path / "nothing"), logits_of(student))
    assert torch.equal(logits_of(tmp_path / "everything"), logits_of(teacher))
    assert not torch.equal(logits_of(teacher), logits_of(student))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("patched", [1, 2])
@pytest.mark.parametrize("order", [(3, 1, 0), (0, 1, 3), (1, 3, 0)])
def test_every_size_has_the_logits_of_patching_in_memory(tmp_path, tied, kind, patched, order):
    teacher, student = make_pair(tmp_path, tied=tied, kind=kind)
    plan = family_of_sets(KEPT, LAYERS, prefixes(order))[patched]
    same_owner = plan[0].owner == plan[-1].owner
    assemble({"t": teacher, "s": student}, plan, tmp_path / "model", tied=tied and same_owner)
    with torch.no_grad():
        expected = patched_logits(load(teacher), load(student), plan)
    torch.testing.assert_close(logits_of(tmp_path / "model"), expected, rtol=1e-5, atol=1e-5)


def test_an_untied_model_of_tied_ones_survives_save_and_load(tmp_path):
    teacher, student = make_pair(tmp_path, tied=True)
    plan = family_of_sets(KEPT, LAYERS, prefixes((3, 1, 0)))[1]
    assemble({"t": teacher, "s": student}, plan, tmp_path / "model", tied=False)
    model = load(tmp_path / "model")
    assert model.config.tie_word_embeddings is False
    assert torch.equal(model.lm_head.weight, load(teacher).model.embed_tokens.weight)
    assert torch.equal(model.model.embed_tokens.weight, load(student).model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(tmp_path / "again"), logits_of(tmp_path / "model"))


def test_a_layer_keeps_the_attributes_of_the_layer_it_came_from(tmp_path):
    teacher, student = make_pair(tmp_path, tied=False, kind="qwen3")
    assemble({"t": teacher, "s": student}, read_layers("s0 s1 t4 t5 t6"), tmp_path / "model", tied=False)
    types = json.loads((tmp_path / "teacher" / "config.json").read_text())["layer_types"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["layer_types"] == [types[i] for i in (0, 2, 4, 5, 6)]
    assert [layer.self_attn.layer_idx for layer in load(tmp_path / "model").model.layers] == [0, 1, 2, 3, 4]


def test_generation_with_and_without_a_cache_agrees(tmp_path):
    teacher, student = make_pair(tmp_path, tied=True, kind="qwen3")
    assemble({"t": teacher, "s": student}, read_layers("t0 t1 s1 s2 s3"), tmp_path / "model", tied=False)
    model = load(tmp_path / "model")
    texts = [
        model.generate(INPUTS_BT, max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    ]
    assert torch.equal(*texts)


def test_shards_hold_the_same_model(monkeypatch, tmp_path):
    teacher, student = make_pair(tmp_path, tied=False)
    plan = read_layers("s0 s1 s2 t5 t6")
    assemble({"t": teacher, "s": student}, plan, tmp_path / "whole", tied=False)
    monkeypatch.setattr(checkpoint_writer, "SHARD_BYTES", 30_000)
    assemble({"t": teacher, "s": student}, plan, tmp_path / "shards", tied=False)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits_of(tmp_path / "whole"), logits_of(tmp_path / "shards"))
    # And shards can be a source.
    assemble({"t": tmp_path / "shards"}, teacher_layers(range(5)), tmp_path / "copy", tied=False)
    assert torch.equal(logits_of(tmp_path / "whole"), logits_of(tmp_path / "copy"))


@pytest.mark.parametrize("teacher_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("student_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_result_is_stored_as_the_teacher_is(tmp_path, teacher_dtype, student_dtype):
    teacher, student = make_pair(tmp_path, tied=True)
    load(teacher).to(teacher_dtype).save_pretrained(teacher)
    load(student).to(student_dtype).save_pretrained(student)
    assemble({"t": teacher, "s": student}, read_layers("s0 s1 s2 t5 t6"), tmp_path / "model", tied=False)
    result, source = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", student))
    assert {tensor.dtype for tensor in result.values()} == {teacher_dtype}
    for name, tensor in source.items():
        if name != "model.norm.weight" and not name.startswith("model.layers.3."):
            assert torch.equal(result[name], tensor.to(teacher_dtype)), name
    assert result["lm_head.weight"].dtype == teacher_dtype


def test_a_place_that_the_teacher_stores_otherwise_is_stored_so(tmp_path):
    teacher, student = make_pair(tmp_path, tied=False)
    tensors = load_file(teacher / "model.safetensors")
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(mixed, teacher / "model.safetensors", metadata={"format": "pt"})
    assemble({"t": teacher, "s": student}, read_layers("s0 s1 s2 s3"), tmp_path / "model", tied=False)
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        assert tensor.dtype == (torch.float32 if "norm" in name else torch.bfloat16)


def test_a_weight_too_large_for_the_teachers_type_is_an_error(tmp_path):
    teacher, student = make_pair(tmp_path, tied=False)
    load(teacher).half().save_pretrained(teacher)
    tensors = load_file(student / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BoomspecError, match=wording("assembly.student_stored_too_large")):
        assemble({"t": teacher, "s": student}, read_layers("s0 s3"), tmp_path / "model", tied=False)
    assert not (tmp_path / "model" / "config.json").exists()


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("shard_bytes", [10**9, 30_000])
def test_many_sizes_at_once_are_the_same_files_as_one_by_one(monkeypatch, tmp_path, shard_bytes):
    teacher, student = make_pair(tmp_path, tied=True)
    (teacher / "chat_template.jinja").write_text("{{ messages }}")
    load(student).bfloat16().save_pretrained(student)  # so that some tensors are converted
    sources = {"t": teacher, "s": student}
    plans = family_of_sets(KEPT, LAYERS, prefixes((3, 1, 0)))
    jobs = {k: (plan, plan[0].owner == plan[-1].owner) for k, plan in enumerate(plans)}
    monkeypatch.setattr(checkpoint_writer, "SHARD_BYTES", shard_bytes)
    assemble_family(sources, {tmp_path / f"all-{k}": job for k, job in jobs.items()})
    for k, (plan, tied) in jobs.items():
        assemble(sources, plan, tmp_path / f"one-{k}", tied=tied)
        assert files_of(tmp_path / f"all-{k}") == files_of(tmp_path / f"one-{k}")
        assert (tmp_path / f"all-{k}" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_tensors_of_whole_blocks_lie_where_the_kernel_can_copy_or_share_them(tmp_path):
    teacher, student = make_pair(tmp_path, tied=False)
    assemble({"t": teacher, "s": student}, read_layers("s0 t2 t3 t4 t5"), tmp_path / "model", tied=False)
    entries = read_checkpoint(tmp_path / "model").values()
    whole = [entry for entry in entries if entry.bytes % 4096 == 0]
    assert len(whole) == 5 * 2  # queries and output of attention: 32 x 32 x 4 bytes
    sources = [entry for folder in (teacher, student) for entry in read_checkpoint(folder).values()]
    in_source = {entry.start % 4096 for entry in sources if entry.bytes % 4096 == 0}
    (remainder,) = {entry.start % 4096 for entry in whole}
    assert remainder in ({0} if shares_blocks(tmp_path) else in_source)


def test_models_that_do_not_fit_together_are_refused_before_anything_is_written(tmp_path):
    teacher, student = make_pair(tmp_path, tied=False)

    def refused(match: str, plan="s0 t1", target=tmp_path / "model", **sources: Path) -> None:
        with pytest.raises(BoomspecError, match=match):
            assemble({"t": teacher, "s": student} | sources, read_layers(plan), target, tied=False)
        assert not (tmp_path / "model").exists()

    def other(name: str, *, kind=LlamaForCausalLM, of=LlamaConfig, **fields) -> Path:
        kind(of(**{**SIZES, "num_hidden_layers": 4, "num_key_value_heads": 2, **fields})).save_pretrained(
            tmp_path / name
        )
        return tmp_path / name

    refused("t7 does not exist", plan="t0 t7")
    refused(r"embeddings differ in shape .*\(97, 32\) and \(97, 40\)", s=other("wider", hidden_size=40))
    refused(r"embeddings differ in shape .*\(97, 32\) and \(98, 32\)", s=other("more", vocab_size=98))
    refused(
        r"layer 0 is like no layer .*'mlp.down_proj.weight' is \(32, 48\) and \(32, 64\)",
        s=other("longer", intermediate_size=64),
    )
    refused(
        "differ in head_dim: 8 and 16",
        s=other("heads", num_attention_heads=2, head_dim=16, num_key_value_heads=1),
    )
    refused("a llama and a qwen3 model", s=other("family", kind=Qwen3ForCausalLM, of=Qwen3Config, head_dim=8))
    refused("written over one that it is made of", target=student)
    tensors = load_file(student / "model.safetensors")
    whole_numbers = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    save_file(whole_numbers, student / "model.safetensors", metadata={"format": "pt"})
    refused("is stored as I8, in the other model as F32")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    refused(r"layer 1 is like no layer .*'mlp.up_proj.weight' is \(48, 32\) and missing")
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("truncated")
