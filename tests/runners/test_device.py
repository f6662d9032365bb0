"""Precisions and determinism: what is held in which dtype, and with which kernels tasks compute."""

from __future__ import annotations

import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.losses import CrossEntropy, Losses
from boomspec.core.tasks import (
    Architecture,
    Baseline,
    Calibration,
    Determinism,
    Distill,
    Evaluate,
    HeldOut,
    LaCo,
    LayerChoice,
    Pretrain,
    Record,
    Search,
)
from runners.runtime import environment
from runners.runtime.context import Progress
from runners.runtime.device import MASTER_DTYPE, autocast, deterministic_mode, device, frozen_dtype
from runners.tasks import baseline, distill, evaluate, pretrain, search
from tests.messages import wording
from tests.runners import tiny


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_of_fp32_weights_runs_in_the_precision_that_frozen_models_are_held_in(
    precision: str, dtype: torch.dtype
) -> None:
    assert frozen_dtype(precision) == dtype
    layer = torch.nn.Linear(2, 2, dtype=MASTER_DTYPE, device=device())
    with autocast(precision):
        output = layer(torch.ones(1, 2, device=device()))
    assert output.dtype == dtype
    output.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_a_task_without_gpus_computes_on_the_cpu_whatever_torch_has_seen_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # asked too early, torch stays with that
    assert device().type == "cuda"
    environment.apply_resources(cpus=1, gpus=0)
    assert device().type == "cpu"


@pytest.mark.parametrize(
    ("built", "why", "what_to_do"),
    [
        (None, wording("device.built_cpus_alone"), "install a torch"),
        ("12.8", wording("device.cuda_sees_none_driver"), "a driver that is too old needs an update"),
    ],
)
def test_a_task_with_a_gpu_that_torch_does_not_see_is_an_error_that_says_where_and_why(
    monkeypatch: pytest.MonkeyPatch, built: str | None, why: str, what_to_do: str
) -> None:
    def init() -> None:
        raise RuntimeError("the driver is too old\nmore")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # as Ray sets it
    monkeypatch.delenv(environment.ALLOW_CPU, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    environment.apply_resources(cpus=1, gpus=0.5)
    with pytest.raises(BoomspecError) as caught:
        device()
    where = f"a GPU of {socket.gethostname()} (CUDA_VISIBLE_DEVICES=0), but torch {torch.__version__} there"
    assert f"{where} {why}" in caught.value.message
    assert what_to_do in str(caught.value.hint)
    monkeypatch.setenv(environment.ALLOW_CPU, "1")
    assert device().type == "cpu"


def settings() -> dict[str, object]:
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
    }


@pytest.mark.parametrize(
    ("determinism", "expected"),
    [
        (None, {"deterministic": True, "warns": True, "cudnn": (True, False), "tf32": (False, False)}),
        (Determinism(algorithms="strict", tf32=False), {"deterministic": True, "warns": False, "cudnn": (True, False)}),
        (Determinism(algorithms="any", tf32=False), {"deterministic": False, "cudnn": (False, True)}),
        (Determinism(algorithms="deterministic", tf32=True), {"deterministic": True, "tf32": (True, True)}),
    ],
)
def test_torch_computes_as_the_record_says_and_as_before_behind_it(
    determinism: Determinism | None, expected: dict[str, object]
) -> None:
    before = settings()
    with deterministic_mode(determinism, print):
        inside = settings()
        with deterministic_mode(Determinism(algorithms="any", tf32=True), print):
            assert settings()["tf32"] == (True, True)
        assert settings() == inside
    assert {name: inside[name] for name in expected} == expected
    assert inside["fill"] is False
    assert settings() == before


def test_an_operation_without_a_deterministic_kernel_is_told_or_for_strict_an_error() -> None:
    values, places = torch.zeros(3), torch.tensor([1])
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("default")
        with deterministic_mode(None, notes.append):
            values.put_(places, torch.ones(1))
            warnings.warn("another one", stacklevel=1)
    (told,) = notes
    assert [str(other.message) for other in others] == ["another one"]
    assert told.startswith(wording("device.warning_put_does_not"))
    before = settings()
    with (
        pytest.raises(BoomspecError, match=wording("device.strict_but_put_does")) as caught,
        deterministic_mode(Determinism(algorithms="strict", tf32=False), notes.append),
    ):
        values.put_(places, torch.ones(1))
    assert "{algorithms: deterministic}` warns" in str(caught.value.hint)
    assert settings() == before
    with deterministic_mode(Determinism(algorithms="any", tf32=False), notes.append):
        values.put_(places, torch.ones(1))
    assert notes == [told]


class Probe(Progress):
    """Notes how torch is set whenever a body says how far it is."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: set[tuple[bool, bool]] = set()

    def update(self, done: float, total: float, *, unit: str = "", **values: float | str) -> None:
        self.seen.add((torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32))


STRANGE = Determinism(algorithms="any", tf32=True)


def computing(determinism: Determinism | None) -> dict[str, tuple[Any, Record]]:
    """By kind, the body and a record of every task that computes."""
    plain = {"determinism": determinism}
    calibration = Calibration(sequences=2, sequence_length=8, seed=0)
    measured = {"calibration": calibration, "precision": "fp32", **plain}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "attention_heads": 2, "key_value_heads": 2}
    sizes |= {"layers": 2, "vocabulary": tiny.VOCABULARY, "context": 16, "tied": True, "initializer_range": 0.1}
    laco_ = LaCo(layers=3, merge=2, lowest=0, highest=4, interval=1, threshold=-1.0, **measured)
    training = {"recipe": tiny.recipe(steps=1, sequences=2, schedule={"warmup_steps": 0}), **plain}
    losses = Losses(cross_entropy=CrossEntropy())
    student = {"kept": (0, 2), "initial": "teacher", "train_embedding": True, "losses": losses}
    return {
        "pretrain": (pretrain, Pretrain(architecture=Architecture(**sizes), **training)),
        "distill": (distill, Distill(**student, **training)),
        "search": (search, Search(choice=LayerChoice(method="block_influence", count=2), **measured)),
        "laco": (baseline, Baseline(build=laco_)),
        "evaluate": (evaluate, Evaluate(measure=HeldOut(sequence_length=16), precision="fp32", **plain)),
    }


@pytest.mark.parametrize("kind", ["pretrain", "distill", "search", "laco", "evaluate"])
@pytest.mark.parametrize(("determinism", "expected"), [(None, (True, False)), (STRANGE, (False, True))])
def test_every_task_that_computes_does_it_as_its_record_says(
    tmp_path: Path, kind: str, determinism: Determinism | None, expected: tuple[bool, bool]
) -> None:
    tokens, teacher = tiny.token_artifact(tmp_path / "tokens"), tmp_path / "teacher"
    tiny.model().save_pretrained(teacher / "model")
    shutil.copytree(tokens / "tokenizer", teacher / "model", dirs_exist_ok=True)
    body, record = computing(determinism)[kind]
    context = tiny.context(tmp_path, record, tokens=tokens, teacher=teacher, model=teacher)
    context.progress = probe = Probe()
    before = settings()
    body.run(context)
    assert probe.seen == {expected}
    assert settings() == before
