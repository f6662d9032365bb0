"""Check that every size of a family can be built: names and shapes at the real size, and a trial on tiny weights.

shapes      those of the files are those that transformers' class of the config has
configs     there is one for every size that is to be built
trial       on tiny random weights, under the names of the teacher's files (`tiny`), every size is what its layers
            are when they are put together in memory (`in_memory`)
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, layers_text, student_layers, teacher_layers
from boomspec.core.tasks import BuiltSize, Check, Outline
from boomspec.models.facts import ModelFacts, model_facts, read_as, read_facts
from boomspec.models.fit import plan_entries
from boomspec.models.outline import config_of, tensors_of
from boomspec.models.plan_config import check_one_kind
from runners.assembly.assemble import assemble
from runners.checking.in_memory import layer_stack, logits, patched
from runners.checking.tiny import VOCABULARY, NotTinyError, auto_class, lay_out, randomise, read_config
from runners.modeling.foreign_code import prepare_custom_code
from runners.modeling.hidden_states import (
    capture,
    check_apart,
    check_head,
    embedding_parameters,
    hidden_pairs,
    trunk,
)
from runners.modeling.layerwise import take_apart
from runners.modeling.model_config import complete, plan_config
from runners.modeling.models import Code, loading_options, save_weights

_MOST_TRIED = 6  # of the sizes: each takes as long as a tiny model takes to be written, loaded and run
_ANY_TOKENS_BT = (torch.arange(2 * 21).reshape(2, 21) * 7 + 3) % (VOCABULARY - 4)
_TEACHER, _STUDENT = "the teacher", "the student"
_CLOSE = 1e-4  # of the largest logit; measured: what is right is equal, or differs by up to 1e-6 of it
_ADVICE = "no size of this family would be right: take another teacher, or other layers and sizes"


def check_family(record: Check, *, own: Mapping[str, Path] | None = None, code: Code = ()) -> list[str]:
    """What could not be checked; BoomspecError for a size that would not come out right. `own`: folders with code."""
    facts = _facts(record.teacher, _TEACHER)
    try:
        return _check(record, facts, own or {}, code)
    except BoomspecError as error:
        message = f"a {facts.model_type} like this teacher: {error.message}"
        raise BoomspecError(message, hint=error.hint or _ADVICE) from error


def _check(record: Check, facts: ModelFacts, own: Mapping[str, Path], code: Code) -> list[str]:
    if record.student is not None:
        student = _facts(record.student, _STUDENT)
    else:  # the one that a distillation makes
        config = plan_config({TEACHER: facts}, teacher_layers(record.kept), tied=facts.tied, base=TEACHER)
        student = replace(facts, layers=tuple(facts.layers[i] for i in record.kept), config=config)
    if record.merged:
        check_one_kind(facts, complete)
    own_kind = read_as(student, facts.model_type, _STUDENT)
    for size in record.sizes:
        plan_config({TEACHER: facts, STUDENT: own_kind}, size.plan, tied=size.tied, base=TEACHER)
        plan_entries(facts, student, size.plan, tied=size.tied)
    last = len(record.sizes) - 1
    tried = {round(i * last / (_MOST_TRIED - 1)) for i in range(_MOST_TRIED)}  # the first and the last among them
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        notes = _check_shapes(record.teacher, work / "shapes", own.get("teacher"), code)
        if student.model_type != facts.model_type:
            return [*notes, f"a {student.model_type} as student of a {facts.model_type} was not tried on tiny weights"]
        try:
            lay_out(record.teacher, work / "teacher", seed=1, own=own.get("teacher"), code=code)
            if record.student is not None:
                lay_out(record.student, work / "student", seed=2, own=own.get("student"), code=code)
            sizes = [size for i, size in enumerate(record.sizes) if i in tried]
            its_student = None if record.student is None else work / "student"
            try_sizes(work / "teacher", record.kept, sizes, work, student=its_student, code=code)
            if record.alone:
                _try_layers(work / "teacher", code)
            if record.apart:
                check_apart(_loaded(work / "teacher", _TEACHER, facts.count, code))
        except NotTinyError as error:
            notes.append(f"only names and shapes were checked: {error.message}")
    return notes


def _facts(outline: Outline, where: str) -> ModelFacts:
    config, tensors = config_of(outline.config), tensors_of(outline.tensors)
    facts = model_facts(config, tensors, where)
    if facts.tied and not outline.tied:  # the bytes say so, which are not here
        facts = model_facts({**config, "tie_word_embeddings": False}, tensors, where)
    return facts


def _check_shapes(outline: Outline, folder: Path, own: Path | None, code: Code) -> list[str]:
    """Raise BoomspecError where a tensor of the files has another shape than its class wants."""
    folder.mkdir()
    if own is not None:
        return []  # its code is in another folder; the trial runs it
    config = read_config(config_of(outline.config), folder, code)
    try:
        with init_empty_weights(include_buffers=False):
            model = auto_class(config).from_config(
                config, dtype=torch.bfloat16, trust_remote_code=prepare_custom_code(folder, "model", code)
            )
        wanted: dict[str, Any] = revert_weight_conversion(model, model.state_dict())
    except Exception as error:  # whatever a class raises
        return [f"the shapes of a {config.model_type} were not checked: {type(error).__name__}: {error}"]
    for name, entry in tensors_of(outline.tensors).items():
        shape = tuple(wanted[name].shape) if name in wanted else entry.shape
        if shape != entry.shape:
            raise BoomspecError(f"its tensor '{name}' has shape {entry.shape}, a {type(model).__name__} wants {shape}")
    return []


def try_sizes(
    teacher: Path,
    kept: Sequence[int],  # the teacher's layers that the student begins as
    sizes: Sequence[BuiltSize],
    work: Path,
    *,
    student: Path | None = None,  # a tiny one that is there instead
    code: Code = (),
) -> None:
    """Build sizes of the tiny teacher in a folder. Raises BoomspecError where one is not what its layers are.

    The student is laid out and saved as `runners.tasks.distill` does it, the sizes are assembled as
    `runners.tasks.interpolate` does it. Raises NotTinyError where the tiny models say nothing.
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
        layers = layers_text(plan) if len(plan) <= 8 else f"{layers_text(plan[:4])} ... {layers_text(plan[-3:])}"
        _check_logits(model, tokens_BT, wanted_BTV, f"{what} ({layers}) is not what its layers are")

    try:
        its_logits = logits(models[TEACHER], tokens_BT)
    except Exception as error:  # whatever a class raises for sizes that do not go together
        raise NotTinyError(f"a tiny {facts.model_type} cannot be run: {type(error).__name__}: {error}") from error
    again = built(teacher_layers(range(facts.count)), work / "whole", whole, tied=facts.tied)
    _check_logits(again, tokens_BT, its_logits, f"{whole} is not the teacher")
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
        _check_logits(same, tokens_BT, logits(models[STUDENT], tokens_BT), wrong, hint)
    else:
        _check_trainable(models[TEACHER], facts.count, tokens_BT, _TEACHER)
        _check_trainable(models[STUDENT], len(kept), tokens_BT, _STUDENT)
    if _differ(its_logits, logits(models[STUDENT], tokens_BT)) < 1e-2:
        raise NotTinyError(f"the weights of a tiny {facts.model_type} do not show in its logits")
    for size in sizes:
        plan_entries(facts, saved, size.plan, tied=size.tied)
        what = f"the model of {len(size.plan)} layers"
        compare(built(size.plan, work / "size", what, tied=size.tied), size.plan, what)
        shutil.rmtree(work / "size")


def _try_layers(teacher: Path, code: Code) -> None:
    """Raise BoomspecError unless the layers of the tiny teacher, each by itself, make the teacher together."""
    facts = read_facts(teacher)
    tokens_BT = _ANY_TOKENS_BT % facts.token_embedding.shape[0]
    for index in range(facts.count):
        plan_config({TEACHER: facts}, teacher_layers([index]), tied=facts.tied, base=TEACHER)
    take_apart(_loaded(teacher, _TEACHER, facts.count, code), tokens_BT)


def _check_trainable(model: Any, layers: int, tokens_BT: Tensor, what: str) -> None:
    """Do with a model what a distillation does besides running it. Raises BoomspecError where that fails."""
    try:
        check_head(model)
        embedding_parameters(model)
        points = [point for point, _ in hidden_pairs(range(layers), layers)]
        with torch.no_grad(), capture(model, points) as states:
            trunk(model, tokens_BT)
        if missing := [point for point in points if point not in states]:
            raise BoomspecError(f"its hidden state at {missing[0]} cannot be caught")
    except BoomspecError as error:
        raise BoomspecError(f"{what} cannot be trained with: {error.message}", hint=error.hint) from error
    except Exception as error:  # a class whose head does not take what its trunk gives
        raise BoomspecError(f"{what} cannot be trained with: {type(error).__name__}: {error}") from error


def _loaded(folder: Path, what: str, layers: int, code: Code) -> Any:
    """A model as every task loads it; its class must find what it needs, and in what is built nothing more."""
    trusts = prepare_custom_code(folder, "model", code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts)
        options = loading_options(folder, torch.float32, trusts=trusts)
        model, found = auto_class(config).from_pretrained(folder, use_safetensors=True, **options)
    except Exception as error:  # each class has its own exceptions
        raise BoomspecError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error
    unknown = ("unexpected_keys", "has, and transformers does not know,")
    for key, wrong in (("missing_keys", "lacks"), unknown, ("mismatched_keys", "has in another shape")):
        if what == _TEACHER and key == "unexpected_keys":
            continue  # it is not read, and whether sizes can be built without it is seen when they are
        if names := sorted(str(name) for name in found[key]):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BoomspecError(f"{what} {wrong} '{names[0]}'{more} (of a {type(model).__name__})")
    try:
        layer_stack(model, layers)
    except BoomspecError as error:
        raise BoomspecError(f"{what}: {error.message}") from error
    return model.eval()


def _check_logits(model: Any, tokens_BT: Tensor, wanted_BTV: Tensor, wrong: str, hint: str | None = None) -> None:
    if not (difference := _differ(logits(model, tokens_BT), wanted_BTV)) <= _CLOSE:
        raise BoomspecError(f"{wrong}: its logits are {difference:.2g} off", hint=hint)


def _differ(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
