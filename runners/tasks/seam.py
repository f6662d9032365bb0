"""Fit weights of one size where layers of teacher and student meet (`runners.assembly.seam`).

Writes seam.safetensors, the weights that are changed in fp32 by their names in the layer stack, and seam.json, what was
done at each place of the plan.
"""

from functools import partial

import torch
from safetensors.torch import save_file
from torch import Tensor

from boomspec.core.json_text import computed_json
from boomspec.core.layers import STUDENT, TEACHER, Owner
from boomspec.core.tasks import Seam
from boomspec.core.tasks.seam import SEAM_FILE
from boomspec.models.facts import ModelFacts, read_facts
from boomspec.models.fit import place_of
from runners.assembly.seam import mend
from runners.modeling.models import load_frozen, model_folder
from runners.runtime.context import Context
from runners.runtime.device import deterministic_mode, frozen_dtype
from runners.search.calibration import calibration_batches

_NUMBERS = "seam.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def run(context: Context[Seam]) -> None:
    record, dtype = context.record, frozen_dtype(context.record.precision)
    report = partial(context.progress.update, unit="layers")
    with deterministic_mode(record.determinism, context.progress.note):
        roles: dict[Owner, str] = {TEACHER: "teacher", STUDENT: "student"}
        folders = {owner: model_folder(context.inputs[role]) for owner, role in roles.items()}
        models = {
            owner: load_frozen(folders[owner], dtype=dtype, code=context.code_of(role)) for owner, role in roles.items()
        }
        facts = {owner: read_facts(folder) for owner, folder in folders.items()}
        tokens = context.inputs["tokens"].folder
        batches = calibration_batches(record.calibration, tokens, batch_size=context.batch_size, model=models[TEACHER])
        mended = mend(
            record, models, batches, report, lambda layer, name: _stored(facts[layer.owner], layer.index, name)
        )
    save_file({name: tensor.contiguous().cpu() for name, tensor in mended.tensors.items()}, context.path / SEAM_FILE)
    (context.path / _NUMBERS).write_text(computed_json({"places": mended.rows}, "the fit"), encoding="utf-8")


def _stored(model: ModelFacts, index: int, name: str) -> Tensor:
    """A weight of a layer from the model's file, in all its bits."""
    entry = next(entry for entry in model.layers[index] if place_of(entry.name, model.prefix) == name)
    assert entry.file is not None
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        data = bytearray(file.read(entry.end - entry.start))
    return torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).view(entry.shape)
