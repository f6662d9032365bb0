"""Add the baselines that drop one run of following layers: as it is, distilled, or mended where it is missing.

    run_distances (search) --the run of each length that changes the state least--> Subset --distill, or fit a seam-->

The run never has layer 0, which reads the embedding.
"""

from boomspec.compile import records
from boomspec.compile.builder import Builder
from boomspec.compile.family import EvaluatedModel, ResolvedFamily, pruned
from boomspec.compile.phases import add_distillation
from boomspec.compile.places import errors_at
from boomspec.compile.schemes import text_of
from boomspec.core.layers import STUDENT, TEACHER, Layer, LayerPlan, teacher_layers
from boomspec.core.losses import KL, Losses
from boomspec.core.sizes import Member
from boomspec.core.tasks import Baseline, Interpolate, Subset
from boomspec.models.writes import writes_of
from boomspec.spec.sections.baselines import ContiguousDrop, DroppedRun, LinearPatch
from boomspec.spec.sections.interpolate import SeamSpec


def contiguous_drop(build: Builder, family: ResolvedFamily, section: ContiguousDrop) -> list[EvaluatedModel]:
    """Without a run of layers; and each of these distilled on the teacher's logits alone (arXiv 2407.14679)."""
    models: list[EvaluatedModel] = []
    for member, start in _runs(build, family, section):
        size, plan = family.label(member), _without(family, member, start)
        dropped = _dropped(build, family, plan, size)
        shape = _shape(build, family, plan)
        models.append(EvaluatedModel("contiguous_drop", f"contiguous_drop {size}", shape, dropped))
        if section.distilled:
            kept = tuple(layer.index for layer in plan)
            record = records.distill(build.resolved, kept, losses=Losses(kl=KL(weight=1.0)), tokens=section.tokens)
            inputs = {"teacher": build.teacher, **text_of(build)}
            task = add_distillation(build, f"distill contiguous_drop {size}", record, inputs, in_phases=False)
            models.append(EvaluatedModel("contiguous_distilled", f"contiguous_distilled {size}", shape, task))
    return models


def linear_patch(build: Builder, family: ResolvedFamily, section: LinearPatch) -> list[EvaluatedModel]:
    """Without a run of layers, and with the last weight in front of the gap fitted to what stood there.

    The gap is a seam: the model without the run is a "student" whose layer in front of it stands for the run, too.
    """
    models: list[EvaluatedModel] = []
    with errors_at(build.file, ("baselines",)):
        writes = writes_of(family.facts)
    fit = SeamSpec(fit=section.fit, reach=1, ridge=section.ridge, calibration=section.calibration)
    for member, start in _runs(build, family, section, last=False):
        size, plan = family.label(member), _without(family, member, start)
        student = _dropped(build, family, plan, size, run="an inner run")
        mixed: LayerPlan = tuple(
            Layer(STUDENT, place) if place < start else Layer(TEACHER, layer.index) for place, layer in enumerate(plan)
        )
        kept = tuple(layer.index for layer in plan)
        inputs = {"teacher": build.teacher, "student": student}
        seam = records.seam(build.resolved, fit, mixed, kept=kept, writes=writes)
        fitted = build.add(f"fit seams: linear_patch {size}", seam, {**inputs, "tokens": build.tokens})
        record = Interpolate(plan=mixed, tied=family.facts.tied, rest=family.rest or None)
        task = build.add(f"patch to {size} linear_patch", record, {**inputs, "seam": fitted})
        models.append(EvaluatedModel("linear_patch", f"linear_patch {size}", _shape(build, family, plan), task))
    return models


def _runs(
    build: Builder, family: ResolvedFamily, section: DroppedRun, *, last: bool = True
) -> list[tuple[Member, int]]:
    """The members below the teacher, each with the first layer of the run that is dropped; none before the search.

    `last`: whether the run may have the last layer. Of equal runs the lower one is taken.
    """
    layers = family.facts.count
    inputs = {"teacher": build.teacher, "tokens": build.tokens}
    found = build.answer(build.add("measure runs of layers", records.run_distances(build.resolved, section), inputs))
    if found is None:
        return []
    runs = []
    for member in (member for member in family.members if not member.is_teacher):
        length = layers - member.layers
        values = found[section.by][length - 1]
        starts = [(values[start], start) for start in range(1, layers - length + (1 if last else 0))]
        if starts:
            runs.append((member, min(starts)[1]))
    return runs


def _without(family: ResolvedFamily, member: Member, start: int) -> LayerPlan:
    length = family.facts.count - member.layers
    return teacher_layers(i for i in range(family.facts.count) if not start <= i < start + length)


def _dropped(build: Builder, family: ResolvedFamily, plan: LayerPlan, size: str, run: str = "a run") -> str:
    record = Baseline(build=Subset(plan=plan, rest=family.rest or None))
    return build.add(f"drop {run} to {size}", record, {"teacher": build.teacher})


def _shape(build: Builder, family: ResolvedFamily, plan: LayerPlan) -> Member:
    with errors_at(build.file, ("baselines",), f"the teacher pruned to {len(plan)} layers: "):
        return pruned(family.facts, plan, rest=family.rest)
