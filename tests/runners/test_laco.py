"""LaCo on tiny real models: the formula, which merges are tried and kept, and the folder that is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Baseline, Calibration, Check, LaCo, Outline
from boomspec.models.facts import read_facts
from boomspec.models.outline import config_text, outline
from boomspec.models.plan_config import check_one_kind
from runners.checking.family import check_family
from runners.data.tokens import TokenStream
from runners.modeling.hidden_states import decoder_layers
from runners.runtime.context import Context
from runners.search.laco import Attempt, Collapsed, collapse
from runners.tasks import baseline
from tests.messages import wording
from tests.runners import tiny

CALIBRATION = Calibration(sequences=5, sequence_length=12, seed=3)
LAYERS = 8


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.token_artifact(tmp_path_factory.mktemp("tokens") / "artifact")


def record(**fields: Any) -> LaCo:
    plain = {"layers": 5, "merge": 3, "lowest": 0, "highest": LAYERS, "interval": 2, "threshold": -1.0}
    return LaCo(**plain | {"calibration": CALIBRATION, "precision": "fp32"} | fields)


def teacher_artifact(folder: Path, tokens: Path, *, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    family = fields.pop("family", "llama")
    tiny.model(family, layers=LAYERS, seed=4, **fields).to(dtype).save_pretrained(folder / "model")
    shutil.copytree(tokens / "tokenizer", folder / "model", dirs_exist_ok=True)
    return folder


def run(folder: Path, of: LaCo, *, teacher: Path, tokens: Path) -> Context[Any]:
    context = tiny.context(folder, Baseline(build=of), teacher=teacher, tokens=tokens)
    baseline.run(context)
    return context


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").requires_grad_(False).eval()


def layers_of(model: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    return [dict(layer.named_parameters()) for layer in decoder_layers(model)]


def merged(stack: list[dict[str, torch.Tensor]], at: int, size: int) -> list[dict[str, torch.Tensor]]:
    """The stack with W_l + sum_k (W_{l+k} - W_l) in the place of layers [at, at + size)."""
    base, following = stack[at], stack[at + 1 : at + size]
    one = {name: w + sum((layer[name] - w for layer in following), torch.zeros_like(w)) for name, w in base.items()}
    return [*stack[:at], one, *stack[at + size :]]


KINDS = {
    "a list of types": ("qwen3", {"layer_types": ["sliding_attention", "full_attention"] * 4, "sliding_window": 4}),
    "a pattern of the family": ("gemma2", {"layer_types": None, "sliding_window": 4}),
    "a number for each layer": ("smollm3", {"no_rope_layers": [1, 1, 1, 0] * 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_two_kinds_are_never_added_up(tmp_path: Path, tokens: Path, kind: str) -> None:
    model_type, fields = KINDS[kind]
    config = AutoConfig.for_model(
        model_type, num_hidden_layers=LAYERS, hidden_size=32, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=128, pad_token_id=0, eos_token_id=1, bos_token_id=2, **fields,
    )  # fmt: skip
    teacher = tmp_path / "teacher" / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(teacher)
    if kind == "a pattern of the family":  # as configs of older versions have it
        written = json.loads((teacher / "config.json").read_text())
        del written["layer_types"]
        (teacher / "config.json").write_text(json.dumps(written))
    else:  # then config.json alone says it
        with pytest.raises(BoomspecError, match=wording("laco.layers_two_kinds")):
            check_one_kind(read_facts(teacher))
    shutil.copytree(tokens / "tokenizer", teacher, dirs_exist_ok=True)
    with pytest.raises(BoomspecError, match=wording("laco.layers_two_kinds_2")):
        run(tmp_path, record(), teacher=tmp_path / "teacher", tokens=tokens)
    facts = read_facts(teacher)
    outlined = Outline(config=config_text(facts.written), tensors=outline(facts.stored), tied=facts.tied)
    check = Check(teacher=outlined, kept=(0, 7), sizes=(), merged=True, transformers="as installed")
    with pytest.raises(BoomspecError, match=wording("laco.laco_adds_layers_up")):
        check_family(check)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_parameter_of_a_merged_layer_is_the_formulas(tmp_path: Path, tokens: Path, tied: bool) -> None:
    teacher = teacher_artifact(tmp_path / "teacher", tokens, tie_word_embeddings=tied)
    context = run(tmp_path, record(), teacher=teacher, tokens=tokens)
    whole, model = load(teacher / "model"), load(context.path / "model")
    # Everything is accepted: 5 6 7 become one; two layers down, within what is left of the range, 3 and 4.
    expected = merged(merged(layers_of(whole), 5, 3), 3, 2)
    assert [(a["at"], a["size"]) for a in json.loads((context.path / "laco.json").read_text())] == [(5, 3), (3, 2)]
    assert model.config.num_hidden_layers == len(layers_of(model)) == 5
    for mine, theirs in zip(layers_of(model), expected, strict=True):
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-6)
    for i in (0, 1, 2):
        assert all(torch.equal(layers_of(model)[i][name], w) for name, w in layers_of(whole)[i].items())
    assert torch.equal(model.get_input_embeddings().weight, whole.get_input_embeddings().weight)
    assert torch.equal(model.get_output_embeddings().weight, whole.get_output_embeddings().weight)
    assert torch.equal(model.model.norm.weight, whole.model.norm.weight)
    assert model.config.tie_word_embeddings is tied
    assert AutoTokenizer.from_pretrained(context.path / "model").eos_token == "<eos>"


def test_a_merge_of_a_merged_layer_is_the_formula_of_the_formula(tmp_path: Path, tokens: Path) -> None:
    teacher = teacher_artifact(tmp_path / "teacher", tokens)
    context = run(tmp_path, record(layers=2, interval=1, lowest=1), teacher=teacher, tokens=tokens)
    attempts = json.loads((context.path / "laco.json").read_text())
    assert [(a["at"], a["size"]) for a in attempts] == [(5, 3), (3, 3), (1, 3)]  # 5 6 7, then 3 4 5', then 1 2 3'
    stack = layers_of(load(teacher / "model"))
    for attempt in attempts:
        stack = merged(stack, attempt["at"], attempt["size"])
    for mine, theirs in zip(layers_of(load(context.path / "model")), stack, strict=True):
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-5)


def test_the_similarity_is_that_of_the_model_that_is_written(tmp_path: Path, tokens: Path) -> None:
    types = ["sliding_attention"] * LAYERS
    fields = {"family": "gemma3_text", "sliding_window": 4, "layer_types": types}
    teacher = teacher_artifact(tmp_path / "teacher", tokens, **fields)
    context = run(tmp_path, record(), teacher=teacher, tokens=tokens)
    whole, model = load(teacher / "model"), load(context.path / "model")
    assert model.config.layer_types == types[:5]
    windows = TokenStream(tokens).batch(0, sequences=5, sequence_length=12, seed=3)[:, :-1]
    states = [one.model(torch.from_numpy(windows)).last_hidden_state for one in (whole, model)]
    attempts = json.loads((context.path / "laco.json").read_text())
    cosine = float(torch.cosine_similarity(*states, dim=-1).mean())
    assert attempts[-1]["similarity"] == pytest.approx(cosine, abs=1e-5)
    assert attempts[-1]["kept"] is True


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_dtype_of_the_teachers_files_is_kept_and_merges_are_rounded_once(
    tmp_path: Path, tokens: Path, precision: str
) -> None:
    teacher = teacher_artifact(tmp_path / "teacher", tokens, dtype=torch.bfloat16)
    context = run(tmp_path, record(precision=precision), teacher=teacher, tokens=tokens)
    model = load(context.path / "model")
    assert model.dtype == torch.bfloat16
    stack = [{name: w.float() for name, w in layer.items()} for layer in layers_of(load(teacher / "model"))]
    for mine, theirs in zip(layers_of(model), merged(merged(stack, 5, 3), 3, 2), strict=True):
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter, theirs[name].bfloat16(), rtol=2**-7, atol=1e-6)


def test_merging_layers_that_are_equal_or_idle_changes_nothing(tmp_path: Path, tokens: Path) -> None:
    teacher = teacher_artifact(tmp_path / "teacher", tokens)
    model = load(teacher / "model")
    for layer in decoder_layers(model)[4:]:
        layer.load_state_dict(decoder_layers(model)[4].state_dict())
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(teacher / "model")
    asked = record(lowest=4, merge=4, interval=1, layers=5, threshold=0.9999)
    context = run(tmp_path, asked, teacher=teacher, tokens=tokens)
    inputs_BT = torch.arange(20).view(2, 10)
    torch.testing.assert_close(
        load(context.path / "model")(inputs_BT).logits, load(teacher / "model")(inputs_BT).logits
    )
    (attempt,) = json.loads((context.path / "laco.json").read_text())
    assert attempt == {"at": 4, "size": 4, "similarity": pytest.approx(1.0, abs=1e-6), "kept": True}


def test_no_merge_is_needed_for_all_layers(tmp_path: Path, tokens: Path) -> None:
    teacher = teacher_artifact(tmp_path / "teacher", tokens)
    context = run(tmp_path, record(layers=LAYERS), teacher=teacher, tokens=tokens)
    inputs_BT = torch.arange(20).view(2, 10)
    assert torch.equal(load(context.path / "model")(inputs_BT).logits, load(teacher / "model")(inputs_BT).logits)


def test_a_refused_merge_moves_the_pointer_by_one_and_a_kept_one_by_the_interval() -> None:
    answers = iter([0.5, 0.4, 0.9, 0.6, 0.95])
    stack, attempts = collapse(
        record(layers=8, merge=2, highest=9, interval=3, threshold=0.8), layers=10, similarity=lambda _: next(answers)
    )
    assert attempts == [
        Attempt(7, 2, 0.5, False),
        Attempt(6, 2, 0.4, False),
        Attempt(5, 2, 0.9, True),
        Attempt(2, 2, 0.6, False),
        Attempt(1, 2, 0.95, True),
    ]
    # Of two layers the formula leaves the second one's weights, in the place of the first.
    assert stack[1] == Collapsed(1, {2: 1})
    assert stack[4] == Collapsed(5, {6: 1})
    assert [layer.base for layer in stack] == [0, 1, 3, 4, 5, 7, 8, 9]


def test_layers_outside_the_range_are_never_merged() -> None:
    stack, _ = collapse(record(layers=6, lowest=2, highest=7, interval=1), layers=10, similarity=lambda _: 1.0)
    assert [layer.base for layer in stack] == [0, 1, 2, 7, 8, 9]
    assert stack[2].weights == {2: -1, 3: 1, 4: -1, 5: 1, 6: 1}  # 2 3 and (4 5 6 as -1 1 1)
    assert all(stack[i] == Collapsed(base, {base: 1}) for i, base in enumerate((0, 1)))


def test_a_threshold_that_cannot_be_met_says_how_far_it_got(tmp_path: Path, tokens: Path) -> None:
    teacher = teacher_artifact(tmp_path / "teacher", tokens)
    with pytest.raises(BoomspecError, match=wording("laco.layers_asked_above_lead")):
        run(tmp_path, record(threshold=0.99999), teacher=teacher, tokens=tokens)
    answers = iter([0.9, 0.1, 0.3])
    with pytest.raises(BoomspecError, match=wording("laco.best_merge_refused")):
        collapse(record(threshold=0.5, lowest=2), layers=LAYERS, similarity=lambda _: next(answers))


@pytest.mark.parametrize("fields", [{"layers": 9}, {"highest": 9}, {"lowest": 8}], ids=["layers", "highest", "lowest"])
def test_what_a_teacher_cannot_be_made_into_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(BoomspecError, match=wording("laco.cannot_made_teacher")):
        collapse(record(**fields), layers=LAYERS, similarity=lambda _: 1.0)
