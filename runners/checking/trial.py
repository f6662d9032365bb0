"""Whether every size of a teacher's family comes out right, tried on tiny random weights of the same architecture.

The teacher is built tiny (`tiny`), under the tensor names of its own files. Its student is laid out and saved as
`runners.tasks.distill` does it, its sizes are assembled as `runners.tasks.interpolate` does it, and each is compared
with the same layers put together in memory (`in_memory`).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from boomspec.errors import BoomspecError
from boomspec.models.facts import read_facts
from boomspec.models.fit import check_fit, plan_entries
from runners.assembly import assemble
from runners.checking.in_memory import layer_stack, logits, patched
from runners.checking.tiny import VOCABULARY
from runners.models import named_otherwise, save_weights

_TOKENS_BT = (torch.arange(2 * 21).reshape(2, 21) * 7 + 3) % (VOCABULARY - 4)
_CLOSE = 1e-4  # of the largest logit; measured: what is right is equal or differs by up to 1e-6 of it


@dataclass(frozen=True)
class Size:
    """One member: its layer plan ("t4": teacher layer 4), and whether head and embedding are one."""

    plan: tuple[str, ...]
    tied: bool


class WrongError(BoomspecError):
    """A size would not be what its layers are."""


def build_teacher(config: Any, folder: Path, *, code: bool = False) -> None:
    """Write a random model of a config object into `folder`."""
    random_model(config, seed=1, code=code).save_pretrained(folder)


def random_model(config: Any, *, seed: int, code: bool = False) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=code).eval()
        randomise(model, seed=seed)
    return model


@torch.no_grad()
def randomise(model: Any, *, seed: int) -> None:
    """Other weights, large enough that every layer shows in the logits, and none of which is that of another seed."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        drawn = torch.randn(parameter.shape, generator=random)
        if parameter.ndim < 2:  # norms, biases, gates: around what they begin as
            parameter.copy_(torch.nan_to_num(parameter).clamp(-4, 4) + drawn * 0.2)
        else:
            parameter.copy_(drawn * (0.3 if parameter.shape[-1] < 100 else 0.15))


def check_sizes(
    folder: Path, kept: Sequence[int], sizes: Sequence[Size], work: Path, *, code: Collection[str] = ()
) -> None:
    """Build the sizes of the tiny teacher in `folder`. Raises WrongError where one is not what its layers are.

    `kept`: the teacher's layers that the student begins as.
    """
    facts = read_facts(folder)
    teacher = _loaded(folder, "the teacher", facts.count, code)
    counts = {"t": facts.count, "s": len(kept)}
    student_folder = work / "student"
    initial = Size(tuple(f"t{i}" for i in kept), facts.tied)
    _built({"t": folder}, initial, student_folder, code)
    student = _loaded(student_folder, "the student", len(kept), code)
    expected = patched({"t": teacher}, initial.plan, counts, _TOKENS_BT)
    _compare(student, expected, "the student", initial.plan)
    randomise(student, seed=2)
    save_weights(student, student_folder, dtype=torch.float32)
    student = _loaded(student_folder, "the student that is saved again", len(kept), code)
    saved = read_facts(student_folder)
    check_fit(facts, saved, [])
    if _differ(logits(teacher, _TOKENS_BT), logits(student, _TOKENS_BT)) < 1e-2:
        raise WrongError("the weights of a tiny model do not show in its logits")
    for i, size in enumerate(sizes):
        plan_entries(facts, saved, size.plan, tied=size.tied)
        target = work / f"size-{i}"
        _built({"t": folder, "s": student_folder}, size, target, code)
        what = f"the model of {len(size.plan)} layers"
        model = _loaded(target, what, len(size.plan), code)
        expected = patched({"t": teacher, "s": student}, size.plan, counts, _TOKENS_BT)
        _compare(model, expected, what, size.plan)
        shutil.rmtree(target)


def _built(sources: Mapping[str, Path], size: Size, target: Path, code: Collection[str]) -> None:
    assemble(sources, size.plan, target, tied=size.tied, code=code)


def _loaded(folder: Path, what: str, layers: int, code: Collection[str]) -> Any:
    """A model as every task loads it; its class must find what it needs, and nothing more."""
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **named_otherwise(folder),
        )
    except Exception as error:
        raise WrongError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error
    for key, wrong in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has, and transformers does not know,"),
        ("mismatched_keys", "has in another shape"),
    ):
        if key == "unexpected_keys" and what == "the teacher":
            continue  # an image encoder, a head of another task: left out of what is made of it
        if names := sorted(str(name) for name in found[key]):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WrongError(f"{what} {wrong} '{names[0]}'{more} (of a {type(model).__name__})")
    try:
        layer_stack(model, layers)
    except BoomspecError as error:
        raise WrongError(f"{what}: {error}") from error
    return model.eval()


def _compare(model: Any, expected: Any, what: str, plan: Sequence[str]) -> None:
    found, wanted = logits(model, _TOKENS_BT), logits(expected, _TOKENS_BT)
    difference = _differ(found, wanted)
    if not difference <= _CLOSE:
        raise WrongError(f"{what} ({_shortened(plan)}) is not what its layers are: logits {difference:.2g} off")


def _differ(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    scale = wanted.abs().max().clamp_min(1e-6)
    return float((found - wanted).abs().max() / scale)


def _shortened(plan: Sequence[str]) -> str:
    return " ".join(plan) if len(plan) <= 8 else f"{' '.join(plan[:4])} ... {' '.join(plan[-3:])}"
