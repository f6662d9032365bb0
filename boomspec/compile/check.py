"""What can be known of a spec without reading data or asking the hub.

experiments --check_experiments--> families, or SpecError with every problem of all of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from boomspec.compile.model_sources import local_facts
from boomspec.compile.resolve import (
    Family,
    check_causal,
    check_context,
    check_rest,
    kept_layers,
    patched_sets,
    resolve_family,
)
from boomspec.compile.resolved import complete
from boomspec.compile.sources import check_paths
from boomspec.compile.trainings import training_problems
from boomspec.core.layers import patchable, prefixes
from boomspec.core.memo import Once
from boomspec.models.facts import ModelFacts
from boomspec.spec.problems import for_each
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.spec_file import SpecFile


def check_spec(file: SpecFile) -> Family | None:
    """Check all that can be known without reading data or asking the hub.

    Returns the family, or None where the teacher's layers, a search's finding or a published student's
    mapping are not known yet. Raises SpecError.
    """
    return check_experiments([file])[0]


def check_experiments(files: Sequence[SpecFile]) -> list[Family | None]:
    """Check every experiment of a spec: the families, in their order. Raises SpecError with all problems."""
    files = together(files)
    return for_each(files, check, lambda document: check(files[0].on(document)))


def together(files: Sequence[SpecFile]) -> list[SpecFile]:
    """The files as they are compiled together: what one has read the others do not read again."""
    once = Once()
    return [replace(file, once=once) for file in files]


def check(file: SpecFile) -> Family | None:
    """Check one experiment of those that are compiled together."""
    file = replace(file, spec=complete(file.spec))
    if problems := [*check_paths(file), *training_problems(file)]:
        raise file.error(*problems)
    facts = local_facts(file)
    return None if facts is None else check_against(file, facts)


def check_against(file: SpecFile, facts: ModelFacts) -> Family | None:
    """Check a spec against its teacher. What a search will find is stood in for by the plainest choice."""
    check_causal(file, facts)
    check_rest(file, facts)
    sections = ("student", "data", "interpolate")
    return file.known(("check", id(facts)), sections, lambda: (facts, _check_layers(file, facts)))[1]


def _check_layers(file: SpecFile, facts: ModelFacts) -> Family | None:
    check_context(file, facts)
    if file.spec.student.keep is None:
        return None
    kept = kept_layers(file, facts)
    sets = patched_sets(file, kept, facts.count)
    family = resolve_family(file, facts, kept, sets or prefixes(tuple(reversed(patchable(kept, facts.count)))))
    settled = sets is not None and not isinstance(file.spec.student.keep, KeepChoice)
    return family if settled and file.spec.student.model is None else None
