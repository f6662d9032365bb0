"""Check that every size of a family can be built: names and shapes at the real size, and a trial on tiny weights.

shapes      those of the files are those that transformers' class of the config has
configs     there is one for every size that is to be built
trial       on tiny random weights every size is what its layers are (`trial`)
"""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers.core_model_loading import revert_weight_conversion

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, teacher_layers
from boomspec.core.tasks import Check, Outline
from boomspec.models.facts import ModelFacts, model_facts, read_as
from boomspec.models.fit import plan_entries
from boomspec.models.outline import config_of, tensors_of
from boomspec.models.plan_config import check_one_kind
from runners.checking.layout import NotTinyError, auto_class, lay_out, read_config
from runners.checking.trial import try_sizes
from runners.modeling.foreign_code import prepare_custom_code
from runners.modeling.model_config import complete, plan_config

_MOST_TRIED = 6  # of the sizes: each takes as long as a tiny model takes to be written, loaded and run
_ADVICE = "no size of this family would be right: take another teacher, or other layers and sizes"


def check_family(record: Check, *, own: Mapping[str, Path] | None = None, code: Collection[str] = ()) -> list[str]:
    """What could not be checked. Raises BoomspecError, naming the family, where a size would not come out right.

    `own`: the folders of models that bring code along, by role.
    """
    own = own or {}
    facts = _facts(record.teacher, "the teacher")
    try:
        return _check(record, facts, own, code)
    except BoomspecError as error:
        raise BoomspecError(
            f"a {facts.model_type} like this teacher: {error.message}", hint=error.hint or _ADVICE
        ) from error


def _check(record: Check, facts: ModelFacts, own: Mapping[str, Path], code: Collection[str]) -> list[str]:
    if record.student is not None:
        student = _facts(record.student, "the student")
    else:  # the one that a distillation makes
        config = plan_config({TEACHER: facts}, teacher_layers(record.kept), tied=facts.tied, base=TEACHER)
        student = replace(facts, layers=tuple(facts.layers[i] for i in record.kept), config=config)
    if record.merged:
        check_one_kind(facts, complete)
    own_kind = read_as(student, facts.model_type, "the student")
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
            try_sizes(
                work / "teacher",
                record.kept,
                [size for i, size in enumerate(record.sizes) if i in tried],
                work,
                student=None if record.student is None else work / "student",
                trained=record.student is None,
                code=code,
            )
        except NotTinyError as error:
            notes.append(f"only names and shapes were checked: {error.message}")
    return notes


def _facts(outline: Outline, where: str) -> ModelFacts:
    config, tensors = config_of(outline.config), tensors_of(outline.tensors)
    facts = model_facts(config, tensors, where)
    if facts.tied and not outline.tied:  # the bytes say so, which are not here
        facts = model_facts({**config, "tie_word_embeddings": False}, tensors, where)
    return facts


def _check_shapes(outline: Outline, folder: Path, own: Path | None, code: Collection[str]) -> list[str]:
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
