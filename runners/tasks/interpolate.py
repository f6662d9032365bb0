"""Build one size: the model of a layer plan, without training."""

from __future__ import annotations

from boomspec.core.tasks import Interpolate
from runners.assembly.assemble import assemble
from runners.modeling.models import model_folder
from runners.runtime.context import Context


def run(context: Context[Interpolate]) -> None:
    sources = {"t": model_folder(context.inputs["teacher"]), "s": model_folder(context.inputs["student"])}
    record, target = context.record, context.path / "model"
    assemble(sources, record.plan, target, tied=record.tied, code=context.code, rest=bool(record.rest))
