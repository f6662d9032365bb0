"""Load what is measured together: one model from its own folder, or teacher and student for many layer plans.

The layers of a plan are the teacher's and its student's own, in memory once. A student is loaded as interpolation
writes it: in the teacher's family and dtypes (`runners.assembly.assemble`), so that a plan in memory and its folder
hold the same weights.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from boomspec.core.layers import STUDENT, TEACHER, Layer, LayerPlan, Owner, student_layers
from boomspec.core.tasks import Evaluate
from boomspec.models.facts import read_facts
from runners.assembly.assemble import assemble
from runners.evaluation.members import WHOLE, LayerPlans, Members, WholeModel
from runners.modeling.models import load_frozen, model_folder
from runners.runtime.context import Context
from runners.runtime.device import frozen_dtype


@dataclass(frozen=True)
class Loaded:
    """`plans`: of each context, its member's. `folder`: of the tokenizer. `code`: what may run of its own code.

    `kept`: of each member the folder where its scores survive when the task is killed.
    """

    members: Members
    plans: tuple[LayerPlan, ...]
    kept: Mapping[LayerPlan, Path]
    folder: Path
    code: tuple[str, ...]


def load(contexts: Sequence[Context[Evaluate]]) -> Loaded:
    """Load the models of contexts that agree in all but their plans."""
    first = contexts[0]
    dtype = frozen_dtype(first.record.precision)
    planned = [context.layers for context in contexts if context.layers is not None]
    if not planned:
        folder, code = model_folder(first.inputs["model"]), first.code_of("model")
        model = WholeModel(load_frozen(folder, dtype=dtype, code=code))
        return Loaded(model, (WHOLE,), {WHOLE: first.resume}, folder, code)
    folder, code = model_folder(first.inputs["teacher"]), first.code_of("teacher")
    models: dict[Owner, Any] = {TEACHER: load_frozen(folder, dtype=dtype, code=code)}
    owners = dict[str, Owner]()
    for number, role in enumerate(dict.fromkeys(one.student for one in planned if one.student)):
        # The layers of each student have an owner of their own.
        owners[role] = owner = cast(Owner, f"{STUDENT}{number or ''}")
        sources: dict[Owner, Path] = {TEACHER: folder, STUDENT: model_folder(first.inputs[role])}
        facts = [read_facts(source) for source in sources.values()]
        with tempfile.TemporaryDirectory(prefix="boomspec-student-") as written:
            tied, own = all(model.tied for model in facts), student_layers(facts[1].count)
            assemble(sources, own, Path(written, "model"), tied=tied, code=first.code)
            models[owner] = load_frozen(Path(written, "model"), dtype=dtype, code=first.code)
    plans = tuple(
        tuple(Layer(owners[one.student], layer.index) if layer.owner == STUDENT else layer for layer in one.plan)
        for one in planned
    )
    kept = dict(zip(plans, (context.resume for context in contexts), strict=True))
    return Loaded(LayerPlans(models, kept), plans, kept, folder, code)
