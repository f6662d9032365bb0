"""Text decoders among other parts: what is measured, distilled and built is the decoder, a plain language model."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from boomspec.models.facts import read_facts, total_parameters
from runners.checking.in_memory import logits
from runners.checking.layout import randomise
from runners.checking.trial import try_sizes
from runners.family import torch_dtype
from runners.head import check_head
from runners.models import load, save_weights
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
