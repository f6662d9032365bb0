"""Compiled layers, by a real compiler: nearly the same numbers, the same bits again, and an error before a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from runners.data.tokens import TokenStream
from runners.runtime import environment
from runners.tasks import distill
from tests.messages import wording
from tests.runners import tiny
from tests.runners.test_distill import record as recorded
from tests.runners.test_distill import teacher_artifact

# torch's own compiler uses what torch has deprecated, and reads gradients that are not there.
pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).parents[2]
ALL = Losses(cross_entropy=CrossEntropy(), kl=KL(), hidden_cosine=HiddenCosine())
# The last batch of a step has fewer rows, so that there are two shapes. A large eps keeps AdamW from blowing up the
# rounding of gradients that are nearly 0.
RECIPE = {"steps": 4, "sequences": 7, "optimizer": {"eps": 1e-3}}
RELATIVE = 1e-4  # of the weights in fp32: that is what the micro batch may change, too


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache of what is compiled, as the runs of one store have."""
    folder = tmp_path_factory.mktemp("inductor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": folder / "tokens"}


def trained(folder: Path, inputs: dict[str, Path], *, compile: bool, **about: Any) -> dict[str, torch.Tensor]:
    """The weights after a distillation. `about`: `resume`, `micro_batch`, fields of the recipe."""
    resume, micro_batch = about.pop("resume", None), about.pop("micro_batch", 4)
    recipe = {**RECIPE, **about}
    context = tiny.context(folder, recorded(losses=ALL, recipe=recipe), resume=resume, **inputs)
    tiny.set_training(context, micro_batch=micro_batch, compile=compile)
    distill.run(context)
    return load_file(context.path / "model" / "model.safetensors")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "payload" / "metrics.jsonl").read_text().splitlines()]


def test_in_fp32_compiled_layers_give_the_same_within_rounding_and_the_same_bits_when_resumed(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(tmp_path / "plain", inputs, compile=False)
    whole = trained(tmp_path / "whole", inputs, compile=True)
    for name, weight in plain.items():
        torch.testing.assert_close(whole[name], weight, rtol=RELATIVE, atol=RELATIVE)
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "plain"), rel=RELATIVE)

    real = TokenStream.batch

    def interrupted(stream: TokenStream, step: int, **wanted: int) -> Any:
        if step == 2 and wanted["sequences"] == RECIPE["sequences"]:
            raise KeyboardInterrupt
        return real(stream, step, **wanted)

    monkeypatch.setattr(TokenStream, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "first", inputs, compile=True, resume=tmp_path / "resume")
    monkeypatch.setattr(TokenStream, "batch", real)
    again = trained(tmp_path / "second", inputs, compile=True, resume=tmp_path / "resume")
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())
    assert losses(tmp_path / "second") == losses(tmp_path / "whole")


def test_in_bf16_compiled_layers_are_as_near_to_fp32_as_plain_ones(tmp_path: Path, inputs: dict[str, Path]) -> None:
    exact = trained(tmp_path / "fp32", inputs, compile=False)
    plain = trained(tmp_path / "plain", inputs, compile=False, precision="bf16")
    compiled = trained(tmp_path / "compiled", inputs, compile=True, precision="bf16", micro_batch=7)

    def apart(weights: dict[str, torch.Tensor]) -> float:
        return sum(float((weights[name] - weight).square().sum()) for name, weight in exact.items()) ** 0.5

    assert 0 < apart(compiled) < 1.5 * apart(plain)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=0.01)


def test_runs_of_one_store_share_what_was_compiled_and_processors_of_two_kinds_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["one kind", "one kind", "another"])
    monkeypatch.setattr(environment, "cpu_model", lambda: next(names))
    folders = [environment.variables(tmp_path, hub=False)["TORCHINDUCTOR_CACHE_DIR"] for _ in range(3)]
    assert folders[0] == folders[1] != folders[2]
    assert all(Path(folder).is_relative_to(tmp_path / "cache") for folder in folders)


def test_without_a_compiler_there_is_an_error_before_anything_is_loaded(tmp_path: Path) -> None:
    program = "from runners.training.compiling import check_compiler; check_compiler()"
    fresh = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **fresh}, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert wording("compiling.does_not_work") in done.stderr
    assert "/nowhere/g++" in done.stderr


@pytest.mark.parametrize("module", [distill])
def test_a_training_checks_the_compiler_first(
    tmp_path: Path, inputs: dict[str, Path], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "check_compiler", missing)
    monkeypatch.setattr(module, "load_frozen", None)
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path, inputs, compile=True)
