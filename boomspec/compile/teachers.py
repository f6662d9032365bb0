"""Teachers beside the family's own: of the same tokenizer, with as many logits and enough positions."""

from collections.abc import Callable
from pathlib import Path

from boomspec.compile import records
from boomspec.compile.builder import Builder
from boomspec.compile.model_sources import Role, model_sources, other_role, place_of, tokenizer_folder
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source
from boomspec.models.facts import ModelFacts, positions_of
from boomspec.models.tokenizer import vocabulary
from boomspec.spec.spec_file import SpecFile


def add_other_teachers(build: Builder, own: ModelFacts, existing: Callable[[Role, ModelFacts, Source], str]) -> None:
    """Add the teachers beside the own one, whose facts are `own`; `existing` adds a model that exists."""
    distill = build.resolved.spec.distill
    for number, other in enumerate(distill.teachers.others if distill is not None and distill.teachers else ()):
        role = other_role(number)
        if other.seed is not None:
            task = build.add(f"pretrain {role}", records.pretrain(build.resolved, seed=other.seed), _text(build))
            build.trainings[role] = task
        else:
            facts, source, _ = model_sources(build.file, role)
            if source.id in build.sources:
                raise build.file.error_at((*place_of(role), "model"), "this model is a teacher already", "name it once")
            check_other_teacher(build.file, role, own, facts)
            task = existing(role, facts, source)
        build.other_teachers[role] = task


def _text(build: Builder) -> dict[str, str]:
    return {"tokens": build.tokens}


def check_other_teacher(file: SpecFile, role: Role, own: ModelFacts, other: ModelFacts) -> None:
    """Raise SpecError where another model cannot teach beside the own teacher."""
    place = (*place_of(role), "model")
    if (rows := other.logits) != own.logits:
        message = f"it has {rows:,} logits, the teacher {own.logits:,}: their distributions cannot be compared"
        raise file.error_at(place, message, "give a model of the same vocabulary")
    longest, data = positions_of(other), file.spec.data
    if data is not None and longest is not None and data.sequence_length > longest:
        raise file.error_at(
            place, f"its {longest} positions are less than data.sequence_length ({data.sequence_length})"
        )
    try:
        difference = _difference(*(tokenizer_folder(file, one) for one in ("teacher", role)))
    except BoomspecError as error:
        raise file.error_at(place, error.message, error.hint) from error
    if difference is not None:
        raise file.error_at(place, difference, "all teachers of a student have one tokenizer")


def _difference(own: Path, other: Path) -> str | None:
    """Where the vocabularies of two tokenizers differ."""
    ours, theirs = vocabulary(own), vocabulary(other)
    if ours == theirs:
        return None
    names = ({i: token for token, i in one.items()} for one in (ours, theirs))
    mine, its = names
    first = min(i for i in mine.keys() | its.keys() if mine.get(i) != its.get(i))
    said = [repr(one[first]) if first in one else "none" for one in (its, mine)]
    return f"its tokenizer is another one: token {first} is {said[0]}, the teacher's is {said[1]}"
