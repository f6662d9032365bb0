"""The config of a layer plan, field by field, from configs of families that need not exist."""

from dataclasses import replace

import pytest

from boomspec.errors import BoomspecError
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.facts import ModelFacts, model_facts
from runners.model_config import plan_config

PLAN = ("s0", "s1", "t4", "t5")


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
    with pytest.raises(BoomspecError, match=f"'{key}' has 5 entries, the model has 6 layers"):
        config_of({key: [1] * 5}, {key: [1] * 3})
    with pytest.raises(BoomspecError, match=f"'{key}' has 4 entries, the model has 3 layers"):
        config_of({key: [1] * 6}, {key: [1] * 4})


@pytest.mark.parametrize("key", ["strengths", "layer_types"])
def test_a_list_that_only_one_of_the_models_has_for_each_layer_is_an_error(key):
    with pytest.raises(BoomspecError, match=f"'{key}' has a value for each layer in one"):
        config_of({key: [1] * 6}, {})
    with pytest.raises(BoomspecError, match=f"'{key}' has a value for each layer in one"):
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


def test_a_pattern_without_a_list_is_kept_or_refused():
    fields = {"first_k_dense_replace": 1}
    assert config_of(fields)["first_k_dense_replace"] == 1
    with pytest.raises(BoomspecError, match="under 'first_k_dense_replace: 1' layer 0 cannot become layer 1"):
        config_of(fields, plan=("t0", "s0", "t5"))
    with pytest.raises(BoomspecError, match="under 'attn_layer_period: 4' layer 1 cannot become layer 2"):
        config_of({"attn_layer_period": 4}, plan=("t0", "t1", "s1", "t3"))


def test_a_pattern_of_an_unknown_family_cannot_be_written_out():
    with pytest.raises(BoomspecError, match="'sliding_window_pattern' of the unknown family 'unheard_of'"):
        config_of({"sliding_window_pattern": 6})


def test_configs_that_make_equal_weights_compute_different_things_are_refused():
    with pytest.raises(BoomspecError, match="differ in rms_norm_eps: 1e-06 and 1e-05"):
        config_of({"rms_norm_eps": 1e-6}, {"rms_norm_eps": 1e-5})
    with pytest.raises(BoomspecError, match=r"differ in rope_theta: 10000\.0 and 500000\.0"):
        config_of({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})


def test_what_one_of_the_configs_leaves_open_is_no_contradiction():
    config = config_of({"sliding_window": 4096, "head_dim": 8}, {"sliding_window": None})
    assert (config["sliding_window"], config["head_dim"]) == (4096, 8)


def test_a_config_without_a_number_of_layers_is_refused():
    facts = model(6)
    facts = replace(facts, config={"model_type": "unheard_of"})
    with pytest.raises(BoomspecError, match="says no number of layers: looked for num_hidden_layers, n_layer"):
        plan_config({"t": facts}, ["t0", "t1"], tied=False, base="t")
