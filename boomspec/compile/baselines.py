"""Add the interpolated models and the baseline models to an experiment's task graph."""

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType

from boomspec.compile import records
from boomspec.compile.blockwise import add_blockwise
from boomspec.compile.builder import Builder
from boomspec.compile.cross_patching import cross_patching
from boomspec.compile.dropping import contiguous_drop, linear_patch
from boomspec.compile.family import EvaluatedModel, ResolvedFamily, pruned
from boomspec.compile.interpolation import add_size
from boomspec.compile.loss_checks import check_balance
from boomspec.compile.phases import add_distillation
from boomspec.compile.places import errors_at
from boomspec.compile.schemes import add_generations, text_of
from boomspec.core.layers import LayerPlan, teacher_indices, teacher_layers
from boomspec.core.sizes import Member
from boomspec.core.tasks import Baseline, Distill, Record, Series, Subset
from boomspec.models.plan_config import check_one_kind
from boomspec.spec.sections.student import KeepChoice


def add_interpolated(build: Builder, family: ResolvedFamily, student: str, series: Series) -> list[EvaluatedModel]:
    """The members between student and teacher, which exist already."""
    models = []
    for member in (m for m in family.members if not (m.is_student or m.is_teacher)):
        size = family.label(member)
        name = f"interpolate {size}" + ("" if series == "interpolated" else f" {series}")
        models.append(
            EvaluatedModel(series, f"{series} {size}", member, add_size(build, family, member, student, name))
        )
    return models


def baselines(build: Builder, family: ResolvedFamily) -> list[EvaluatedModel]:
    """Add the baselines of the spec, and those trainings of them that have curves."""
    spec, resolved, facts, kept = build.resolved.spec, build.resolved, family.facts, family.kept
    smaller = [member for member in family.members if not member.is_teacher]
    plans = family.once("pruned", lambda: [teacher_layers(teacher_indices(member.plan, kept)) for member in smaller])
    trained = {"teacher": build.teacher, "tokens": build.tokens}
    models: list[EvaluatedModel] = []

    def subset(plan: LayerPlan, rest: bool) -> Record:
        return build.file.once(("subset", plan, rest), lambda: Baseline(build=Subset(plan=plan, rest=rest or None)))

    def shape_of(plan: LayerPlan, rest: bool = False) -> Member:
        with errors_at(build.file, ("baselines",), f"the teacher pruned to {len(plan)} layers: "):
            return build.file.once(("pruned", plan, rest), partial(pruned, facts, plan, rest=rest), facts)

    def add(
        series: Series,
        name: str,
        found: Iterable[tuple[Member, LayerPlan, Record | None]],
        text: Mapping[str, str] = MappingProxyType({"tokens": build.tokens}),
    ) -> None:
        """Add a model for each size: a plan of its shape, and its record; None: these layers of the teacher alone."""
        for member, plan, record in found:
            rest, size = family.rest and record is None, family.label(member)
            called, inputs = f"{name} {size}", {"teacher": build.teacher, **({} if record is None else text)}
            if isinstance(record, Distill):
                task = add_distillation(build, called, record, inputs)
            else:
                task = build.add(called, record or subset(plan, rest), inputs)
            models.append(EvaluatedModel(series, f"{series} {size}", shape_of(plan, rest), task))

    if spec.baseline("naive_pruning") is not None:
        add("naive_pruning", "prune to", ((m, plan, None) for m, plan in zip(smaller, plans, strict=True)))
    if spec.data is None:
        return models
    if (section := spec.baseline("random_init")) is not None:
        student = add_generations(build, kept, "random_init", initial="random", tokens=section.tokens)
        models.append(EvaluatedModel("random_init", "random_init student", family.student, student))
        models += add_interpolated(build, family, student, "random_init")
    if spec.baseline("standard_distillation") is not None:
        # Each starts from the layers of naive pruning at its size.
        starts = [(m, plan, tuple(teacher_indices(m.plan, kept))) for m, plan in zip(smaller, plans, strict=True)]
        for member, plan, start in (found for found in starts if not found[0].is_student):
            name = f"standard_distillation {family.label(member)}"
            check_balance(build.file, facts, start)
            if spec.distill is not None and spec.distill.blockwise is not None:
                task = add_blockwise(build, start, name, layers=facts.count)
            else:
                inputs = {"teacher": build.teacher, **text_of(build)}
                task = add_distillation(build, f"distill {name}", records.distill(resolved, start), inputs)
            models.append(EvaluatedModel("standard_distillation", name, shape_of(plan), task))
    if (section := spec.baseline("shortgpt")) is not None:
        choice = KeepChoice(block_influence=len(kept), calibration=section.calibration)
        scored = build.answer(build.add("score layers for shortgpt", records.search(resolved, choice), trained))
        if scored is not None:
            # Most influential first; of equal ones the lower layer is kept.
            ranked = sorted(range(facts.count), key=lambda i: (-scored["scores"][i], i))
            add("shortgpt", "shortgpt to", ((m, teacher_layers(sorted(ranked[: m.layers])), None) for m in smaller))
    if (section := spec.baseline("laco")) is not None:
        with errors_at(build.file, ("baselines", [item.laco is not None for item in spec.baselines].index(True))):
            check_one_kind(facts)
        # Collapsed layers have the shape of the layer that they are collapsed into.
        collapsed = [records.laco(resolved, section, layers=m.layers, of=facts.count) for m in smaller]
        add("laco", "laco to", zip(smaller, plans, collapsed, strict=True))
    if (section := spec.baseline("contiguous_drop")) is not None:
        models += contiguous_drop(build, family, section)
    if (section := spec.baseline("linear_patch")) is not None:
        models += linear_patch(build, family, section)
    if (section := spec.baseline("cross_patching")) is not None:
        models += cross_patching(build, family, section)
    return models
