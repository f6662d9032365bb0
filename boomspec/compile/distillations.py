"""Add a distillation to an experiment's task graph, with what it reads: other teachers, stored outputs."""

from collections.abc import Mapping

from boomspec.compile import records
from boomspec.compile.builder import Builder
from boomspec.core.tasks import Distill

_STUDENT = "distill student"  # the name of the task that makes the family's student


def add_distillation(build: Builder, name: str, record: Distill, inputs: Mapping[str, str]) -> str:
    """Add a training of a student; its id. `inputs`: its teacher, the tokens, and what it begins as."""
    read = {**inputs, **build.other_teachers}
    if record.teacher_outputs is not None:
        what = "teacher outputs" if name == _STUDENT else f"teacher outputs for {name.removeprefix('distill ')}"
        of_teacher = {role: inputs[role] for role in ("teacher", "tokens")}
        read["outputs"] = build.add(what, records.teacher_outputs(record), of_teacher)
    return build.add(name, record, read)
