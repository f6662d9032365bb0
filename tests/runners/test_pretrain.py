"""Training a small teacher from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Architecture, Pretrain
from boomspec.models.facts import llama_facts, read_facts
from runners.runtime.context import Context
from runners.tasks import pretrain
from tests.messages import wording
from tests.runners import tiny

SIZES = {
    "layers": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "attention_heads": 4,
    "key_value_heads": 2,
    "vocabulary": tiny.VOCABULARY,
    "context": 32,
    "initializer_range": 0.08,
}


def run(folder: Path, tokens: Path, *, tied: bool = True, **fields: Any) -> Context[Any]:
    record = Pretrain(architecture=Architecture(**SIZES | fields, tied=tied), recipe=tiny.recipe(steps=30))
    context = tiny.context(folder, record, tokens=tokens)
    pretrain.run(context)
    return context


@pytest.mark.parametrize("tied", [True, False])
def test_a_small_llama_is_trained_and_saved_as_the_compiler_foresaw(tmp_path: Path, tied: bool) -> None:
    tokens = tiny.token_artifact(tmp_path / "tokens")
    context = run(tmp_path / "run", tokens, tied=tied)
    folder = context.path / "model"

    rows = [json.loads(line) for line in (context.path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 30
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["tie_word_embeddings"]) == (0, tied)
    assert config["max_position_embeddings"] == 32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 0
    foreseen = llama_facts(context.record.architecture)
    written = read_facts(folder)
    assert [len(layer) for layer in written.layers] == [len(layer) for layer in foreseen.layers]
    assert sum(t.elements for t in written.tensors(range(3), tied=tied)) == sum(
        t.elements for t in foreseen.tensors(range(3), tied=tied)
    )


def test_the_same_seed_gives_the_same_model_and_another_one_does_not() -> None:
    architecture = Architecture(**SIZES, tied=True)
    before = torch.random.get_rng_state()
    one, same, other = (pretrain.llama(architecture, eos=0, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [model.model.layers[1].mlp.up_proj.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].std().item() == pytest.approx(0.08, rel=0.2)


def test_another_vocabulary_than_that_of_the_tokens_is_an_error(tmp_path: Path) -> None:
    tokens = tiny.token_artifact(tmp_path / "tokens", vocabulary=50)
    with pytest.raises(BoomspecError, match=wording("pretrain.vocabulary_but_tokens_have")):
        run(tmp_path / "run", tokens)
