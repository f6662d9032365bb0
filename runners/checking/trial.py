"""Build every size of a family on tiny random weights, and compare it with its layers put together in memory.

The teacher is tiny, under the names of its own files (`layout`). Its student is laid out and saved as
`runners.tasks.distill` does it, its sizes are assembled as `runners.tasks.interpolate` does it, and each is compared
with the same layers put together in memory (`in_memory`).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, Owner, Plan, layers_text, student_layers, teacher_layers
from boomspec.core.tasks import BuiltSize
from boomspec.models.facts import ModelFacts, read_facts
from boomspec.models.fit import plan_entries
from runners.assembly.assemble import assemble
from runners.checking.in_memory import layer_stack, logits, patched
from runners.checking.layout import NotTinyError, auto_class, randomise
from runners.checking.tiny import VOCABULARY
from runners.modeling.foreign_code import ready
from runners.modeling.head import check_head
from runners.modeling.hidden_states import capture, embedding_parameters, hidden_pairs, trunk
from runners.modeling.models import named_otherwise, save_weights

_ANY_TOKENS_BT = (torch.arange(2 * 21).reshape(2, 21) * 7 + 3) % (VOCABULARY - 4)
_TEACHER = "the teacher"
_CLOSE = 1e-4  # of the largest logit; measured: what is right is equal, or differs by up to 1e-6 of it


class WrongError(BoomspecError):
    """A model would not be what its layers are."""


def try_sizes(
    teacher: Path,
    kept: Sequence[int],
    sizes: Sequence[BuiltSize],
    work: Path,
    *,
    student: Path | None = None,
    trained: bool = True,
    code: Collection[str] = (),
) -> None:
    """Build the sizes of the tiny teacher in a folder. Raises WrongError where one is not what its layers are.

    `kept`: the teacher's layers that the student begins as. `student`: a tiny one that is there instead. `trained`:
    whether it is distilled. Raises NotTinyError where the tiny models say nothing.
    """
    facts = read_facts(teacher)
    tokens_BT = _ANY_TOKENS_BT % facts.token_embedding.shape[0]
    in_memory: dict[Owner, Any] = {TEACHER: _loaded(teacher, _TEACHER, facts.count, code)}
    try:
        its_logits = logits(in_memory[TEACHER], tokens_BT)
    except Exception as error:  # whatever a class raises for sizes that do not go together
        raise NotTinyError(f"a tiny {facts.model_type} cannot be run: {type(error).__name__}: {error}") from error
    counts: dict[Owner, int] = {TEACHER: facts.count, STUDENT: len(kept)}
    whole = _whole(teacher, facts, (tokens_BT, its_logits), work / "whole", code)
    if type(whole) is not type(in_memory[TEACHER]):  # a text decoder among other parts: the sizes are of its class
        in_memory[TEACHER] = whole
    given = student is not None
    if student is None:
        student = work / "student"
        _laid_out_student(teacher, in_memory, kept, tokens_BT, student, code)
    in_memory[STUDENT] = _loaded(student, "the student", len(kept), code)
    if given:
        _the_same(student, teacher, in_memory[STUDENT], tokens_BT, work / "same", code)
    if trained:
        for what, model in ((_TEACHER, in_memory[TEACHER]), ("the student", in_memory[STUDENT])):
            _trainable(model, kept if model is in_memory[STUDENT] else range(facts.count), tokens_BT, what)
    if _differ(its_logits, logits(in_memory[STUDENT], tokens_BT)) < 1e-2:
        raise NotTinyError(f"the weights of a tiny {facts.model_type} do not show in its logits")
    saved = read_facts(student)
    for i, size in enumerate(sizes):
        plan_entries(facts, saved, size.plan, tied=size.tied)
        target = work / f"size-{i}"
        assemble({TEACHER: teacher, STUDENT: student}, size.plan, target, tied=size.tied, code=code)
        what = f"the model of {len(size.plan)} layers"
        model = _loaded(target, what, len(size.plan), code)
        _compare(model, patched(in_memory, size.plan, counts, tokens_BT), tokens_BT, what, size.plan)
        shutil.rmtree(target)


def _whole(teacher: Path, facts: ModelFacts, wanted: tuple[Tensor, Tensor], target: Path, code: Collection[str]) -> Any:
    """The teacher itself, assembled of all its layers. `wanted`: tokens_BT and its logits_BTV."""
    plan = teacher_layers(range(facts.count))
    assemble({TEACHER: teacher}, plan, target, tied=facts.tied, code=code)
    what = "the model of all the teacher's layers"
    model = _loaded(target, what, facts.count, code)
    if not (difference := _differ(logits(model, wanted[0]), wanted[1])) <= _CLOSE:
        raise WrongError(f"{what} is not the teacher: its logits are {difference:.2g} off")
    return model


def _the_same(
    student: Path, teacher: Path, in_memory: Any, tokens_BT: Tensor, target: Path, code: Collection[str]
) -> None:
    """Raise WrongError where a student that is there is another model under the config of its teacher."""
    facts = read_facts(student)
    plan = student_layers(facts.count)
    assemble({TEACHER: teacher, STUDENT: student}, plan, target, tied=facts.tied, code=code)
    model = _loaded(target, "the student", facts.count, code)
    shutil.rmtree(target)
    if not (difference := _differ(logits(model, tokens_BT), logits(in_memory, tokens_BT))) <= _CLOSE:
        message = "the student is another model with the teacher's config: its logits are"
        raise WrongError(f"{message} {difference:.2g} off", hint="compare the two config.json")


def _laid_out_student(
    teacher: Path,
    in_memory: Mapping[Owner, Any],
    kept: Sequence[int],
    tokens_BT: Tensor,
    target: Path,
    code: Collection[str],
) -> None:
    """The student as a distillation begins with it, with other weights, as it is saved."""
    plan = teacher_layers(kept)
    assemble({TEACHER: teacher}, plan, target, tied=read_facts(teacher).tied, code=code)
    student = _loaded(target, "the student", len(kept), code)
    counts: dict[Owner, int] = {TEACHER: read_facts(teacher).count}
    _compare(student, patched(in_memory, plan, counts, tokens_BT), tokens_BT, "the student", plan)
    randomise(student, seed=2)
    save_weights(student, target, dtype=torch.float32)


def _trainable(model: Any, layers: Sequence[int], tokens_BT: Tensor, what: str) -> None:
    """What a distillation does with a model besides running it."""
    try:
        check_head(model)
        embedding_parameters(model)
        points = [point for point, _ in hidden_pairs(range(len(layers)), len(layers))]
        with torch.no_grad(), capture(model, points) as states:
            trunk(model, tokens_BT)
        if missing := [point for point in points if point not in states]:
            raise BoomspecError(f"its hidden state at {missing[0]} cannot be caught")
    except BoomspecError as error:
        raise WrongError(f"{what} cannot be trained with: {error.message}", hint=error.hint) from error
    except Exception as error:  # a class whose head does not take what its trunk gives
        raise WrongError(f"{what} cannot be trained with: {type(error).__name__}: {error}") from error


def _loaded(folder: Path, what: str, layers: int, code: Collection[str]) -> Any:
    """A model as every task loads it; its class must find what it needs, and in what is built nothing more."""
    trusts = ready(folder, "model", code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts)
        model, found = auto_class(config).from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trusts,
            output_loading_info=True,
            **named_otherwise(folder),
        )
    except Exception as error:  # each class has its own exceptions
        raise WrongError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error
    for key, wrong in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has, and transformers does not know,"),
        ("mismatched_keys", "has in another shape"),
    ):
        if what == _TEACHER and key == "unexpected_keys":
            continue  # it is not read, and whether sizes can be built without it is seen when they are
        if names := sorted(str(name) for name in found[key]):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WrongError(f"{what} {wrong} '{names[0]}'{more} (of a {type(model).__name__})")
    try:
        layer_stack(model, layers)
    except BoomspecError as error:
        raise WrongError(f"{what}: {error.message}") from error
    return model.eval()


def _compare(model: Any, expected: Any, tokens_BT: Tensor, what: str, plan: Plan) -> None:
    difference = _differ(logits(model, tokens_BT), logits(expected, tokens_BT))
    if not difference <= _CLOSE:
        raise WrongError(f"{what} ({_shortened(plan)}) is not what its layers are: its logits are {difference:.2g} off")


def _differ(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))


def _shortened(plan: Plan) -> str:
    return layers_text(plan) if len(plan) <= 8 else f"{layers_text(plan[:4])} ... {layers_text(plan[-3:])}"
