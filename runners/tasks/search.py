"""A choice that needs data: a patch order or the layers to keep. Writes `search.json`, which the compiler reads."""

from functools import partial

from transformers import PreTrainedModel

from boomspec.core.json_text import computed_json
from boomspec.core.tasks import LayerChoice, PatchOrder, RunDistances, Search
from runners.modeling.models import load_frozen, model_folder
from runners.runtime.context import Context
from runners.runtime.device import deterministic_mode, frozen_dtype
from runners.search.calibration import calibration_batches
from runners.search.layer_choice import search_layer_choice
from runners.search.patch_order import search_patch_order
from runners.search.run_distances import search_run_distances

RESULT = "search.json"


def run(context: Context[Search]) -> None:
    record, tokens = context.record, context.inputs["tokens"].folder

    def load(role: str) -> PreTrainedModel:
        folder = model_folder(context.inputs[role])
        return load_frozen(folder, dtype=frozen_dtype(record.precision), code=context.code_of(role))

    report = partial(context.progress.update, unit="candidates")
    with deterministic_mode(record.determinism, context.progress.note):
        teacher = load("teacher")
        batches = calibration_batches(record.calibration, tokens, batch_size=context.batch_size, model=teacher)
        match record.choice:
            case PatchOrder() as choice:
                pair = {"teacher": teacher, "student": load("student")}
                found = search_patch_order(choice, **pair, batches=batches, report=report)
            case RunDistances() as choice:
                found = search_run_distances(choice, teacher=teacher, batches=batches, report=report)
            case LayerChoice() as choice:
                found = search_layer_choice(choice, teacher=teacher, batches=batches, report=report)
    (context.path / RESULT).write_text(computed_json(found, "the search"), encoding="utf-8")
