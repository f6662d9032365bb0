"""Where a model is, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from boomspec.errors import BoomspecError
from boomspec.graph import Source
from runners.context import Input
from runners.models import load_frozen, model_folder, save_weights, stored_dtype
from tests.runners import tiny


def test_a_model_is_in_its_artifact_or_in_the_folder_of_its_source(tmp_path: Path) -> None:
    assert model_folder(Input("id", path=tmp_path)) == tmp_path / "model"
    source = Source("model", {"sha256": {}}, {"folder": str(tmp_path / "mine")})
    assert model_folder(Input("id", source=source)) == tmp_path / "mine"


def test_a_hub_model_that_cannot_be_fetched_says_which_and_what_to_check() -> None:
    source = Source("model", {"hub": "nobody/nothing", "revision": "0" * 40}, {"hub": "nobody/nothing"})
    with pytest.raises(BoomspecError, match="'nobody/nothing' at 000000000000: cannot be fetched") as error:
        model_folder(Input("id", source=source))
    assert "HF_TOKEN" in str(error.value)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    model = tiny.model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_frozen(tmp_path, dtype=torch.float32)


def test_weights_are_saved_in_place_of_all_older_ones(tmp_path: Path) -> None:
    tiny.model(seed=1).save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = tiny.model(seed=2)
    save_weights(model, tmp_path, dtype=torch.bfloat16)
    assert [file.name for file in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert stored_dtype(tmp_path) == torch.bfloat16
    loaded = load_frozen(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_weights_of_a_type_that_is_not_trained_in_are_refused(tmp_path: Path) -> None:
    tiny.model().to(torch.float64).save_pretrained(tmp_path)
    with pytest.raises(BoomspecError, match="stored as F64"):
        stored_dtype(tmp_path)
