"""Families that headers alone do not explain: each is built tiny with its real class, and right through a student's
save, or refused before anything is made of it.

The reference is `runners.checking.in_memory`: the teacher's own modules, put together by hand.
"""

import pytest
import torch
from transformers import AutoConfig

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import read_layers, student_layers, teacher_layers
from boomspec.core.sizes import Lineage, Member
from boomspec.core.tasks import BuiltSize
from boomspec.models.facts import read_facts
from boomspec.models.plan_config import plan_config
from runners.assembly.assemble import assemble
from runners.checking.family import try_sizes
from runners.checking.in_memory import logits
from runners.checking.tiny import random_model, randomise
from runners.modeling.family import Family, InMemory
from runners.modeling.hidden_states import check_head
from runners.modeling.models import load, save_weights

KEPT = (0, 2, 4, 5)
LAYERS = 7
PLANS = ("s0 s1 s2 t5 t6", "s0 t2 t3 s2 t5 t6", "t0 t1 s1 s2 s3")

COMMON = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": LAYERS,
}  # fmt: skip
SIZED = {**COMMON, "head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
MIXED = ["linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention",
    "linear_attention", "linear_attention"]  # fmt: skip
LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "layer_types": MIXED,
}  # fmt: skip

FAMILIES = {
    "minicpm3": {**COMMON, **LATENT, "scale_depth": 1.4, "num_key_value_heads": 4},
    "afmoe": {**SIZED, "num_dense_layers": 3, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "lfm2": {**COMMON, "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"]},
    "lfm2_moe": {**COMMON, "num_dense_layers": 2, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"]},
    "olmo": COMMON,
    "nanochat": COMMON,
    "granitemoehybrid": {**COMMON, **MAMBA, "layer_types": MIXED, "num_local_experts": 0,
        "shared_intermediate_size": 48},
    "bamba": {**COMMON, **MAMBA, "attn_layer_indices": [1, 4]},
    "falcon_h1": {**COMMON, **MAMBA, "mamba_d_ssm": 64, "head_dim": 8},
    "mamba2": {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8,
        "vocab_size": 128, "num_hidden_layers": LAYERS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "nemotron_h": {**{k: v for k, v in SIZED.items() if k != "num_hidden_layers"}, "mamba_num_heads": 8,
        "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8, "n_routed_experts": 4,
        "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "moe", "mlp",
            "linear_attention"]},
    "qwen3_next": {**SIZED, **LINEAR, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**SIZED, **LINEAR},
    "deepseek_v3": {**COMMON, **EXPERTS, **LATENT, "first_k_dense_replace": 3, "num_key_value_heads": 4},
    "glm4_moe": {**SIZED, **EXPERTS, "first_k_dense_replace": 1},
    "llama4_text": {**SIZED, "num_local_experts": 4, "intermediate_size_mlp": 40, "attention_chunk_size": 8,
        "interleave_moe_layer_step": 2},
    "gemma4_text": {**SIZED, "sliding_window": 4, "global_head_dim": 16, "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0},
    "gpt_oss": {**SIZED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "recurrent_gemma": {**COMMON, "lru_width": 32, "attention_window_size": 8},
    "ernie4_5_moe": {**COMMON, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16,
        "moe_layer_start_index": 1},
}  # fmt: skip


TOKENS_BT = (torch.arange(22).reshape(2, 11) * 7) % 100 + 3


def sizes(*plans: str) -> list[BuiltSize]:
    """Of models that are not tied where embedding and head have two owners."""
    return [BuiltSize(plan=plan, tied=False) for plan in plans]


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_the_layers_patched_in_memory(tmp_path, family):
    random_model(AutoConfig.for_model(family, **FAMILIES[family]), seed=1).save_pretrained(tmp_path / "teacher")
    check_head(load(tmp_path / "teacher", dtype=torch.float32))  # as a training does first
    kept = (0, 3, 5, 6) if family == "gemma4_text" else KEPT
    plans = ("s0 s1 s2 s3", "s0 s1 t5 s3", "t0 t1 t2 s1 s2 t6") if family == "gemma4_text" else PLANS
    try_sizes(tmp_path / "teacher", kept, sizes(*plans), tmp_path)


REFUSED = {
    "gemma3n_text": ({**SIZED, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128, "layer_types": None, "laurel_rank": 4, "altup_num_inputs": 2,
        "activation_sparsity_pattern": None},
        "a gemma3n_text model cannot be interpolated: one table embeds"),
    "diffllama": (COMMON, "'diffllama' .*lambda.* layer 2 cannot become layer 1"),
    "jamba": ({**COMMON, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 2},
        "'attn_layer_period: 8' layer 2 cannot become layer 1"),
    "zamba": ({**COMMON, "mamba_d_state": 8, "mamba_dt_rank": 4, "n_mamba_heads": 2, "attn_layer_period": 2,
        "attn_layer_offset": 1, "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
        "a zamba model cannot be interpolated: its attention layers share"),
}  # fmt: skip


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_said_of_layers_at_another_place_is_refused_from_the_config(tmp_path, family):
    fields, message = REFUSED[family]
    random_model(AutoConfig.for_model(family, **fields), seed=1).save_pretrained(tmp_path / "teacher")
    with pytest.raises(BoomspecError, match=message):
        plan_config({"t": read_facts(tmp_path / "teacher")}, teacher_layers(KEPT), tied=False, base="t")


@pytest.mark.parametrize("family", ["lfm2", "llama4_text", "nemotron_h", "mamba2", "gpt_oss"])
def test_a_family_in_memory_is_what_its_folders_are(tmp_path, family):
    random_model(
        AutoConfig.for_model(family, **{**FAMILIES[family], "tie_word_embeddings": False}), seed=1
    ).save_pretrained(tmp_path / "t")
    assemble({"t": tmp_path / "t"}, teacher_layers(KEPT), tmp_path / "s", tied=False)
    student = load(tmp_path / "s", dtype=torch.float32)
    randomise(student, seed=2)
    save_weights(student, tmp_path / "s", dtype=torch.float32)
    facts = {owner: read_facts(tmp_path / owner) for owner in "ts"}
    models = {owner: load(tmp_path / owner, dtype=torch.float32) for owner in "ts"}
    member = Member(0, student_layers(4), 1, 1, tied=False)
    held = Family(Lineage("t", "s", KEPT, member, (member,)), InMemory(models, facts))
    for i, plan in enumerate(PLANS):
        assemble({o: tmp_path / o for o in "ts"}, read_layers(plan), tmp_path / f"{i}", tied=False)
        found, wanted = held.model(read_layers(plan)), load(tmp_path / f"{i}", dtype=torch.float32)
        torch.testing.assert_close(logits(found, TOKENS_BT), logits(wanted, TOKENS_BT), rtol=1e-5, atol=1e-5)
