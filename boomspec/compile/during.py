"""Choose the sizes whose held-out loss is measured while their student is trained."""

from boomspec.compile.family import patched_sets, resolve_family
from boomspec.core.errors import Problem
from boomspec.core.sizes import Member, no_such_size, select_member
from boomspec.core.tasks import BuiltSize
from boomspec.models.facts import ModelFacts
from boomspec.spec.spec_file import SpecFile

_SHARES = (1 / 3, 2 / 3)  # of the way from student to teacher, in layers
_ALONE = "measure the student alone: during: {sizes: []}"


def sizes_during(file: SpecFile, facts: ModelFacts, kept: tuple[int, ...]) -> tuple[BuiltSize, ...] | None:
    """The sizes; None where nothing is measured during the training. Raises SpecError for those that are not there."""
    evaluate = file.spec.evaluate
    if evaluate is None or evaluate.every is None:
        return None
    asked = None if evaluate.during is None else evaluate.during.sizes
    if asked == ():
        return ()
    sets = patched_sets(file, kept, facts.count)
    if sets is None:
        message = "the sizes of the family are not known before the patch order is found"
        raise file.error_at(("evaluate", "every"), message, f"name an order, or {_ALONE}")
    family = resolve_family(file, facts, kept, sets)
    between = [member for member in family.every if not (member.is_student or member.is_teacher)]
    found: list[Member] = []
    if asked is None:
        low, high = family.student.layers, family.members[-1].layers
        wanted = [low + share * (high - low) for share in _SHARES]
        found = [min(between, key=lambda m: abs(m.layers - count)) for count in wanted] if between else []
    problems: list[Problem] = []
    for i, one in ((i, one) for i, sizes in enumerate(asked or ()) for one in sizes.sizes):
        member = select_member(family.every, one, choose=file.spec.interpolate.choose)
        place = ("evaluate", "during", "sizes", i)
        if member is None:
            problems.append(file.problem(place, no_such_size(family.every, one)))
        elif member not in between:
            name = "student, which is measured always" if member.is_student else "teacher, which is not trained"
            problems.append(file.problem(place, f"{one.text} is the {name}", "give sizes between student and teacher"))
        else:
            found.append(member)
    if problems:
        raise file.error(*problems)
    return tuple(dict.fromkeys(BuiltSize(plan=member.plan, tied=member.tied) for member in found))
