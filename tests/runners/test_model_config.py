"""The config of a layer plan, field by field, from configs of families that need not exist."""

from dataclasses import replace

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import read_layers
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.facts import ModelFacts, model_facts
from runners.modeling.model_config import plan_config
from tests.messages import wording

PLAN = read_layers("s0 s1 t4 t5")


def model(layers: int, **fields) -> ModelFacts:
    names = ["model.embed.weight", *(f"model.layers.{i}.a.weight" for i in range(layers))]
    tensors = {name: TensorEntry(name, "F32", (4, 4)) for name in names}
    tensors["model.norm.weight"] = TensorEntry("model.norm.weight", "F32", (4,))
    config = {"model_type": "unheard_of", "num_hidden_layers": layers, **fields}
    return model_facts(config, tensors, "a model")


def config_of(teacher: dict, student: dict | None = None, plan=PLAN, layers=(6, 3)) -> dict:
    student = teacher if student is None else student
    facts = {"t": model(layers[0], **teacher), "s": model(layers[1], **student)}
    return plan_config(facts, plan, tied=False, base="t")


def test_an_unknown_list_with_an_entry_for_each_layer_is_re_indexed():
    config = config_of({"strengths": [0, 1, 2, 3, 4, 5]}, {"strengths": [10, 11, 12]})
    assert config["strengths"] == [10, 11, 4, 5]
    assert config["num_hidden_layers"] == 4
    assert config["tie_word_embeddings"] is False


@pytest.mark.parametrize("key", ["layer_types", "no_rope_layers", "strength_of_layers", "layerwise"])
def test_a_per_layer_list_of_another_length_is_an_error(key):
    with pytest.raises(BoomspecError, match=wording("model_config.entries_model_layers", key=key)):
        config_of({key: [1] * 5}, {key: [1] * 3})
    with pytest.raises(BoomspecError, match=wording("model_config.entries_model_layers_2", key=key)):
        config_of({key: [1] * 6}, {key: [1] * 4})


@pytest.mark.parametrize("key", ["strengths", "layer_types"])
def test_a_list_that_only_one_of_the_models_has_for_each_layer_is_an_error(key):
    with pytest.raises(BoomspecError, match=wording("model_config.value_each_layer_one", key=key)):
        config_of({key: [1] * 6}, {})
    with pytest.raises(BoomspecError, match=wording("model_config.value_each_layer_one", key=key)):
        config_of({key: []}, {key: [1] * 3})


def test_lists_that_are_not_about_layers_travel_unchanged():
    fields = {"eos_token_id": [1, 2, 3, 4, 5, 6], "architectures": ["A"], "mlp_only_layers": [], "sections": [16, 24]}
    config = config_of(fields | {"architectures": ["A"]})
    assert {key: config[key] for key in fields} == fields


def test_a_list_that_happens_to_be_as_long_as_the_teacher_but_is_the_students_too_travels_unchanged():
    assert config_of({"sections": [1, 2, 3, 4, 5, 6]})["sections"] == [1, 2, 3, 4, 5, 6]


def test_lists_of_layer_indices_are_translated():
    config = config_of({"mlp_only_layers": [0, 5]}, {"mlp_only_layers": [1]})
    assert config["mlp_only_layers"] == [1, 3]
    assert config_of({"mlp_only_layers": [4]}, {})["mlp_only_layers"] == [2]


def test_every_so_manieth_layer_with_experts_becomes_a_list_of_the_others():
    config = config_of({"decoder_sparse_step": 2}, {"decoder_sparse_step": 1, "mlp_only_layers": [1]})
    assert (config["mlp_only_layers"], config["decoder_sparse_step"]) == ([1, 2], 1)  # s1 and t4


def test_a_number_of_first_layers_is_counted_anew():
    fields = {"first_k_dense_replace": 2}
    assert config_of(fields)["first_k_dense_replace"] == 2  # s0 s1 t4 t5
    assert config_of(fields, plan=read_layers("t0 t1 s0 t5"))["first_k_dense_replace"] == 3
    assert config_of(fields, {"first_k_dense_replace": 1})["first_k_dense_replace"] == 1
    assert config_of({"num_dense_layers": 2}, plan=read_layers("t0 t4 t5"))["num_dense_layers"] == 1
    with pytest.raises(BoomspecError, match=wording("model_config.under_first_dense_replace")):
        config_of(fields, plan=read_layers("t0 s0 t5 t1"))


def test_a_factor_that_is_divided_by_the_depth_keeps_each_layer_as_it_was():
    config = config_of({"scale_depth": 3.0}, {"scale_depth": 3.0 * (3 / 6) ** 0.5})
    assert config["scale_depth"] / 4**0.5 == pytest.approx(3.0 / 6**0.5)
    with pytest.raises(BoomspecError, match=wording("model_config.differ_what_each_layer")):
        config_of({"scale_depth": 3.0}, {"scale_depth": 3.0})


def test_a_pattern_without_a_list_is_kept_or_refused():
    with pytest.raises(BoomspecError, match=wording("model_config.under_attn_layer_period")):
        config_of({"attn_layer_period": 4}, plan=read_layers("t0 t1 s1 t3"))


def test_letters_and_objects_of_layers_are_re_indexed():
    config = config_of(
        {"hybrid_override_pattern": "M*-ME-", "per_layer_config": {"1": {"a": 1}, "5": {"a": 5}}},
        {"hybrid_override_pattern": "M*E", "per_layer_config": {"1": {"a": 7}}},
    )
    assert config["hybrid_override_pattern"] == "M*E-"
    assert config["per_layer_config"] == {"1": {"a": 7}, "3": {"a": 5}}
    with pytest.raises(BoomspecError, match=wording("model_config.hybrid_override_pattern_letters")):
        config_of({"hybrid_override_pattern": "M*-ME"}, {"hybrid_override_pattern": "M*E"})


def test_layer_types_that_repeat_are_written_out():
    assert config_of({"block_types": ["r", "r", "a"]}, {"block_types": ["a", "r", "r"]})["block_types"] == [
        "a",
        "r",
        "r",
        "a",
    ]


def test_a_pattern_of_an_unknown_family_cannot_be_written_out():
    with pytest.raises(BoomspecError, match=wording("model_config.sliding_window_pattern_unknown")):
        config_of({"sliding_window_pattern": 6})


ROPE = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OLD_ROPE = {"rope_theta": 5e5, "rope_scaling": {**{k: v for k, v in ROPE.items() if k != "rope_theta"}}}
BY_TYPE = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
           "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip


@pytest.mark.parametrize(
    ("teacher", "student", "match"),
    [
        ({"rms_norm_eps": 1e-6}, {"rms_norm_eps": 1e-5}, "rms_norm_eps: 1e-06 and 1e-05"),
        ({"no_one_knows": 1}, {"no_one_knows": 2}, "no_one_knows: 1 and 2"),
        ({"use_qk_norm": True}, {"use_qk_norm": 1}, "use_qk_norm: True and 1"),
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_theta: 10000"),
        ({"rope_parameters": ROPE}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "factor: 8"),
        ({"rope_parameters": ROPE}, {"rope_parameters": {**ROPE, "factor": 4.0}}, r"factor: 8\.0 and 4\.0"),
        ({"rope_parameters": ROPE}, {"rope_parameters": {**ROPE, "rope_type": "yarn"}}, "rope_type: llama3 and yarn"),
        (OLD_ROPE, {"rope_theta": 5e5, "rope_scaling": None}, "factor: 8"),
        (OLD_ROPE, {"rope_theta": 5e5, "rope_scaling": {"type": "dynamic", "factor": 8.0}}, "high_freq_factor"),
        ({"rope_theta": 1e4}, {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}, "factor: None"),
        ({"rope_parameters": BY_TYPE},
         {"rope_parameters": {**BY_TYPE, "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}},
         r"sliding_attention\.rope_theta"),
        ({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None}, {"rope_parameters": BY_TYPE},
         r"full_attention\.factor"),
        ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
         "partial_rotary_factor"),
    ],
)  # fmt: skip
def test_configs_that_make_equal_weights_compute_different_things_are_refused(teacher, student, match):
    with pytest.raises(BoomspecError, match=f"differ in .*{match}"):
        config_of(teacher, student)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (OLD_ROPE, {"rope_parameters": ROPE}),
        ({"rope_theta": 1e4, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
        ({"rotary_emb_base": 1e4, "rotary_pct": 0.25},
         {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25, "rope_type": "default"}}),
        ({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
         {"rope_parameters": BY_TYPE}),
        ({"attention_dropout": 0.1, "torch_dtype": "float32", "_name_or_path": "a", "max_position_embeddings": 64},
         {"attention_dropout": 0.0, "dtype": "float32", "_name_or_path": "b", "max_position_embeddings": 128}),
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 2}),
    ],
)  # fmt: skip
def test_configs_that_say_the_same_in_other_words_agree(teacher, student):
    config_of(teacher, student)


def test_what_one_of_the_configs_leaves_open_is_no_contradiction():
    config = config_of({"sliding_window": 4096, "head_dim": 8}, {"sliding_window": None})
    assert (config["sliding_window"], config["head_dim"]) == (4096, 8)


def test_a_config_without_a_number_of_layers_is_refused():
    facts = model(6)
    facts = replace(facts, config={"model_type": "unheard_of"})
    with pytest.raises(BoomspecError, match=wording("model_config.says_no_number_layers")):
        plan_config({"t": facts}, read_layers("t0 t1"), tied=False, base="t")
