"""What is looked at of every model where it is used, beside its quality: the texts that it writes, speed and memory."""

from collections.abc import Sequence

from boomspec.compile import records
from boomspec.compile.builder import Builder
from boomspec.compile.family import EvaluatedModel
from boomspec.compile.lm_eval.template import template_of
from boomspec.core.tasks import Cell, Texts
from boomspec.spec.spec_file import SpecFile

_PLACE = ("evaluate", "texts")


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
