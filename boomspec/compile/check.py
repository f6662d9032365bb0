"""Check all of a spec that can be known without reading data or asking the hub.

experiments --check_experiments--> families, or SpecError with every problem of all of them
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from boomspec.compile.assistants import assistants
from boomspec.compile.chat import chat_problems
from boomspec.compile.during import sizes_during
from boomspec.compile.family import (
    ResolvedFamily,
    check_teacher,
    kept_layers,
    patched_sets,
    resolve_family,
    trained_plans,
)
from boomspec.compile.loss_checks import check_losses, check_outputs
from boomspec.compile.model_sources import (
    code_problems,
    folder_problems,
    local_facts,
    model_folder,
    place_of,
    roles,
    section_of,
)
from boomspec.compile.places import is_folder, path_text, resolve_path, variable_problems
from boomspec.compile.prompts import with_prompts
from boomspec.compile.resolved import complete
from boomspec.compile.text_sources import text_problems
from boomspec.compile.texts import blend_problems
from boomspec.compile.trainings import training_problems
from boomspec.compile.transfer_sources import other_spec
from boomspec.core.errors import Problem
from boomspec.core.layers import patchable, prefixes
from boomspec.models.facts import ModelFacts
from boomspec.spec.problems import for_each
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.spec_file import Memo, SpecFile, memoized_for

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def check_experiments(files: Sequence[SpecFile]) -> list[ResolvedFamily | None]:
    """The family of every experiment of a spec. Raises SpecError with the problems of all.

    None where the teacher's layers, a search's finding or a published student's mapping are not known yet.
    """
    return for_each(together(files), check)


def together(files: Sequence[SpecFile]) -> list[SpecFile]:
    """The files with one memo: what has been read for one is not read again for the others."""
    once = Memo()
    return [replace(file, once=once) for file in files]


def check(file: SpecFile) -> ResolvedFamily | None:
    """Check one experiment of those that are compiled together."""
    return check_complete(replace(file, spec=complete(file.spec)))


def check_complete(file: SpecFile) -> ResolvedFamily | None:
    """The same of one whose defaults are filled in."""
    if problems := [*_path_problems(file), *training_problems(file)]:
        raise file.error(*problems)
    with_prompts(file)
    facts = local_facts(file)
    return None if facts is None else check_against(file, facts)


@memoized_for("teacher", "student", "data", "distill", "interpolate", "evaluate")
def check_against(file: SpecFile, facts: ModelFacts) -> ResolvedFamily | None:
    """Check a spec against its teacher, with the plainest choice in the place of what a search will find."""
    check_teacher(file, facts)
    if file.spec.student.keep is None:
        return None
    kept = kept_layers(file, facts)
    check_losses(file, facts, kept)
    if file.spec.distill is not None and file.spec.distill.patch_aware is not None:
        trained_plans(file, kept, facts.count)
    check_outputs(file, facts)
    if file.spec.distill is not None:
        sizes_during(file, facts, kept)
    sets = patched_sets(file, kept, facts.count)
    family = resolve_family(file, facts, kept, sets or tuple(prefixes(patchable(kept, facts.count)[::-1])))
    if not isinstance(file.spec.student.keep, KeepChoice):
        assistants(file, facts, kept, None if sets is None else family)
    settled = sets is not None and not isinstance(file.spec.student.keep, KeepChoice)
    return family if settled and not file.spec.student.is_made else None


@memoized_for("teacher", "student", "data", "distill", "evaluate", "execution")
def _path_problems(file: SpecFile) -> list[Problem]:
    if problems := list(variable_problems(file)):
        return problems
    spec = file.spec
    held_out = spec.data is None or any(text.held_out for text in spec.data.texts.values())
    for name in ("held_out", "every") if spec.evaluate is not None and not held_out else ():
        if getattr(spec.evaluate, name) is not None:
            hint = "set documents apart: data: {held_out: {every: 20}}"
            problems.append(file.problem(("evaluate", name), "there is no held-out text to measure", hint))
    other_spec(file)
    for role in roles(file):
        section, folder, place = section_of(file, role), model_folder(file, role), place_of(role)
        if folder is not None:
            if section.revision is not None:
                problems.append(file.problem((*place, "revision"), "a folder has no revisions", "remove it"))
            problems += folder_problems(file, role, folder) or code_problems(file, role, folder)
        elif section.model and not _HUB_ID.fullmatch(name := path_text(file, (*place, "model"), section.model)):
            problems.append(file.problem((*place, "model"), f"'{name}' is neither a folder nor a hub id (owner/name)"))
    if spec.data is not None:
        problems += [*blend_problems(file), *text_problems(file), *chat_problems(file)]
    if spec.evaluate is not None and spec.evaluate.tasks_folder is not None:
        place = ("evaluate", "tasks_folder")
        if not is_folder(tasks := resolve_path(file, place, spec.evaluate.tasks_folder)):
            problems.append(file.problem(place, f"'{tasks}' is not a folder"))
    return problems
