"""Every family that the README names: all sizes against patching in memory, layer by layer, with its real class.

A teacher of 7 layers and a student of 4 (kept 0, 2, 4, 5), both random. What the assembled folder gives is compared
with the teacher's model object, its layers, embedding and head replaced by hand by those of the plan.
"""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan, read_layers
from runners.assembly.assemble import assemble, assemble_family
from tests.messages import wording

KEPT = (0, 2, 4, 5)
LAYERS = 7
PLANS = (  # blocks 0 1 | 2 3 | 4 | 5 6, both directions, 0 to 3 patched
    "s0 s1 s2 s3",
    "s0 s1 s2 t5 t6",
    "s0 t2 t3 s2 t5 t6",
    "t0 t1 s1 s2 s3",
    "t0 t1 t2 t3 s2 s3",
    "t0 t1 t2 t3 t4 t5 t6",
)
MIXED = PLANS[1:5]
VOCABULARY = 97
INPUTS_BT = (torch.arange(2 * 11).reshape(2, 11) * 7) % VOCABULARY
PER_LAYER = ("layer_types", "no_rope_layers")

COMMON = {
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": VOCABULARY,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GROUPED = {**COMMON, "num_key_value_heads": 2}
SIZED = {**GROUPED, "head_dim": 8}


@dataclass(frozen=True)
class Family:
    """A family's tiny config, and where its model object keeps its parts."""

    model_type: str
    fields: dict = field(default_factory=dict)
    tied: bool = False
    stack: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    norm: str | None = "model.norm"
    head: str = "lm_head"
    count: str = "num_hidden_layers"


GPT2 = {
    "n_embd": 16, "n_head": 4, "n_inner": 24, "vocab_size": VOCABULARY, "n_positions": 64, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
GPT2_PARTS = {
    "stack": "transformer.h",
    "embeddings": ("transformer.wte", "transformer.wpe"),
    "norm": "transformer.ln_f",
}
NEOX_PARTS = {"stack": "gpt_neox.layers", "embeddings": ("gpt_neox.embed_in",), "norm": "gpt_neox.final_layer_norm"}
FAMILIES = {
    "llama": Family("llama", GROUPED),
    "llama, tied": Family("llama", GROUPED, tied=True),
    "mistral": Family("mistral", {**SIZED, "sliding_window": 4}),
    "qwen2": Family("qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}),
    "qwen3": Family("qwen3", SIZED, tied=True),
    "gemma2": Family("gemma2", {**SIZED, "sliding_window": 4}, tied=True),
    "gemma3": Family("gemma3_text", {**SIZED, "sliding_window": 4}, tied=True),
    "phi3": Family("phi3", GROUPED),
    "olmo2": Family("olmo2", GROUPED),
    "smollm3": Family("smollm3", GROUPED, tied=True),
    "gpt2": Family("gpt2", GPT2, tied=True, count="n_layer", **GPT2_PARTS),
    "gpt_neox": Family("gpt_neox", COMMON, **NEOX_PARTS),
    "gpt_neox, tied": Family("gpt_neox", COMMON, tied=True, **NEOX_PARTS),
    "gpt_neo": Family(
        "gpt_neo",
        {"hidden_size": 16, "num_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "window_size": 4}
        | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0},
        tied=True,
        count="num_layers",
        **GPT2_PARTS,
    ),
    "qwen3_moe": Family(
        "qwen3_moe", {**SIZED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    ),
    "mixtral": Family("mixtral", {**SIZED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite": Family(
        "granite",
        {**GROUPED, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
        tied=True,
    ),
}  # fmt: skip


def random_model(config, auto=AutoModelForCausalLM, *, seed: int):
    torch.manual_seed(seed)
    model = auto.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def make_pair(family: Family, folder: Path, **more):
    """Random teacher and student, in memory and saved; the student's layers have the attributes of the kept ones."""
    fields = {**family.fields, "tie_word_embeddings": family.tied, family.count: LAYERS, **more}
    if family.model_type == "gpt_neo":
        fields["attention_types"] = [[["global", "local", "local"], 2], [["local"], 1]]
    teacher_config = AutoConfig.for_model(family.model_type, **fields)
    fields = {**fields, family.count: len(KEPT)}
    for key in PER_LAYER:
        if getattr(teacher_config, key, None) is not None:
            fields[key] = [getattr(teacher_config, key)[i] for i in KEPT]
    if family.model_type == "gpt_neo":
        fields["attention_types"] = [[[teacher_config.attention_layers[i] for i in KEPT], 1]]
    student_config = AutoConfig.for_model(family.model_type, **fields)
    teacher, student = random_model(teacher_config, seed=1), random_model(student_config, seed=2)
    teacher.save_pretrained(folder / "t")
    student.save_pretrained(folder / "s")
    return teacher, student


def put(model, path: str, module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, deepcopy(module))


def patched(family: Family, teacher, student, plan: LayerPlan):
    """The model of a plan, made of model objects: no file, no name of a tensor."""
    models = {"t": teacher, "s": student}
    model = deepcopy(teacher)
    first, last = models[plan[0].owner], models[plan[-1].owner]
    for path in family.embeddings:
        put(model, path, first.get_submodule(path))
    if family.norm is not None:
        put(model, family.norm, last.get_submodule(family.norm))
    put(model, family.head, last.get_submodule(family.head))
    layers = [deepcopy(models[layer.owner].get_submodule(family.stack)[layer.index]) for layer in plan]
    for i, layer in enumerate(layers):
        for module in layer.modules():
            for name in ("layer_idx", "layer_id"):  # gpt_neo has its own name for it
                if hasattr(module, name):
                    setattr(module, name, i)
    put(model, family.stack, torch.nn.ModuleList(layers))
    model.config.num_hidden_layers = len(plan)
    for key in PER_LAYER:
        if getattr(teacher.config, key, None) is not None:
            setattr(model.config, key, [getattr(models[x.owner].config, key)[x.index] for x in plan])
    return model


def load(folder: Path, auto=AutoModelForCausalLM):
    """The stock class's model of a folder, which must lack nothing and hold nothing more."""
    model, found = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    return model.eval()


def is_tied(family: Family, plan: LayerPlan) -> bool:
    return family.tied and plan[0].owner == plan[-1].owner


def assemble_all(family: Family, folder: Path, plans) -> dict[str, Path]:
    targets = {plan: folder / plan.replace(" ", "-") for plan in plans}
    jobs = {target: (read_layers(plan), is_tied(family, read_layers(plan))) for plan, target in targets.items()}
    assemble_family({"t": folder / "t", "s": folder / "s"}, jobs)
    return targets


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(INPUTS_BT).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_is_the_model_patched_in_memory(tmp_path, name):
    family = FAMILIES[name]
    teacher, student = make_pair(family, tmp_path)
    for plan, target in assemble_all(family, tmp_path, PLANS).items():
        model = load(target)
        expected = patched(family, teacher, student, read_layers(plan))
        torch.testing.assert_close(logits(model), logits(expected), rtol=1e-5, atol=1e-5)
        assert model.config.tie_word_embeddings is is_tied(family, read_layers(plan))
    assert not torch.allclose(logits(teacher), logits(student), atol=0.1)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_is_the_same_with_and_without_a_cache(tmp_path, name):
    family = FAMILIES[name]
    make_pair(family, tmp_path)
    plan = "s0 t2 t3 s2 t5 t6"
    model = load(assemble_all(family, tmp_path, [plan])[plan])
    ones_BT = torch.ones_like(INPUTS_BT)
    texts = [
        model.generate(INPUTS_BT, attention_mask=ones_BT, max_new_tokens=6, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert texts[0].shape == (2, 17)
    assert torch.equal(*texts)


def edit_config(folder: Path, edit) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gemma3", "smollm3"])
def test_a_config_that_only_states_the_pattern_gets_the_list_written_out(tmp_path, name):
    family = FAMILIES[name]
    teacher, student = make_pair(family, tmp_path)
    edit_config(tmp_path / "t", lambda config: [config.pop(key, None) for key in PER_LAYER])
    for plan, target in assemble_all(family, tmp_path, MIXED).items():
        expected = patched(family, teacher, student, read_layers(plan))
        torch.testing.assert_close(logits(load(target)), logits(expected), rtol=1e-5, atol=1e-5)
    # Without a student that has the list, too.
    pruned = read_layers("t1 t3 t4 t6")
    assemble({"t": tmp_path / "t"}, pruned, tmp_path / "pruned", tied=family.tied)
    expected = patched(family, teacher, student, pruned)
    torch.testing.assert_close(logits(load(tmp_path / "pruned")), logits(expected), rtol=1e-5, atol=1e-5)


def test_the_alternation_of_gemma_3_follows_the_layers(tmp_path):
    family = FAMILIES["gemma3"]
    teacher, _ = make_pair(family, tmp_path)
    assert teacher.config.layer_types == ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"]
    folder = assemble_all(family, tmp_path, MIXED)["s0 s1 s2 t5 t6"]
    types = json.loads((folder / "config.json").read_text())["layer_types"]
    assert types == ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(("step", "listed"), [(1, [0, 3]), (2, []), (3, [2])])
def test_dense_layers_of_a_mixture_of_experts_stay_dense(tmp_path, step, listed):
    family = FAMILIES["qwen3_moe"]
    dense = [i for i in range(LAYERS) if i in listed or (i + 1) % step]
    fields = {**family.fields, "decoder_sparse_step": step, "mlp_only_layers": listed, "num_hidden_layers": LAYERS}
    teacher = random_model(AutoConfig.for_model("qwen3_moe", **fields), seed=1)
    teacher.save_pretrained(tmp_path / "t")
    fields |= {
        "decoder_sparse_step": 1,
        "num_hidden_layers": 4,
        "mlp_only_layers": [KEPT.index(i) for i in dense if i in KEPT],
    }
    student = random_model(AutoConfig.for_model("qwen3_moe", **fields), seed=2)
    student.save_pretrained(tmp_path / "s")
    for plan, target in assemble_all(family, tmp_path, PLANS).items():
        model = load(target)
        expected = patched(family, teacher, student, read_layers(plan))
        torch.testing.assert_close(logits(model), logits(expected), rtol=1e-5, atol=1e-5)
        origins = [x.index if x.owner == "t" else KEPT[x.index] for x in read_layers(plan)]
        assert model.config.mlp_only_layers == [new for new, i in enumerate(origins) if i in dense]


def test_attention_scaled_by_the_layers_index_is_refused(tmp_path):
    make_pair(FAMILIES["gpt2"], tmp_path, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(BoomspecError, match=wording("families.scale_attn_inverse_layer")):
        assemble({"t": tmp_path / "t", "s": tmp_path / "s"}, read_layers("t0 t1 t2 t3 s3"), tmp_path / "x", tied=False)
    assert not (tmp_path / "x").exists()


def rename_tensors(folder: Path, new_name) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {new_name(name): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_student_of_gpt2_interpolates_with_a_checkpoint_of_the_old_names(tmp_path):
    family = FAMILIES["gpt2"]
    teacher, student = make_pair(family, tmp_path)
    rename_tensors(tmp_path / "t", lambda name: name.removeprefix("transformer."))
    tensors = load_file(tmp_path / "t" / "model.safetensors")
    masks = {f"h.{i}.attn.bias": torch.ones(64, 64).tril()[None, None] for i in range(LAYERS)}
    save_file(tensors | masks, tmp_path / "t" / "model.safetensors", metadata={"format": "pt"})
    edit_config(tmp_path / "t", lambda config: config.pop("tie_word_embeddings", None))
    for plan, target in assemble_all(family, tmp_path, PLANS).items():
        expected = patched(family, teacher, student, read_layers(plan))
        torch.testing.assert_close(logits(load(target)), logits(expected), rtol=1e-5, atol=1e-5)


def test_two_spellings_of_one_tensor_are_refused(tmp_path):
    make_pair(FAMILIES["gpt2"], tmp_path)
    path = tmp_path / "t" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"ln_f.bias": tensors["transformer.ln_f.bias"].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(BoomspecError, match=r"both 'transformer\.ln_f\.bias'"):
        assemble({"t": tmp_path / "t"}, read_layers("t0"), tmp_path / "x", tied=True)


class AsBertLayer(torch.nn.Module):
    """A DistilBERT layer with a BERT layer's call."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states, attention_mask=None, *_, **__):
        return self.layer(hidden_states, attention_mask)


class AsBertEmbeddings(torch.nn.Module):
    def __init__(self, embeddings) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, input_ids=None, **_):
        return self.embeddings(input_ids)


def patched_bert(teacher, student, plan: LayerPlan):
    layers = {"t": teacher.bert.encoder.layer, "s": [AsBertLayer(x) for x in student.distilbert.transformer.layer]}
    model = deepcopy(teacher)
    if plan[0].owner == "s":
        model.bert.embeddings = AsBertEmbeddings(student.distilbert.embeddings)
    if plan[-1].owner == "s":
        s = student
        model.cls = torch.nn.Sequential(s.vocab_transform, s.activation, s.vocab_layer_norm, s.vocab_projector)
    model.bert.encoder.layer = torch.nn.ModuleList([layers[x.owner][x.index] for x in plan])
    return model


@pytest.fixture
def bert_pair(tmp_path):
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0}
    widths = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": LAYERS}
    teacher = random_model(AutoConfig.for_model("bert", **sizes, **widths), AutoModelForMaskedLM, seed=1)
    widths = {"dim": 16, "hidden_dim": 24, "n_heads": 4, "n_layers": len(KEPT)}
    student = random_model(AutoConfig.for_model("distilbert", **sizes, **widths), AutoModelForMaskedLM, seed=2)
    teacher.save_pretrained(tmp_path / "t")
    student.save_pretrained(tmp_path / "s")
    return teacher, student


BERT = Family("bert", tied=True)


def test_distilbert_is_a_student_of_bert(tmp_path, bert_pair):
    teacher, student = bert_pair
    for plan, target in assemble_all(BERT, tmp_path, PLANS).items():
        model = load(target, AutoModelForMaskedLM)
        assert type(model) is type(teacher)
        expected = patched_bert(teacher, student, read_layers(plan))
        torch.testing.assert_close(logits(model), logits(expected), rtol=1e-5, atol=1e-5)
        if plan.startswith("s"):
            assert not model.bert.embeddings.token_type_embeddings.weight.any()


def test_old_names_and_other_heads_of_bert_are_understood(tmp_path, bert_pair):
    teacher, student = bert_pair
    path = tmp_path / "t" / "model.safetensors"
    rename_tensors(
        tmp_path / "t",
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    )
    others = {"bert.pooler.dense.weight": torch.ones(16, 16), "cls.seq_relationship.weight": torch.ones(2, 16)}
    save_file(load_file(path) | others, path, metadata={"format": "pt"})
    for plan, target in assemble_all(BERT, tmp_path, MIXED).items():
        expected = patched_bert(teacher, student, read_layers(plan))
        torch.testing.assert_close(logits(load(target, AutoModelForMaskedLM)), logits(expected), rtol=1e-5, atol=1e-5)


def test_a_bert_checkpoint_without_a_head_says_what_was_looked_for(tmp_path, bert_pair):
    path = tmp_path / "t" / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k.startswith("bert.")}, path)
    with pytest.raises(BoomspecError, match=wording("families.no_head_found_looked")):
        assemble({"t": tmp_path / "t"}, read_layers("t0"), tmp_path / "x", tied=True)


def test_families_that_do_not_fit_are_refused(tmp_path, bert_pair):
    make_pair(FAMILIES["llama"], tmp_path / "llama")
    sources = {"t": tmp_path / "llama" / "t", "s": tmp_path / "s"}
    with pytest.raises(BoomspecError, match=wording("families.llama_distilbert_model_cannot")):
        assemble(sources, read_layers("s0 t1"), tmp_path / "x", tied=False)
    assert not (tmp_path / "x").exists()
