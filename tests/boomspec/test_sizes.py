"""Which models answer the sizes that a spec asks for: sizes, ranges, budgets, and what is said where none does."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.sizes import Member, select_member
from boomspec.core.types import parse_size, parse_sizes
from boomspec.models.facts import ModelFacts, model_facts
from boomspec.models.kv_cache import layer_cache_bytes, windows
from boomspec.spec.json_schema import json_schema
from tests.boomspec.public_hub import public_facts
from tests.messages import wording

# What one more layer of the small spec's teacher has (width 16, MLP 32, no biases), and all the rest.
LAYER = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16
OUTSIDE = 300 * 16 + 16


def texts(value: object) -> list[str]:
    return [size.text for size in parse_sizes(value).sizes]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("2.5B..3.5B step 0.25B", ["2.5B", "2.75B", "3B", "3.25B", "3.5B"]),
        ("2.5B..3.4B step 0.5B", ["2.5B", "3B"]),
        ("20..36 layers step 4", ["20 layers", "24 layers", "28 layers", "32 layers", "36 layers"]),
        ("60%..90% step 10%", ["60%", "70%", "80%", "90%"]),
        ("0.1%..0.7% step 0.1%", ["0.1%", "0.2%", "0.3%", "0.4%", "0.5%", "0.6%", "0.7%"]),
        ("4GiB .. 8GiB step 2GiB", ["4GiB", "6GiB", "8GiB"]),
        ("900M..1.1B step 100M", ["0.9B", "1B", "1.1B"]),
        ("3B..3B step 1", ["3B"]),
        ("24 layers", ["24 layers"]),
        (3_000_000, ["3000000"]),
    ],
)
def test_a_range_is_the_sizes_from_low_to_high(text, sizes):
    assert texts(text) == sizes
    for size in parse_sizes(text).sizes:
        assert size.value == pytest.approx(parse_size(size.text).value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("2B..3B", wording("sizes.no_step")),
        ("3B..2B step 1B", "3B is above 2B"),
        ("1B..80% step 1%", wording("sizes.mixes_units_parameters_fraction")),
        ("1..2 layers step 0.5", wording("sizes.layers_not_whole_number")),
        ("1..1001 step 1", wording("sizes.more_than_sizes")),
        ("1e-300..1e300 step 1e-300", "1e300  is too large"),
        ("1B..2B step 0", wording("sizes.expected_size_such")),
        ("1B..2B step nothing", wording("sizes.expected_size_not", name="nothing")),
    ],
)
def test_what_is_no_range_is_named(text, complaint):
    with pytest.raises(
        ValueError, match=wording("sizes.no_range_such", escape=re.escape(text), escape2=re.escape(complaint))
    ):
        parse_sizes(text)


def member(patched: int, parameters: int, layers: int) -> Member:
    plan = tuple(f"{'t' if patched == 2 else 's'}{i}" for i in range(layers))
    return Member(patched, plan, parameters, 2 * parameters, False)


FAMILY = [member(0, 200, 4), member(1, 500, 5), member(2, 400, 6)]  # the middle one has a head of its own


@pytest.mark.parametrize(
    ("size", "not_above", "nearest"),
    [
        ("200", 0, 0),
        ("299", 0, 0),
        ("399", 0, 2),
        ("400", 2, 2),
        ("449", 2, 2),
        ("451", 2, 1),
        ("500", 1, 1),
        ("501", None, 1),
        ("550", None, 1),
        ("551", None, None),
        ("199", None, 0),
        ("100", None, 0),
        ("99", None, None),
        ("5 layers", 1, 1),
        ("6 layers", 2, 2),
        ("7 layers", None, None),
        ("100%", 2, 2),
        ("125%", 1, 1),
        ("50%", 0, 0),
        ("801 B", None, None),
        ("0.8KB", 2, 2),
    ],
)
def test_a_size_is_answered_by_the_largest_not_above_or_by_the_nearest(size, not_above, nearest):
    found = [select_member(FAMILY, parse_size(size), choose=choose) for choose in ("not_above", "nearest")]
    assert [member and member.patched for member in found] == [not_above, nearest]


def asked(compiled) -> dict[int, tuple[str, ...]]:
    return {member.layers: member.asked for member in compiled.family.members}


def test_student_and_teacher_are_always_there(specs):
    assert asked(specs.edited(("interpolate", {"sizes": ["5 layers"]}))) == {3: (), 5: ("5 layers",), 6: ()}


def test_each_size_of_a_range_is_answered(specs):
    student, half = OUTSIDE + 3 * LAYER, LAYER // 2
    frozen = ("student.train_embedding", False)  # every size stays tied: the sizes are one layer apart
    text = f"{student}..{student + 3 * LAYER} step {half}"
    at = [str(student + i * half) for i in range(7)]
    expected = {3: (at[0], at[1]), 4: (at[2], at[3]), 5: (at[4], at[5]), 6: (at[6],)}
    assert asked(specs.edited(frozen, ("interpolate", {"sizes": text}))) == expected


def test_the_nearest_is_taken_where_that_is_asked_for(specs):
    almost = OUTSIDE + 4 * LAYER - 1
    edits = [("student.train_embedding", False), ("interpolate", {"sizes": almost})]
    assert asked(specs.edited(*edits)) == {3: (str(almost),), 6: ()}
    edits[1] = ("interpolate", {"sizes": almost, "choose": "nearest"})
    assert asked(specs.edited(*edits)) == {3: (), 4: (str(almost),), 6: ()}


def test_sizes_alone_and_in_a_list_mean_the_same(specs):
    for sizes in ("5 layers", {"fits": "1GiB", "context": 8}, "4..5 layers step 1", "80%"):
        alone, listed = (specs.edited(("interpolate", {"sizes": s})) for s in (sizes, [sizes]))
        assert asked(alone) == asked(listed)


def needs(specs, layers: int, *, context: int, batch: int) -> int:
    """Bytes of a model of the small spec, in fp32: weights, and 2 x 16 values a token and layer (2 heads of 8)."""
    weights = next(m.bytes for m in specs.compiled().family.members if m.layers == layers)
    return weights + layers * 2 * 16 * 4 * context * batch


def test_a_budget_is_answered_by_the_most_layers_that_fit(specs):
    exact = needs(specs, 4, context=512, batch=3)
    budget = {"fits": exact, "context": 512, "batch": 3}
    # The untied model of four layers needs more than this: only the student fits.
    assert asked(specs.edited(("interpolate", {"sizes": {**budget, "fits": exact - 1}}))).keys() == {3, 6}
    (text,) = asked(specs.edited(("interpolate", {"sizes": budget})))[4]
    assert text == wording("sizes.fits_kib_context_batch", value=exact / 2**10)


def test_a_budget_that_the_teacher_fits_is_answered_by_the_teacher(specs):
    found = asked(specs.edited(("interpolate", {"sizes": {"fits": "1GiB", "context": "1k"}})))
    assert found[6][0].startswith(wording("sizes.fits_gib_context_batch"))


def problems(specs, sizes: object, **fields: object) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        specs.edited(("interpolate", {"sizes": sizes, **fields}))
    return [(problem.where, problem.message) for problem in caught.value.problems]


def test_what_cannot_be_had_is_named_with_its_place_and_what_there_is(specs):
    weights, cache = 4 * (OUTSIDE + 3 * LAYER), 3 * 2 * 16 * 4 * 100
    parts = f"({weights / 1024:.1f} KiB of weights and {cache / 1024:.1f} KiB of KV cache)"
    nothing = "no model fits 1.0 KiB at context 100, batch 1: the smallest needs"
    found = problems(specs, ["5 layers", "7..8 layers step 1", "1%", {"fits": "1KiB", "context": 100}])
    assert found == [
        ("interpolate.sizes[1]", wording("sizes.no_model_size_layers")),
        ("interpolate.sizes[1]", wording("sizes.no_model_size_layers_family")),
        ("interpolate.sizes[2]", wording("sizes.no_model_size_family")),
        ("interpolate.sizes[3]", f"{nothing} {(weights + cache) / 1024:.1f} KiB {parts}"),
    ]
    assert problems(specs, "9 layers") == [("interpolate.sizes", wording("sizes.no_model_size_layers_family_layers"))]


@pytest.mark.parametrize(
    ("sizes", "where", "message"),
    [
        ({"fits": "8GiB"}, "interpolate.sizes", "missing 'context'"),
        ([{"fits": "8GiB", "contxt": 4}], "interpolate.sizes[0]", "unknown key 'contxt'"),
        ({"fits": 0, "context": 4}, "interpolate.sizes.fits", wording("sizes.must_greater_than_not")),
        ({"fits": "8GiB", "context": 4, "batch": 0}, "interpolate.sizes.batch", wording("sizes.must_greater_than_not")),
        (["2B..3B"], "interpolate.sizes[0]", wording("sizes.no_range_such_2", name="2B..3B")),
        ("2B..3B", "interpolate.sizes", wording("sizes.no_range_such_2", name="2B..3B")),
        ("al", "interpolate.sizes", wording("sizes.expected_model_size_range", name="all")),
        ([], "interpolate.sizes", wording("sizes.must_have_least_item")),
        (None, "interpolate.sizes", "expected 'all'"),
        ([None], "interpolate.sizes[0]", wording("sizes.expected_model_size_range_such")),
    ],
)
def test_what_is_no_size_is_named_with_its_place(specs, sizes, where, message):
    (found,) = problems(specs, sizes)
    assert found[0] == where
    assert found[1].startswith(message)


def test_the_plan_shows_what_was_asked_for_and_what_is_given(specs):
    text = specs.SPEC + "interpolate: {sizes: [75%..100% step 25%, {fits: 1MiB, context: 64}]}\n"
    path = str(specs.text(text))
    shown = CliRunner().invoke(main, ["plan", path], catch_exceptions=False, env={"COLUMNS": "200"}).output
    assert "asked for" in shown
    plan = json.loads(CliRunner().invoke(main, ["plan", path, "--json"], catch_exceptions=False).output)
    given = {size["layers"]: size["asked"] for size in plan["experiments"][0]["sizes"]}
    needed = 4 * (OUTSIDE + 6 * LAYER) + 6 * 2 * 16 * 4 * 64  # weights, keys and values
    assert given == {3: ["75%"], 6: ["100%", wording("sizes.fits_mib_context_batch", value=needed / 1024)]}


@pytest.mark.parametrize("sizes", ["all", "2B", "60%..90% step 10%", 7, ["2B", {"fits": "8GiB", "context": 1}]])
def test_the_schema_for_editors_allows_what_the_language_does(specs, sizes):
    data = {"sizes": sizes}
    schema = json_schema()
    jsonschema.validate(data, {**schema["$defs"]["InterpolateSpec"], "$defs": schema["$defs"]})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"sizes": "al"}, {**schema["$defs"]["InterpolateSpec"], "$defs": schema["$defs"]})


# KV caches


@pytest.mark.parametrize(
    ("model", "layers", "bytes_of_a_token"),
    [
        ("Qwen/Qwen3-4B-Base", 36, 2 * 8 * 128 * 2),
        ("Qwen/Qwen3-8B-Base", 36, 2 * 8 * 128 * 2),
        ("meta-llama/Llama-3.2-3B", 28, 2 * 8 * 128 * 2),
        ("EleutherAI/pythia-2.8b", 32, 2 * 32 * 80 * 2),
        ("EleutherAI/pythia-6.9b", 32, 2 * 32 * 128 * 2),
        ("openai-community/gpt2", 12, 2 * 12 * 64 * 4),
    ],
)
def test_a_layer_caches_keys_and_values_of_its_heads(model, layers, bytes_of_a_token):
    facts = public_facts(model)
    assert layer_cache_bytes(facts, context=4096, batch=2) == [bytes_of_a_token * 4096 * 2] * layers


def facts_of(config: dict[str, object], *, layers: int = 6, keys: int = 8) -> ModelFacts:
    """A decoder of 2 key heads of 4, with a config of one's own."""
    from boomspec.models.checkpoint import TensorEntry

    shapes: dict[str, tuple[int, ...]] = {"model.embed.weight": (10, 16), "model.norm.weight": (16,)}
    for i in range(layers):
        shapes[f"model.layers.{i}.self_attn.k_proj.weight"] = (keys, 16)
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16, "model_type": "toy", **config}
    return model_facts(config, {name: TensorEntry(name, "BF16", shape) for name, shape in shapes.items()}, "toy")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [None] * 6),
        ({"sliding_window": 3}, [None] * 6),  # not said which layers: all count in full
        ({"sliding_window": 3, "model_type": "mistral"}, [3] * 6),
        ({"sliding_window": 3, "model_type": "gemma2"}, [3, None, 3, None, 3, None]),
        ({"sliding_window": 3, "sliding_window_pattern": 3}, [3, 3, None, 3, 3, None]),
        ({"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 4}, [None] * 4 + [3] * 2),
        ({"sliding_window": 3, "use_sliding_window": False, "max_window_layers": 4}, [None] * 6),
        ({"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"] * 3}, [None, 3] * 3),
        ({"attention_chunk_size": 5, "layer_types": ["full_attention", "chunked_attention"] * 3}, [None, 5] * 3),
    ],
)
def test_layers_with_a_window_cache_no_more_than_it(config, expected):
    facts = facts_of(config)
    assert windows(facts) == expected
    tokens = [4 if window is None else min(4, window) for window in expected]
    assert layer_cache_bytes(facts, context=4, batch=2) == [2 * 2 * 4 * 2 * 2 * count for count in tokens]


@pytest.mark.parametrize(
    ("config", "keys", "reason"),
    [
        ({"kv_lora_rank": 512}, 8, "multi-head latent attention"),
        ({"num_kv_shared_layers": 2}, 8, wording("sizes.layers_share_cache")),
        ({"mamba_d_state": 8}, 8, wording("sizes.layers_keep_state")),
        ({"hybrid_override_pattern": "M*M*M*"}, 8, wording("sizes.layers_keep_state")),
        ({"per_layer_config": {"5": {"head_dim": 8}}}, 8, wording("sizes.layers_whose_heads_not")),
        ({"layer_types": ["full_attention", "linear_attention"] * 3}, 8, wording("sizes.layers_type_linear_attention")),
        ({"head_dim": 32}, 8, wording("sizes.gives_values_token_config")),
        ({"num_attention_heads": None}, 8, wording("sizes.no_number_num_attention")),
        ({"num_key_value_heads": [2, 4]}, 8, "no number num_key_value_heads"),
    ],
)
def test_a_cache_that_the_formula_does_not_describe_is_an_error(config, keys, reason):
    with pytest.raises(BoomspecError, match="cannot be computed") as caught:
        layer_cache_bytes(facts_of(config, keys=keys), context=4, batch=1)
    assert reason in str(caught.value)
