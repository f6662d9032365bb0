"""Baselines that need no training. Naive pruning: the same layer plans, made of the teacher's layers alone."""

from __future__ import annotations

from boomspec.errors import BoomspecError
from boomspec.facts import read_facts
from boomspec.tasks import Baseline, LaCo, Subset
from runners.assembly import assemble
from runners.context import Context
from runners.models import model_folder


def run(context: Context[Baseline]) -> None:
    teacher = model_folder(context.inputs["teacher"])
    match context.record.build:
        case Subset(plan=plan):
            assemble({"t": teacher}, plan, context.path / "model", tied=read_facts(teacher).tied)
        case LaCo():
            raise BoomspecError("LaCo")
