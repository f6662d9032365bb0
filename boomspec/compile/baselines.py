"""The models that are measured: members of a family, and the baselines that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from boomspec.compile import records as make
from boomspec.compile.records import Builder
from boomspec.compile.resolve import Family, pruned
from boomspec.core.errors import BoomspecError
from boomspec.core.layers import Plan, teacher_indices, teacher_layers, untrained
from boomspec.core.sizes import Member
from boomspec.core.tasks import Baseline, LaCo, Series
from boomspec.models.plan_config import check_one_kind
from boomspec.spec.sections.baselines import LaCoSpec, RandomInit, ShortGPT
from boomspec.spec.sections.determinism import determinism
from boomspec.spec.sections.student import KeepChoice


@dataclass(frozen=True)
class Model:
    """One model to be measured: the series that it belongs to, its size, and the task or source that has it."""

    series: Series
    label: str
    member: Member
    task: str


def members(build: Builder, family: Family, teacher: str, student: str, series: Series) -> list[Model]:
    """The members between student and teacher, which are not made again."""
    models = []
    for member in family.members:
        if member.is_student or member.is_teacher:
            continue
        size = family.label(member)
        record = make.interpolation(build, member.plan, member.tied)
        name = f"interpolate {size}" + ("" if series == "interpolated" else f" {series}")
        task = build.add(name, record, {"teacher": teacher, "student": student})
        models.append(Model(series, f"{series} {size}", member, task))
    return models


def controls(build: Builder, family: Family, teacher: str, tokens: str | None) -> tuple[list[Model], dict[str, str]]:
    """The baselines that the spec asks for, and their trainings by label."""
    spec = build.file.spec
    models: list[Model] = []
    trainings: dict[str, str] = {}
    if spec.baseline("naive_pruning") is not None:
        models += _naive_pruning(build, family, teacher)
    if tokens is None:
        return models, trainings
    random_init: RandomInit | None = spec.baseline("random_init")
    if random_init is not None and spec.distill is not None:
        record = make.distill(build, spec.distill, family.kept, initial="random", tokens=random_init.tokens)
        control = build.add("distill random_init", record, {"teacher": teacher, "tokens": tokens})
        trainings["random_init"] = control
        models.append(Model("random_init", "random_init student", family.student, control))
        models += members(build, family, teacher, control, "random_init")
    if spec.baseline("standard_distillation") is not None:
        models += _standard_distillation(build, family, teacher, tokens)
    shortgpt: ShortGPT | None = spec.baseline("shortgpt")
    if shortgpt is not None:
        models += _shortgpt(build, family, teacher, tokens, shortgpt)
    laco: LaCoSpec | None = spec.baseline("laco")
    if laco is not None:
        models += _laco(build, family, teacher, tokens, laco)
    return models, trainings


def _naive_pruning(build: Builder, family: Family, teacher: str) -> list[Model]:
    models = []
    for member in _below_the_teacher(family):
        plan = untrained(member.plan, family.kept)
        task = build.add(f"prune to {family.label(member)}", make.subset(build, plan), {"teacher": teacher})
        smaller = _pruned(build, family, plan, whole=True)
        models.append(Model("naive_pruning", f"naive_pruning {family.label(member)}", smaller, task))
    return models


def _standard_distillation(build: Builder, family: Family, teacher: str, tokens: str) -> list[Model]:
    """A student of each intermediate size, started from the layers of naive pruning at that size."""
    section = build.file.spec.distill
    models: list[Model] = []
    for member in _below_the_teacher(family):
        if member.is_student or section is None:
            continue
        record = make.distill(build, section, tuple(teacher_indices(member.plan, family.kept)))
        label = f"standard_distillation {family.label(member)}"
        task = build.add(f"distill {label}", record, {"teacher": teacher, "tokens": tokens})
        smaller = _pruned(build, family, untrained(member.plan, family.kept))
        models.append(Model("standard_distillation", label, smaller, task))
    return models


def _shortgpt(build: Builder, family: Family, teacher: str, tokens: str, section: ShortGPT) -> list[Model]:
    """The teacher's layers of highest block influence, as many as each member has."""
    choice = KeepChoice(block_influence=len(family.kept), calibration=section.calibration)
    inputs = {"teacher": teacher, "tokens": tokens}
    found = build.answer(build.add("score layers for shortgpt", make.layer_search(build, choice), inputs))
    if found is None:
        return []
    # Most influential first; of equal ones the lower layer is kept.
    ranked = sorted(range(family.facts.count), key=lambda i: (-found["scores"][i], i))
    models = []
    for member in _below_the_teacher(family):
        plan = teacher_layers(sorted(ranked[: member.layers]))
        task = build.add(f"shortgpt to {family.label(member)}", make.subset(build, plan), {"teacher": teacher})
        smaller = _pruned(build, family, plan, whole=True)
        models.append(Model("shortgpt", f"shortgpt {family.label(member)}", smaller, task))
    return models


def _laco(build: Builder, family: Family, teacher: str, tokens: str, section: LaCoSpec) -> list[Model]:
    try:
        check_one_kind(family.facts)
    except BoomspecError as error:
        place = ("baselines", next(i for i, item in enumerate(build.file.spec.baselines) if item.laco is not None))
        raise build.file.error(build.file.problem(place, error.message, error.hint)) from error
    models = []
    for member in _below_the_teacher(family):
        record = LaCo(
            layers=member.layers,
            merge=section.merge,
            lowest=0,
            highest=family.facts.count,
            interval=section.interval,
            threshold=section.threshold,
            calibration=make.calibration(build, section.calibration),
            precision=make.search_precision(build.file),
            determinism=determinism(build.file.spec.determinism),
        )
        name = f"laco to {family.label(member)}"
        task = build.add(name, Baseline(build=record), {"teacher": teacher, "tokens": tokens})
        # Collapsed layers have the shape of the layer that they are collapsed into.
        plan = untrained(member.plan, family.kept)
        models.append(Model("laco", f"laco {family.label(member)}", _pruned(build, family, plan), task))
    return models


def _pruned(build: Builder, family: Family, plan: Plan, *, whole: bool = False) -> Member:
    """A smaller teacher; `whole`: with the teacher's other parts, where the spec keeps them."""
    rest = whole and build.file.spec.teacher.keeps_rest
    try:
        return build.file.once(("pruned", id(family.facts), plan, rest), lambda: pruned(family.facts, plan, rest=rest))
    except BoomspecError as error:
        message = f"the teacher pruned to {len(plan)} layers: {error.message}"
        raise build.file.error(build.file.problem(("baselines",), message, error.hint)) from error


def _below_the_teacher(family: Family) -> list[Member]:
    return [member for member in family.members if not member.is_teacher]
