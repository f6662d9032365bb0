"""Add one size between student and teacher to an experiment's task graph: it is built of the layers of both."""

from functools import partial

from boomspec.compile import records
from boomspec.compile.builder import Builder
from boomspec.compile.family import ResolvedFamily
from boomspec.compile.places import errors_at
from boomspec.core.sizes import Member
from boomspec.core.tasks import Interpolate
from boomspec.models.writes import writes_of


def add_size(build: Builder, family: ResolvedFamily, member: Member, student: str, name: str) -> str:
    """Add the task `name`, and the fit of the size's seams where the spec wants them mended."""
    section = build.resolved.spec.interpolate.seam
    settings = {"plan": member.plan, "tied": member.tied, "rest": family.rest or None}
    record = build.file.once(("interpolate", *settings.values()), partial(Interpolate, **settings))
    inputs = {"teacher": build.teacher, "student": student}
    if section is not None:
        with errors_at(build.file, ("interpolate", "seam")):
            known = {"kept": family.kept, "writes": family.once("writes", lambda: writes_of(family.facts))}
        seam = records.seam(build.resolved, section, member.plan, **known)
        inputs["seam"] = build.add(f"fit seams: {name}", seam, {**inputs, "tokens": build.tokens})
    return build.add(name, record, inputs)
