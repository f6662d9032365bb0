"""Build every size of a family on tiny random weights, and compare it with its layers put together in memory.

The teacher is tiny, under the names of its own files (`layout`). Its student is laid out and saved as
`runners.tasks.distill` does it, its sizes are assembled as `runners.tasks.interpolate` does it, and each is compared
with the same layers put together in memory (`in_memory`).
"""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, layers_text, student_layers, teacher_layers
from boomspec.core.tasks import BuiltSize
from boomspec.models.facts import read_facts
from boomspec.models.fit import plan_entries
from runners.assembly.assemble import assemble
from runners.checking.in_memory import layer_stack, logits, patched
from runners.checking.layout import NotTinyError, auto_class, randomise
from runners.checking.tiny import VOCABULARY
from runners.modeling.foreign_code import prepare_custom_code
from runners.modeling.head import check_head
from runners.modeling.hidden_states import capture, embedding_parameters, hidden_pairs, trunk
from runners.modeling.models import key_mapping_for, save_weights

_ANY_TOKENS_BT = (torch.arange(2 * 21).reshape(2, 21) * 7 + 3) % (VOCABULARY - 4)
_TEACHER, _STUDENT = "the teacher", "the student"
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
    facts, whole = read_facts(teacher), "the model of all the teacher's layers"
    tokens_BT = _ANY_TOKENS_BT % facts.token_embedding.shape[0]
    folders: dict[Owner, Path] = {TEACHER: teacher}
    models: dict[Owner, Any] = {TEACHER: _loaded(teacher, _TEACHER, facts.count, code)}
    counts: dict[Owner, int] = {TEACHER: facts.count, STUDENT: len(kept)}

    def built(plan: LayerPlan, target: Path, what: str, *, tied: bool) -> Any:
        assemble(folders, plan, target, tied=tied, code=code)
        return _loaded(target, what, len(plan), code)

    def compare(model: Any, plan: LayerPlan, what: str) -> None:
        wanted_BTV = logits(patched(models, plan, counts, tokens_BT), tokens_BT)
        _check(model, tokens_BT, wanted_BTV, f"{what} ({_shortened(plan)}) is not what its layers are")

    try:
        its_logits = logits(models[TEACHER], tokens_BT)
    except Exception as error:  # whatever a class raises for sizes that do not go together
        raise NotTinyError(f"a tiny {facts.model_type} cannot be run: {type(error).__name__}: {error}") from error
    again = built(teacher_layers(range(facts.count)), work / "whole", whole, tied=facts.tied)
    _check(again, tokens_BT, its_logits, f"{whole} is not the teacher")
    if type(again) is not type(models[TEACHER]):  # a text decoder among other parts: the sizes are of its class
        models[TEACHER] = again
    if student is None:  # as a distillation begins with it, with other weights, as it is saved
        first = built(teacher_layers(kept), work / "student", _STUDENT, tied=facts.tied)
        compare(first, teacher_layers(kept), _STUDENT)
        randomise(first, seed=2)
        save_weights(first, work / "student", dtype=torch.float32)
    folders[STUDENT] = student or work / "student"
    saved = read_facts(folders[STUDENT])
    models[STUDENT] = _loaded(folders[STUDENT], _STUDENT, len(kept), code)
    if student is not None:
        same = built(student_layers(saved.count), work / "same", _STUDENT, tied=saved.tied)
        wrong, hint = "the student is another model with the teacher's config", "compare the two config.json"
        _check(same, tokens_BT, logits(models[STUDENT], tokens_BT), wrong, hint)
    if trained:
        _check_trainable(models[TEACHER], range(facts.count), tokens_BT, _TEACHER)
        _check_trainable(models[STUDENT], kept, tokens_BT, _STUDENT)
    if _differ(its_logits, logits(models[STUDENT], tokens_BT)) < 1e-2:
        raise NotTinyError(f"the weights of a tiny {facts.model_type} do not show in its logits")
    for size in sizes:
        plan_entries(facts, saved, size.plan, tied=size.tied)
        what = f"the model of {len(size.plan)} layers"
        compare(built(size.plan, work / "size", what, tied=size.tied), size.plan, what)
        shutil.rmtree(work / "size")


def _check_trainable(model: Any, layers: Sequence[int], tokens_BT: Tensor, what: str) -> None:
    """Do with a model what a distillation does besides running it. Raises WrongError where that fails."""
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
    trusts = prepare_custom_code(folder, "model", code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts)
        model, found = auto_class(config).from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trusts,
            output_loading_info=True,
            **key_mapping_for(folder),
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


def _check(model: Any, tokens_BT: Tensor, wanted_BTV: Tensor, wrong: str, hint: str | None = None) -> None:
    if not (difference := _differ(logits(model, tokens_BT), wanted_BTV)) <= _CLOSE:
        raise WrongError(f"{wrong}: its logits are {difference:.2g} off", hint=hint)


def _differ(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))


def _shortened(plan: LayerPlan) -> str:
    return layers_text(plan) if len(plan) <= 8 else f"{layers_text(plan[:4])} ... {layers_text(plan[-3:])}"
