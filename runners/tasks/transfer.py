"""Make the student of a variant by weight-delta transfer.

Writes `model/`, with its student_config.json, and `transfer.json`: how far what was added agrees with what made the
variant of the base, by groups of tensors.
"""

import json

from boomspec.core.tasks import Transfer
from boomspec.core.tasks.transfer import DELTAS
from boomspec.models.facts import read_facts
from boomspec.models.folder import STUDENT_CONFIG
from runners.assembly.transfer import transfer
from runners.modeling.models import MODEL, model_folder
from runners.runtime.context import Context


def run(context: Context[Transfer]) -> None:
    variant, base, distilled = (model_folder(context.inputs[role]) for role in ("teacher", "base", "distilled"))
    kept, target, progress = context.record.kept, context.path / MODEL, context.progress
    found = transfer(
        variant, base, distilled, target, kept=kept, report=lambda done, of: progress.update(done, of, unit="weights")
    )
    pruned = sorted(set(range(read_facts(variant).count)) - set(kept))
    mapping = {"copied_teacher_layers": kept, "pruned_teacher_layers": pruned}
    for path, content in ((target / STUDENT_CONFIG, mapping), (context.path / DELTAS, found.to_json())):
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
