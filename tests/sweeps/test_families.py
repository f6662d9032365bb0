"""Families of every kind, tried again: what the golden file and docs/models.md say of them is so.

The whole list is `make sweep`, which takes minutes; here are some that differ most from each other.
"""

import json

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.sweeps.families import GOLDEN, PAGE, paragraph, quiet, said, verdict

FAMILIES = (
    "llama",
    "gpt2",
    "gemma2",
    "gemma3",
    "qwen3_moe",
    "deepseek_v3",
    "minicpm3",
    "afmoe",
    "granitemoehybrid",
    "mamba",
    "olmo",
    "rwkv",
    "zaya",
    "gemma3n_text",
    "gpt_neox_japanese",
)


def golden() -> dict[str, str]:
    found: dict[str, str] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_right_or_refused_as_it_was(tmp_path, model_type):
    quiet()
    assert said(verdict(model_type, tmp_path)) == golden()[model_type]


def test_every_causal_language_model_of_transformers_is_listed():
    assert list(golden()) == list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_no_family_is_wrong_and_none_breaks():
    allowed = ("right", "refused at plan: ", "refused by the check: ", "not built: ")
    assert [name for name, verdict in golden().items() if not verdict.startswith(allowed)] == []


def test_the_readme_names_them():
    assert paragraph(golden()) in PAGE.read_text(encoding="utf-8")
