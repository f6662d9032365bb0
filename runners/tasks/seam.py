"""Fit weights of one size where layers of teacher and student meet (`runners.assembly.seam`).

Writes seam.safetensors, the weights that are changed in fp32 by their names in the layer stack, and seam.json, what was
done at each place of the plan.
"""

from functools import partial

from safetensors.torch import save_file

from boomspec.core.json_text import computed_json
from boomspec.core.layers import STUDENT, TEACHER, Owner
from boomspec.core.tasks import Seam
from boomspec.core.tasks.seam import SEAM_FILE
from runners.assembly.seam import mend
from runners.modeling.models import load_frozen, model_folder
from runners.runtime.context import Context
from runners.runtime.device import deterministic_mode, frozen_dtype
from runners.search.calibration import calibration_batches

_NUMBERS = "seam.json"


def run(context: Context[Seam]) -> None:
    record, dtype = context.record, frozen_dtype(context.record.precision)
    report = partial(context.progress.update, unit="layers")
    with deterministic_mode(record.determinism, context.progress.note):
        roles: dict[Owner, str] = {TEACHER: "teacher", STUDENT: "student"}
        models = {
            owner: load_frozen(model_folder(context.inputs[role]), dtype=dtype, code=context.code_of(role))
            for owner, role in roles.items()
        }
        tokens = context.inputs["tokens"].folder
        batches = calibration_batches(record.calibration, tokens, batch_size=context.batch_size, model=models[TEACHER])
        mended = mend(record, models, batches, report)
    save_file({name: tensor.contiguous().cpu() for name, tensor in mended.tensors.items()}, context.path / SEAM_FILE)
    (context.path / _NUMBERS).write_text(computed_json({"places": mended.rows}, "the fit"), encoding="utf-8")
