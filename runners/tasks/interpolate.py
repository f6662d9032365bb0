"""Build one size: the model of a layer plan, without training."""

from pathlib import Path

from boomspec.core.layers import STUDENT, TEACHER, Owner
from boomspec.core.tasks import Interpolate
from boomspec.core.tasks.seam import SEAM_FILE
from runners.assembly.assemble import assemble
from runners.modeling.models import model_folder
from runners.runtime.context import Context


def run(context: Context[Interpolate]) -> None:
    sources: dict[Owner, Path] = {
        TEACHER: model_folder(context.inputs["teacher"]),
        STUDENT: model_folder(context.inputs["student"]),
    }
    record, target = context.record, context.path / "model"
    fitted = context.inputs["seam"].folder / SEAM_FILE if "seam" in context.inputs else None
    rest = bool(record.rest)
    assemble(sources, record.plan, target, tied=record.tied, code=context.code, rest=rest, fitted=fitted)
