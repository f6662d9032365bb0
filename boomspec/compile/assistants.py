"""The assistants of a student: which of the teacher's layers each one begins as, or which size it is."""

from collections.abc import Sequence
from dataclasses import dataclass

from boomspec.compile.family import ResolvedFamily
from boomspec.core.errors import Problem
from boomspec.core.layers import KeepRule, check_kept, evenly_spaced, teacher_indices
from boomspec.core.sizes import Member, no_such_size, select_member
from boomspec.models.facts import ModelFacts
from boomspec.spec.sections.schemes import AssistantSpec
from boomspec.spec.spec_file import SpecFile


@dataclass(frozen=True)
class Assistant:
    """A teacher between teacher and student. `layers`: those of the teacher that its own were, or are.

    member: the size that it is, where it is interpolated. tokens: of the training on its way, where the spec says it.
    """

    layers: tuple[int, ...]
    member: Member | None
    tokens: int | None


def assistants(
    file: SpecFile, facts: ModelFacts, kept: tuple[int, ...], family: ResolvedFamily | None
) -> tuple[Assistant, ...]:
    """The assistants of a student of these kept layers. Raises SpecError with the problems of all.

    family: None where the patch order is still searched for.
    """
    asked = file.spec.distill.assistants if file.spec.distill is not None else None
    found: list[Assistant] = []
    problems: list[Problem] = []
    above = tuple(range(facts.count))
    for i, item in enumerate(asked or ()):
        place = ("distill", "assistants", i)
        if item.keep is not None:
            layers = _kept(item, facts.count)
            if complaint := _not_between(layers, above, kept, facts.count):
                problems.append(file.problem((*place, "keep"), complaint, _shown("the student keeps", kept)))
                continue
            found.append(Assistant(layers, None, item.tokens))
        elif family is None:
            hint = "name an order, or give the assistant's layers: keep"
            problems.append(file.problem((*place, "size"), "no size is known before the patch order is found", hint))
            continue
        else:
            assert item.size is not None
            member = select_member(family.every, item.size.sizes[0], choose=file.spec.interpolate.choose)
            if member is None or member.is_student or member.is_teacher:
                message = no_such_size(family.every, item.size.sizes[0])
                if member is not None:
                    message = f"{item.size.text} is the {'student' if member.is_student else 'teacher'} itself"
                problems.append(file.problem((*place, "size"), message, "it must lie between student and teacher"))
                continue
            found.append(Assistant(tuple(teacher_indices(member.plan, kept)), member, item.tokens))
        above = found[-1].layers
    if problems:
        raise file.error(*problems)
    return tuple(found)


def _kept(item: AssistantSpec, count: int) -> tuple[int, ...]:
    if isinstance(item.keep, KeepRule):
        return item.keep.kept(count)
    return evenly_spaced(item.keep, count) if isinstance(item.keep, int) else item.keep or ()


def _not_between(layers: Sequence[int], above: Sequence[int], kept: Sequence[int], count: int) -> str | None:
    """What is wrong with an assistant of these layers, whose teacher has those `above`."""
    if wrong := check_kept(layers, count):
        return wrong[0]
    if missing := sorted(set(kept) - set(layers)):
        return f"the student keeps layer {missing[0]}, which this assistant has not"
    if outside := sorted(set(layers) - set(above)):
        return f"layer {outside[0]} is none of its own teacher's, the assistant before"
    if len(layers) == len(kept):
        return "it has the student's layers: an assistant has more"
    if len(layers) == len(above):
        return "it has as many layers as its own teacher, the assistant before"
    return None


def _shown(what: str, layers: Sequence[int]) -> str:
    return f"{what} {', '.join(map(str, layers))}"
