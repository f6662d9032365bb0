"""Baselines that need no training: some of the teacher's layers as they are, or collapsed into fewer (LaCo).

Writes `model/`; LaCo also `laco.json`, every merge that was tried.
"""

from boomspec.core.layers import TEACHER
from boomspec.core.tasks import Baseline, LaCo, Subset
from boomspec.models.facts import read_facts
from runners.assembly.assemble import assemble
from runners.modeling.models import MODEL, model_folder
from runners.runtime.context import Context
from runners.search import laco


def run(context: Context[Baseline]) -> None:
    teacher, target = model_folder(context.inputs["teacher"]), context.path / MODEL
    match context.record.build:
        case Subset(plan=plan, rest=rest):
            tied = read_facts(teacher).tied
            assemble({TEACHER: teacher}, plan, target, tied=tied, code=context.code, rest=bool(rest))
        case LaCo() as record:
            laco.build_laco(record, context, teacher, target)
