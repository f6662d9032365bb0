"""Try on tiny random weights whether every size of a family comes out right, before anything is trained.

Writes `check.json`: the layer plans that are right, and what could not be checked.
"""

import json

from boomspec.core.layers import layers_text
from boomspec.core.tasks import Check
from runners.checking.family import check_family
from runners.modeling.models import model_folder
from runners.runtime.context import Context


def run(context: Context[Check]) -> None:
    own = {role: model_folder(source) for role, source in context.inputs.items()}
    notes = check_family(context.record, own=own, code=context.code)
    for note in notes:
        context.progress.note(note)
    found = {"right": [layers_text(size.plan) for size in context.record.sizes], "not_checked": notes}
    (context.path / "check.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
