"""Add the interpolated models and the baseline models to an experiment's task graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from boomspec.compile import records
from boomspec.compile.builder import Builder
from boomspec.compile.family import ResolvedFamily, pruned
from boomspec.compile.places import errors_at
from boomspec.core.layers import LayerPlan, teacher_indices, teacher_layers, untrained
from boomspec.core.sizes import Member
from boomspec.core.tasks import Baseline, Record, Series, Subset
from boomspec.models.plan_config import check_one_kind
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.spec_file import ById


@dataclass(frozen=True)
class EvaluatedModel:
    """One model to be measured: its series, its label and size in the report, and the task or source that has it."""

    series: Series
    label: str
    member: Member
    task: str


def add_interpolated_models(
    build: Builder, family: ResolvedFamily, teacher: str, student: str, series: Series
) -> list[EvaluatedModel]:
    """The members between student and teacher, which exist already."""
    models = []
    for member in family.members:
        if member.is_student or member.is_teacher:
            continue
        size = family.label(member)
        record = records.interpolation(member.plan, tied=member.tied, rest=family.rest or None)
        name = f"interpolate {size}" + ("" if series == "interpolated" else f" {series}")
        task = build.add(name, record, {"teacher": teacher, "student": student})
        models.append(EvaluatedModel(series, f"{series} {size}", member, task))
    return models


def baselines(
    build: Builder, family: ResolvedFamily, teacher: str, tokens: str | None
) -> tuple[list[EvaluatedModel], dict[str, str]]:
    """The baselines of the spec, and their trainings by label."""
    spec, resolved = build.resolved.spec, build.resolved
    kept, layers, rest = family.kept, family.facts.count, family.rest or None
    smaller = [member for member in family.members if not member.is_teacher]
    plans = [untrained(member.plan, kept) for member in smaller]
    models: list[EvaluatedModel] = []
    trainings: dict[str, str] = {}

    def add(series: Series, name: str, found: Iterable[tuple[Member, Record, LayerPlan]], *, reads_text: bool) -> None:
        """Add a model for each size: its record, and a plan of the same shape."""
        inputs = {"teacher": teacher, "tokens": tokens or ""} if reads_text else {"teacher": teacher}
        for member, record, plan in found:
            size = family.label(member)
            task = build.add(f"{name} {size}", record, inputs)
            models.append(EvaluatedModel(series, f"{series} {size}", _pruned(build, family, record, plan), task))

    if spec.baseline("naive_pruning") is not None:
        found = [(m, records.subset(plan, rest=rest), plan) for m, plan in zip(smaller, plans, strict=True)]
        add("naive_pruning", "prune to", found, reads_text=False)
    if tokens is None:
        return models, trainings
    if (section := spec.baseline("random_init")) is not None:
        control = records.distill(resolved, kept, initial="random", tokens=section.tokens)
        student = build.add("distill random_init", control, {"teacher": teacher, "tokens": tokens})
        trainings["random_init"] = student
        models.append(EvaluatedModel("random_init", "random_init student", family.student, student))
        models += add_interpolated_models(build, family, teacher, student, "random_init")
    if spec.baseline("standard_distillation") is not None:
        # Each starts from the layers of naive pruning at its size.
        add(
            "standard_distillation",
            "distill standard_distillation",
            [
                (m, records.distill(resolved, tuple(teacher_indices(m.plan, kept))), plan)
                for m, plan in zip(smaller, plans, strict=True)
                if not m.is_student
            ],
            reads_text=True,
        )
    if (section := spec.baseline("shortgpt")) is not None:
        choice = KeepChoice(block_influence=len(kept), calibration=section.calibration)
        search = records.layer_search(resolved, choice)
        scored = build.answer(build.add("score layers for shortgpt", search, {"teacher": teacher, "tokens": tokens}))
        if scored is not None:
            # Most influential first; of equal ones the lower layer is kept.
            ranked = sorted(range(layers), key=lambda i: (-scored["scores"][i], i))
            best = [teacher_layers(sorted(ranked[: member.layers])) for member in smaller]
            found = [(m, records.subset(plan, rest=rest), plan) for m, plan in zip(smaller, best, strict=True)]
            add("shortgpt", "shortgpt to", found, reads_text=False)
    if (section := spec.baseline("laco")) is not None:
        with errors_at(build.file, ("baselines", [item.laco is not None for item in spec.baselines].index(True))):
            check_one_kind(family.facts)
        # Collapsed layers have the shape of the layer that they are collapsed into.
        collapsed = [records.laco(resolved, section, layers=member.layers, of=layers) for member in smaller]
        add("laco", "laco to", zip(smaller, collapsed, plans, strict=True), reads_text=True)
    return models, trainings


def _pruned(build: Builder, family: ResolvedFamily, record: Record, plan: LayerPlan) -> Member:
    """The size of a smaller teacher; with the teacher's other parts, where its record keeps them."""
    rest = isinstance(record, Baseline) and isinstance(record.build, Subset) and bool(record.build.rest)
    with errors_at(build.file, ("baselines",), f"the teacher pruned to {len(plan)} layers: "):
        return build.file.once(
            ("pruned", ById(family.facts), plan, rest), lambda: pruned(family.facts, plan, rest=rest)
        )
