"""What cannot be right of a family is found while a plan is made: from config.json and headers, nothing is loaded."""

import json
from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.layers import read_layers
from boomspec.models.checkpoint import encode_header
from boomspec.models.facts import read_facts
from boomspec.models.plan_config import plan_config

LAYERS = 6
ROPE = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}


def write(folder: Path, layers: int = LAYERS, prefix: str = "model.", **config: object) -> Path:
    """A model of which nothing but config.json, names and shapes is looked at."""
    shapes = {f"{prefix}embed_tokens.weight": (300, 16), f"{prefix}norm.weight": (16,), "lm_head.weight": (300, 16)}
    shapes |= {f"{prefix}layers.{i}.mlp.up_proj.weight": (16, 16) for i in range(layers)}
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = ("F32", shape, start, end)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(encode_header(entries) + b"\0" * end)
    common = {"model_type": "llama", "num_hidden_layers": layers, "vocab_size": 300, "hidden_size": 16}
    (folder / "config.json").write_text(json.dumps({**common, **config}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    return folder


REFUSED = [
    ({"first_k_dense_replace": 1, "model_type": "deepseek_v3"}, [0, 2, 4], None),
    ({"num_dense_layers": 3, "model_type": "afmoe"}, [0, 2, 4], None),
    ({"scale_depth": 1.4, "model_type": "minicpm3"}, [0, 2, 4], None),
    ({"attn_layer_period": 2}, [0, 2, 4], "student.keep.*attn_layer_period: 2' layer 2 cannot become layer 1"),
    ({"attn_layer_period": 2}, [0, 1, 4], None),
    ({"model_type": "diffllama"}, [0, 2, 4], "student.keep.*lambda"),
    ({"model_type": "gpt_neox_japanese"}, [0, 2, 4], "student.keep.*only the last layer has a bias"),
    ({"model_type": "gemma4_text", "layer_types": ["s", "s", "s", "s", "s", "full_attention"]}, [0, 2, 4],
     "student.keep.*the last layer of a gemma4_text model is always of type full_attention, that of this plan is s"),
    ({"model_type": "gemma4_text", "layer_types": ["s", "s", "s", "s", "s", "full_attention"]}, [0, 2, 5], None),
    ({"hidden_size_per_layer_input": 8}, [0, 2, 4], "student.keep.*one table embeds the tokens for all layers"),
    ({"num_kv_shared_layers": 2}, [0, 2, 4], "student.keep.*num_kv_shared_layers: 2' layer 0 .* cannot become layer 0"),
    ({"model_type": "zamba2"}, [0, 2, 4], "student.keep.*share one set of weights"),
    ({"layer_types": ["full_attention"] * 5}, [0, 2, 4], "student.keep.*'layer_types' has 5 entries, .* 6 layers"),
    ({"tie_word_embeddings": False}, [0, 2, 4], None),
    ({"model_type": "mllama_text_model"}, [0, 2, 4], "teacher.*no causal language model of the type .* 'mllama_text"),
    ({"model_type": "whole", "text_config": {"model_type": "qwen3_vl_text"}}, [0, 2, 4],
     "teacher.*a whole model holds a text decoder among other parts, .* no causal language model .*qwen3_vl_text"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "keep", "match"), REFUSED)
def test_a_layer_that_would_be_another_at_its_new_place_is_found_at_plan(specs, folder, config, keep, match):
    write(folder / "teacher", **config)
    edits = (("teacher", {"model": "./teacher"}), ("student.keep", keep), ("baselines", []))
    if match is None:
        specs.edited(*edits)
        return
    place, _, message = match.partition(".*")
    with pytest.raises(BoomspecError, match=rf"(?s){place.split('.')[-1]}.*{message}"):
        specs.edited(*edits)


@pytest.mark.parametrize(
    ("teacher", "student", "match"),
    [
        ({"rope_parameters": ROPE}, {"rope_parameters": {**ROPE, "factor": 2.0}}, r"factor: 8\.0 and 2\.0"),
        ({"rope_theta": 1e4}, {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "factor"),
        ({"hidden_act": "silu"}, {"hidden_act": "gelu"}, "hidden_act: silu and gelu"),
        ({"hidden_act": "silu"}, {"hidden_act": "silu", "torch_dtype": "float16"}, None),
    ],
)
def test_a_student_that_computes_otherwise_is_found_at_plan(specs, folder, teacher, student, match):
    write(folder / "teacher", **teacher)
    write(folder / "student", layers=3, **student)
    edits = (
        ("teacher", {"model": "./teacher"}),
        ("student", {"model": "./student", "keep": [0, 2, 4]}),
        ("distill", None),
        ("baselines", []),
    )
    if match is None:
        specs.edited(*edits)
        return
    with pytest.raises(SpecError, match=f"(?s)student.*configs differ in .*{match}"):
        specs.edited(*edits)


def test_a_decoder_among_other_parts_is_read_as_a_model_of_its_own(folder):
    inner = {"model_type": "mistral", "num_hidden_layers": LAYERS, "vocab_size": 300, "hidden_size": 16}
    write(
        folder / "t", prefix="language_model.model.", model_type="mistral3", text_config=inner, num_hidden_layers=None
    )
    facts = read_facts(folder / "t")
    assert (facts.model_type, facts.prefix, facts.count, facts.tied) == ("mistral", "model.layers", LAYERS, False)
    config = plan_config({"t": facts}, read_layers("t0 t5"), tied=False, base="t")
    assert config == {**inner, "num_hidden_layers": 2, "tie_word_embeddings": False}
