"""Add the baseline that patches another student's layers into the student, where the family has the teacher's blocks.

Both students learn to give the same states of one teacher at the ends of the same blocks. If a layer can be patched
because of what it has learnt, the other student's fits as well as its own; if only because it is next to the layers
that it was trained with, it does not. Every model has the student's size: what differs is how many of its blocks are
the other's, in the order in which the family's are patched. The last one is the other student.
"""

from dataclasses import replace

from boomspec.compile.builder import Builder
from boomspec.compile.family import EvaluatedModel, ResolvedFamily
from boomspec.compile.schemes import add_generations
from boomspec.core.layers import STUDENT, TEACHER, Layer, LayerPlan, ends_of, teacher_layers
from boomspec.core.sizes import Member
from boomspec.core.tasks import Interpolate
from boomspec.models.facts import size_of
from boomspec.models.fit import plan_entries
from boomspec.spec.sections.baselines import CrossPatching


def cross_patching(build: Builder, family: ResolvedFamily, section: CrossPatching) -> list[EvaluatedModel]:
    spec, facts, kept = build.resolved.spec, family.facts, family.kept
    # Trained alike, with another seed: all tasks and sources are those of one experiment.
    other = replace(build, resolved=replace(build.resolved, spec=spec.model_copy(update={"seed": section.seed})))
    trained = add_generations(other, kept, "cross_patching", initial=section.initial, tokens=section.tokens)
    models: list[EvaluatedModel] = []
    for member in (member for member in family.members if not (member.is_student or member.is_teacher)):
        owned = {layer.index for layer in member.plan if layer.owner == TEACHER}
        plan: LayerPlan = tuple(Layer(TEACHER if first in owned else STUDENT, i) for i, first in enumerate(kept))
        first, last = ends_of(plan)
        tied = facts.tied and (first == last or not spec.student.train_embedding)
        shape = Member(0, plan, *size_of(plan_entries(facts, facts, teacher_layers(kept), tied=tied)), tied)
        size = family.label(member)
        inputs = {"teacher": trained, "student": build.student}
        task = build.add(f"patch another student as {size}", Interpolate(plan=plan, tied=tied), inputs)
        models.append(EvaluatedModel("cross_patching", f"cross_patching {size}", shape, task))
    return [*models, EvaluatedModel("cross_patching", "cross_patching student", family.student, trained)]
