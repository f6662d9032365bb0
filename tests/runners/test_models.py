"""Where a model is, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source
from boomspec.models.facts import read_facts
from runners.modeling.models import load_frozen, model_folder, save_weights, stored_dtype
from runners.runtime.job import Input
from tests.messages import wording
from tests.runners import tiny


def test_a_model_is_in_its_artifact_or_in_the_folder_of_its_source(tmp_path: Path) -> None:
    assert model_folder(Input("id", path=tmp_path)) == tmp_path / "model"
    source = Source("model", {"sha256": {}}, {"folder": str(tmp_path / "mine")})
    assert model_folder(Input("id", source=source)) == tmp_path / "mine"


def test_a_hub_model_that_cannot_be_fetched_says_which_and_what_to_check() -> None:
    source = Source("model", {"hub": "nobody/nothing", "revision": "0" * 40}, {"hub": "nobody/nothing"})
    with pytest.raises(BoomspecError, match=wording("models.nobody_nothing_cannot_fetched")) as error:
        model_folder(Input("id", source=source))
    assert "HF_TOKEN" in str(error.value)


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


class _Runs:
    """An object that makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._marker,)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pytorch_model.bin", r"no model\.safetensors and no model\.safetensors\.index\.json"),
        ("model.safetensors", "not a safetensors file"),
    ],
)
def test_pickled_weights_are_refused_and_never_read(tmp_path: Path, name: str, says: str) -> None:
    folder, marker = tmp_path / "teacher", tmp_path / "has-run"
    tiny.model().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": _Runs(marker)}, folder / name)
    for read in (read_facts, partial(load_frozen, dtype=torch.float32)):
        with pytest.raises(BoomspecError, match=says) as caught:
            read(folder)
        if name.endswith(".bin"):
            assert "save it: model.save_pretrained(folder)" in str(caught.value.hint)
    assert not marker.exists()
