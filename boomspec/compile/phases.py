"""The phases of a distillation as tasks: one after the other, each with the one before it as its input `before`.

    distill student, phase web  --before-->  distill student

The last one has the name and the place of the training, and its student is the student. All have the recipe of the
whole, so that a changed schedule changes all of them; what is changed of a later phase alone changes none before it.

Each text is drawn as one stream over the phases: a phase goes on where those before it have ended that train on the
same one.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from boomspec.compile import records
from boomspec.compile.builder import Builder
from boomspec.compile.texts import default_text
from boomspec.compile.trainings import steps_of_phases
from boomspec.core.losses import Losses
from boomspec.core.tasks import Distill, Phase
from boomspec.core.tasks.training import BEFORE
from boomspec.spec.sections.phases import names
from boomspec.spec.sections.shares import BlendPart, proportions

_STUDENT = "distill student"  # the name of the task that makes the family's student


@dataclass(frozen=True)
class _Part:
    """A phase: what its record and its inputs have of their own."""

    name: str
    phase: Phase | None  # None: it is the whole training
    losses: Losses | None  # None: those of the training
    inputs: Mapping[str, str]


def add_distillation(
    build: Builder, name: str, record: Distill, inputs: Mapping[str, str], *, in_phases: bool = True
) -> str:
    """Add a training of a student, with what it reads; its id. `inputs`: its teacher, the tokens, what it begins as.

    `in_phases`: where the spec has phases, each is a task. Else, as a published baseline has it, the whole is one.
    """
    parts = _parts(build, record, inputs) if in_phases else []
    if not parts:
        return _add(build, name, record, inputs)
    made: list[tuple[str, str]] = []
    for part in parts:
        called = name if part is parts[-1] else f"{name}, phase {part.name}"
        own = record.model_copy(update={"phase": part.phase, "losses": part.losses or record.losses})
        before = {BEFORE: made[-1][1]} if made else {}
        made.append((part.name, _add(build, called, own, {**inputs, **part.inputs, **before})))
    if len(parts) > 1:
        build.phases[name.removeprefix("distill ")] = made
    return made[-1][1]


def _add(build: Builder, name: str, record: Distill, inputs: Mapping[str, str]) -> str:
    read = {**inputs, **build.other_teachers}
    if record.teacher_outputs is not None:
        what = "teacher outputs" if name == _STUDENT else f"teacher outputs for {name.removeprefix('distill ')}"
        of_teacher = {role: read[role] for role in ("teacher", "tokens")}
        read["outputs"] = build.add(what, records.teacher_outputs(record), of_teacher)
    return build.add(name, record, read)


def _stream(build: Builder, data: str | Mapping[str, BlendPart] | None) -> Hashable:
    """What two phases have in common that draw from one stream of rows, whatever each of them learns of it."""
    text = default_text(build.resolved.spec) if data is None else data
    if text is None or isinstance(text, str):
        return text
    if [part.unit for part in text.values()] == ["weight"]:  # all of one source
        return next(iter(text))
    values = [part.value for part in text.values()]
    if next(iter(text.values())).unit == "weight":  # 0.7 and 0.3 are 70% and 30%
        values = [*proportions(values)]
    return tuple(sorted((name, part.unit, value) for (name, part), value in zip(text.items(), values, strict=True)))


def _parts(build: Builder, record: Distill, inputs: Mapping[str, str]) -> list[_Part]:
    """The phases of the spec, one at least; none where it has no phases."""
    section = build.resolved.spec.distill
    if section is None or section.phases is None:
        return []
    steps = steps_of_phases(section, build.resolved.data.sequence_length)
    firsts, passed = [0, *accumulate(steps)], dict[Hashable, int]()
    found: list[_Part] = []
    for phase, name, count, first in zip(section.phases, names(section.phases), steps, firsts, strict=False):
        own_text = phase.data is not None or phase.loss_on is not None
        text = build.tokens_of(phase.data, loss_on=phase.loss_on) if own_text else inputs["tokens"]
        stream = _stream(build, phase.data)
        own = Phase(first=first, steps=count, passed=passed.get(stream, 0))
        passed[stream] = passed.get(stream, 0) + count
        read = {"tokens": text}
        # All phases are measured on one text: with `during` on that of all measures, else on that of the first phase,
        # whose task then depends on no other text.
        measured = build.tokens if record.during is not None else found[0].inputs["tokens"] if found else text
        if text != measured:
            read["held_out"] = measured
        found.append(_Part(name, own if len(steps) > 1 else None, phase.losses, read))
    return found
