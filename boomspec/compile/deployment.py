"""What is looked at of every model where it is used, beside its quality: the texts that it writes, speed and memory."""

import json
from collections.abc import Sequence
from dataclasses import replace

from boomspec.compile import records
from boomspec.compile.builder import Builder
from boomspec.compile.family import EvaluatedModel
from boomspec.compile.lm_eval.template import template_of
from boomspec.compile.places import resolve_path
from boomspec.core.tasks import Cell, Texts
from boomspec.spec.spec_file import SpecFile, memoized_for

_PLACE = ("evaluate", "texts")
_MOST_PROMPTS = 1000  # they are part of a record


def with_prompts(file: SpecFile) -> SpecFile:
    """The file with the prompts in the place of the name of the file that holds them. Raises SpecError."""
    evaluate = file.spec.evaluate
    if evaluate is None or evaluate.texts is None or evaluate.texts.file is None:
        return file
    update = {"file": None, "prompts": _read(file, evaluate.texts.file)}
    asked = evaluate.model_copy(update={"texts": evaluate.texts.model_copy(update=update)})
    return replace(file, spec=file.spec.model_copy(update={"evaluate": asked}))


def check_texts(file: SpecFile) -> None:
    """Raise SpecError where prompts are to be turns of a chat, and the teacher's tokenizer has no chat template."""
    texts = file.spec.evaluate.texts if file.spec.evaluate is not None else None
    if texts is None or not texts.with_chat:
        return
    template = template_of(file)
    if template is not None and not template.text:
        asked = {"system": texts.system, "template": texts.template, "chat": texts.chat is True}
        name = next(name for name, given in asked.items() if given)
        hint = "leave it out: the prompts are then text that goes on"
        raise file.error_at((*_PLACE, name), "the teacher's tokenizer has no chat template", hint)


@memoized_for("evaluate")
def _read(file: SpecFile, name: str) -> tuple[str, ...]:
    place = (*_PLACE, "file")
    path = resolve_path(file, place, name)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeError) else error.strerror
        raise file.error_at(place, f"'{path}' cannot be read: {reason}") from error
    found: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = line
        if path.suffix == ".jsonl":
            try:
                prompt = json.loads(line)["prompt"]
                if not isinstance(prompt, str) or not prompt.strip():
                    raise TypeError
            except (ValueError, KeyError, TypeError) as error:
                message = f"line {number} of '{path}' has no text in a field `prompt`"
                raise file.error_at(place, message, 'write {"prompt": "..."}') from error
        if prompt in found:
            raise file.error_at(place, f"line {number} of '{path}' is the same prompt again")
        found.append(prompt)
    if not 1 <= len(found) <= _MOST_PROMPTS:
        raise file.error_at(place, f"'{path}' has {len(found):,} prompts: 1 to {_MOST_PROMPTS:,} are allowed")
    return tuple(found)


def _role(model: EvaluatedModel, kind: str) -> str:
    return f"{model.label}/:{kind}"  # no measure has a colon in its name


def add_deployed(build: Builder, models: Sequence[EvaluatedModel]) -> None:
    """Add the tasks of all models, and their cells in the report."""
    deployed = records.deployments(build.file)
    for model in models:
        for record in deployed:
            inputs = {"model": model.task}
            if isinstance(record, Texts):
                inputs |= build.tokenizer_of(model.task, asked_anew=True)
            task = build.add(f"{record.kind} of {model.label}", record, inputs)
            build.roles[_role(model, record.kind)] = task
    kinds = tuple(record.kind for record in deployed)
    build.deployed = build.file.once(
        ("deployed", kinds, *((model.series, model.label) for model in models)),
        lambda: tuple(
            Cell(
                series=model.series,
                layers=model.member.layers,
                parameters=model.member.parameters,
                bytes=model.member.bytes,
                measure=kind,
                input=_role(model, kind),
            )
            for model in models
            for kind in kinds
        ),
        *(model.member for model in models),
    )
