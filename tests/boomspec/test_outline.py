"""A model written short: nothing of its names, shapes and types is lost."""

from pathlib import Path

import pytest

from boomspec.models.checkpoint import TensorEntry
from boomspec.models.outline import config_of, config_text, is_plain, outline, tensors_of
from tests.boomspec.public_hub import public_facts

FIXTURES = sorted(path for path in (Path(__file__).parents[1] / "fixtures" / "hub").iterdir() if path.is_dir())


def entries(*names: str, dtype: str = "F32", shape: tuple[int, ...] = (4, 8)) -> list[TensorEntry]:
    return [TensorEntry(name, dtype, shape) for name in names]


@pytest.mark.parametrize(
    "names",
    [
        ["embed.weight"],
        [f"layers.{i}.w" for i in range(12)],
        [f"layers.{i}.w" for i in (0, 1, 5, 7, 8)],
        [f"0.{i}.w" for i in range(3)],
        [f"l.{i}.experts.{e}.w" for i in range(1, 4) for e in range(16)],
        [f"l.{i}.experts.{e}.w" for i in (1, 3) for e in (0, 2)] + ["l.2.experts.1.w", "l.2.experts.7.w"],
        [f"a.{i}.b.{j}.c.{k}" for i in range(2) for j in range(3) for k in range(i + j)] + ["a.9.b.0.c.4"],
        ["layer1.0.w2", "layer2.0.w2", "8bit.scale"],
    ],
)
def test_every_name_comes_back(names):
    rows = outline(entries(*names))
    assert sorted(tensors_of(rows)) == sorted(names)
    assert outline(reversed(entries(*names))) == rows


def test_shapes_and_types_come_back():
    given = [
        TensorEntry("a.0.w", "F32", (4, 8)),
        TensorEntry("a.1.w", "BF16", (4, 8)),
        TensorEntry("a.2.w", "F32", (4, 9)),
        TensorEntry("scale", "F64", ()),
        TensorEntry("none", "I64", (0,)),
    ]
    assert tensors_of(outline(given)) == {entry.name: entry for entry in given}


def test_a_mixture_of_experts_is_a_few_rows():
    names = [f"model.layers.{i}.mlp.experts.{e}.{p}.weight" for i in range(3, 61) for e in range(256) for p in "abc"]
    rows = outline(entries(*names))
    assert rows[0] == "F32 4x8 model.layers.#.mlp.experts.#.a.weight 3-60/0-255"
    assert len(rows) == 3


def test_a_config_keeps_numbers_that_json_does_not_have():
    config = {"b": [0.0, float("inf")], "a": {"__float__": "Infinity"}, "_name_or_path": "/home/me/x"}
    assert config_of(config_text(config)) == {"a": {"__float__": "Infinity"}, "b": [0.0, float("inf")]}
    assert config_text({"a": 1, "b": 2, "transformers_version": "5.1"}) == config_text({"b": 2, "a": 1})


def llama(layers: int = 3, **more: object) -> tuple[dict[str, object], list[TensorEntry]]:
    modules = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    modules += ["input_layernorm", "post_attention_layernorm"]
    names = [f"model.layers.{i}.{module}.weight" for i in range(layers) for module in modules]
    shared = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    return {"model_type": "llama", **more}, entries(*names, *shared)


def test_a_family_is_plain_where_all_is_as_always():
    config, tensors = llama()
    assert is_plain(config, tensors)
    for said in ({"vocab_size": 77}, {"hidden_size": 77}, {"intermediate_size": 77}, {"hidden_act": "none such"}):
        assert not is_plain({**config, **said}, tensors)
    assert not is_plain({**config, "model_type": "minicpm3"}, tensors)
    assert not is_plain({**config, "quantization_config": {"quant_method": "fp8"}}, tensors)
    assert not is_plain(config, [*tensors, *entries("v_head.summary.weight")])
    assert not is_plain(config, tensors[:-1])  # no head, and not tied
    assert is_plain({**config, "tie_word_embeddings": True}, tensors[:-1])
    assert not is_plain({**config, "tie_word_embeddings": True}, tensors)
    assert not is_plain(config, [entry for entry in tensors if entry.name != "model.layers.1.mlp.up_proj.weight"])
    other = [entry if "layers.1.mlp" not in entry.name else entries(entry.name, shape=(4, 9))[0] for entry in tensors]
    assert not is_plain(config, other)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.name)
def test_headers_of_published_models_come_back(fixture):
    facts = public_facts(fixture.name.replace("--", "/", 1))
    rows = outline(facts.stored)
    assert tensors_of(rows) == {entry.name: TensorEntry(entry.name, entry.dtype, entry.shape) for entry in facts.stored}
    assert len(rows) < 40
    assert config_of(config_text(facts.config)).items() <= dict(facts.config).items()


def test_which_published_models_are_plain():
    found = {
        f.name: is_plain((facts := public_facts(f.name.replace("--", "/", 1))).config, facts.stored) for f in FIXTURES
    }
    assert {name for name, plain in found.items() if plain} == {
        "Harvard-DCML--boomerang-qwen3-2.3B",
        "HuggingFaceTB--SmolLM2-135M",
        "Qwen--Qwen3-4B",
        "Qwen--Qwen3-4B-Base",
        "Qwen--Qwen3-8B-Base",
        "meta-llama--Llama-3.2-3B",
    }
