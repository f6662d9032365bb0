"""How a student is distilled: straight from its teacher, over assistants, in generations. All are distillations alike.

    teacher -> assistant -> ... -> student of generation 1 -> ... -> student

Each of this chain begins as layers of the teacher, and learns from the one before it. Its record says which layers
of its own teacher are compared with its own; which layers of the spec's teacher it begins as, where that is another
one, is said beside (`start`).
"""

from dataclasses import dataclass

from boomspec.compile import records
from boomspec.compile.assistants import assistants
from boomspec.compile.blockwise import add_blockwise
from boomspec.compile.builder import Builder
from boomspec.compile.during import sizes_during
from boomspec.compile.family import ResolvedFamily, patched_sets, resolve_family, trained_plans
from boomspec.compile.interpolation import add_size
from boomspec.compile.phases import add_distillation
from boomspec.core.tasks import Patched
from boomspec.models.facts import ModelFacts
from boomspec.spec.spec_file import SpecFile

_STUDENT = "student"  # what the family's own is called


@dataclass(frozen=True)
class _Teacher:
    """Whom the next one learns from."""

    model: str
    layers: tuple[int, ...]  # of the spec's teacher


def add_student(build: Builder, facts: ModelFacts, kept: tuple[int, ...]) -> str:
    """Add the student with those that come before it in the chain."""
    file = build.file
    family = _family(file, facts, kept) if _asks(file) else None
    asked = assistants(file, facts, kept, family) if _asks(file) else ()
    teacher = _Teacher(build.teacher, tuple(range(facts.count)))
    for i, assistant in enumerate(asked):
        label = "assistant" if len(asked) == 1 else f"assistant {i + 1}"
        if assistant.member is None:
            model = _train(build, teacher, assistant.layers, label, tokens=assistant.tokens)
        else:
            assert family is not None
            student = _train(build, teacher, kept, f"student before {label}", tokens=assistant.tokens)
            model = add_size(build, family, assistant.member, student, f"interpolate {label}")
        teacher = _Teacher(model, assistant.layers)
    build.last_teacher = teacher.model, teacher.layers
    build.sizes_during = sizes_during(file, facts, kept)
    return add_generations(build, kept, _STUDENT)


def add_generations(
    build: Builder,
    kept: tuple[int, ...],
    label: str,
    *,
    initial: records.Initial = "teacher",
    tokens: int | None = None,
) -> str:
    """Add a student that learns from the last assistant, or the teacher, with the generations before it."""
    section = build.resolved.spec.distill
    assert section is not None
    count = section.generations or 1
    teacher = _Teacher(*build.last_teacher)
    for generation in range(1, count + 1):
        name = label if generation == count else f"{label} generation {generation}"
        model = _train(build, teacher, kept, name, initial=initial, tokens=tokens)
        teacher = _Teacher(model, kept)
    return teacher.model


def text_of(build: Builder) -> dict[str, str]:
    """The text inputs of a distillation: `tokens`; `held_out`, too, where the student does not train on the data."""
    section = build.resolved.spec.distill
    if section is None or section.generated is None:
        return {"tokens": build.tokens}
    inputs = {"teacher": build.teacher, "tokens": build.tokens}
    written = build.add("generate text", records.generate(build.resolved), inputs)
    return {"tokens": written, "held_out": build.tokens}


def _asks(file: SpecFile) -> bool:
    return file.spec.distill is not None and file.spec.distill.assistants is not None


def _family(file: SpecFile, facts: ModelFacts, kept: tuple[int, ...]) -> ResolvedFamily | None:
    sets = patched_sets(file, kept, facts.count)
    return None if sets is None else resolve_family(file, facts, kept, sets)


def _train(
    build: Builder,
    teacher: _Teacher,
    layers: tuple[int, ...],
    label: str,
    *,
    initial: records.Initial = "teacher",
    tokens: int | None = None,
) -> str:
    """Add the distillation of a model that begins as these layers of the spec's teacher."""
    distill = build.resolved.spec.distill
    if distill is not None and distill.blockwise is not None:
        count = len(teacher.layers)
        student = add_blockwise(build, layers, label, layers=count, initial=initial, tokens=tokens)
        build.trainings[label] = student
        return student
    inputs = {"teacher": teacher.model, **text_of(build)}
    own, start = layers, None
    if teacher.model != build.teacher:
        own, start = tuple(teacher.layers.index(layer) for layer in layers), layers
        inputs["start"] = build.teacher
    section, patched = build.resolved.spec.distill, None
    if section is not None and section.patch_aware is not None:  # then no other model comes between
        plans = trained_plans(build.file, layers, teacher.layers[-1] + 1)
        patched = Patched(share=section.patch_aware.share, plans=plans)
    sizes = build.sizes_during if label == _STUDENT else None
    record = records.distill(
        build.resolved, own, start=start, initial=initial, tokens=tokens, patched=patched, sizes=sizes
    )
    task = build.trainings[label] = add_distillation(build, f"distill {label}", record, inputs)
    return task
