"""Turn `keep`, patch order and `sizes` into the list of models to build, as layer plans.

    spec + the teacher's facts + what searches have found --resolve_family--> Family

Nothing here reads a file. Every problem points into the spec. After this module there are no rules and strategies.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from boomspec.compile.places import errors_at
from boomspec.core import layers
from boomspec.core.errors import BoomspecError, Problem
from boomspec.core.layers import STUDENT, TEACHER, KeepRule, LayerPlan, Owner
from boomspec.core.sizes import LayerCache, Member, labels, no_such_size, select_member, shown_bytes
from boomspec.core.tasks import Series
from boomspec.core.types import Sizes
from boomspec.models.facts import ModelFacts, positions_of, read_as, size_of
from boomspec.models.families import row_of
from boomspec.models.fit import plan_entries, whole_names, with_rest
from boomspec.models.kv_cache import layer_cache_bytes, layer_caches
from boomspec.models.packing import refuse_apart
from boomspec.models.plan_config import plan_config
from boomspec.spec.sections.interpolate import BudgetSpec, OrderSearch
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.spec_file import Memo, SpecFile, memoized_for

Sets = tuple[tuple[int, ...], ...]  # the patched blocks after 0, 1, ..., m steps


@dataclass(frozen=True)
class ResolvedFamily:
    """Kept layers and the members that are built, by patched blocks; the last one is the teacher. All integers."""

    facts: ModelFacts
    kept: tuple[int, ...]
    student: Member  # the student itself: by the reference rule the member with no patched block is another
    members: tuple[Member, ...]
    every: tuple[Member, ...]  # also the members that are not built
    rest: bool = False  # sizes with layers of the teacher keep its other parts
    once: Memo = field(default_factory=Memo, compare=False, repr=False)  # values computed from it, once

    def label(self, member: Member) -> str:
        return self.once("labels", lambda: labels(self.every))[member.patched]


class EvaluatedModel(NamedTuple):
    """One model to be measured: its series, its label and size in the report, and the task or source that has it."""

    series: Series
    label: str
    member: Member
    task: str
    phase: str | None = None  # of the series "phase": the name of the phase that its student has ended


@memoized_for("teacher", "student", "interpolate")
def resolve_family(
    file: SpecFile, facts: ModelFacts, kept: tuple[int, ...], sets: Sets, existing: ModelFacts | None = None
) -> ResolvedFamily:
    """Turn mapping, patched sets and sizes into layer plans. Raises SpecError with all problems.

    `sets[k]` are the blocks that the member with k patched blocks has from the teacher. `existing`: the facts of a
    student that exists; one that is distilled is stored as its teacher is.
    """
    smaller = existing
    if smaller is None:
        with errors_at(file, ("student", "keep"), "the student: "):
            config = plan_config({TEACHER: facts}, layers.teacher_layers(kept), tied=facts.tied, base=TEACHER)
        smaller = replace(facts, layers=tuple(facts.layers[i] for i in kept), config=config)
    reference = reference_of(file)
    own = smaller.tensors(range(smaller.count), tied=smaller.tied)  # the student itself is not assembled
    student = Member(0, layers.student_layers(len(kept)), *size_of(own), smaller.tied)
    owners: dict[Owner, ModelFacts] = {TEACHER: facts, STUDENT: smaller}
    members = []
    for patched, plan in enumerate(layers.family_of_sets(kept, facts.count, sets, reference=reference)):
        # A tied model whose embedding and head have two owners with different weights cannot stay tied.
        first, last = (owners[owner] for owner in layers.ends_of(plan))
        tied = first.tied and last.tied and (first is last or not file.spec.student.train_embedding)
        tensors = plan_entries(facts, smaller, plan, tied=tied)
        if file.spec.teacher.keeps_rest:
            tensors = with_rest(facts, plan, tensors)
        members.append(student if plan == student.plan else Member(patched, plan, *size_of(tensors), tied))
    built = _chosen(file, facts, kept, members)
    owners[STUDENT] = read_as(smaller, facts.model_type, "the student")
    for member in built:
        if member.plan != student.plan:
            place = ("interpolate",) if existing is None else ("student", "model")
            with errors_at(file, place, f"the size of {len(member.plan)} layers: "):
                plan_config(owners, member.plan, tied=member.tied, base=TEACHER)
    return ResolvedFamily(facts, kept, student, built, tuple(members), file.spec.teacher.keeps_rest)


def pruned(facts: ModelFacts, plan: LayerPlan, *, rest: bool = False) -> Member:
    """A model of the teacher's layers alone: tied as the teacher is. Raises BoomspecError where it cannot be built."""
    plan_config({TEACHER: facts}, plan, tied=facts.tied, base=TEACHER)
    tensors = plan_entries(facts, facts, plan, tied=facts.tied)
    return Member(len(plan), plan, *size_of(with_rest(facts, plan, tensors) if rest else tensors), facts.tied)


def _chosen(file: SpecFile, facts: ModelFacts, kept: Sequence[int], members: Sequence[Member]) -> tuple[Member, ...]:
    """The members that are built, each with the sizes in the spec that it answers; student and teacher always are."""
    interpolate = file.spec.interpolate
    if interpolate.sizes == "all":
        return tuple(members)
    answers: dict[int, list[str]] = {members[0].patched: [], members[-1].patched: []}
    problems: list[Problem] = []
    sizes = interpolate.sizes
    for i, item in enumerate((sizes,) if isinstance(sizes, Sizes | BudgetSpec) else sizes):
        place = ("interpolate", "sizes", *((i,) if isinstance(sizes, tuple) else ()))
        if isinstance(item, BudgetSpec):
            try:
                member, text = _best(item, facts, kept, members)
                answers.setdefault(member.patched, []).append(text)
            except BoomspecError as error:
                problems.append(file.problem(place, error.message, error.hint))
            continue
        for size in item.sizes:
            found = select_member(members, size, choose=interpolate.choose)
            if found is None:
                problems.append(file.problem(place, no_such_size(members, size)))
            else:
                answers.setdefault(found.patched, []).append(size.text)
    if problems:
        raise file.error(*problems)
    return tuple(replace(m, asked=tuple(answers[m.patched])) for m in members if m.patched in answers)


def _best(budget: BudgetSpec, facts: ModelFacts, kept: Sequence[int], members: Sequence[Member]) -> tuple[Member, str]:
    """The member of most layers that fits, and what it answers. Raises BoomspecError where none does."""
    asked = f"fits {shown_bytes(budget.fits)} at context {budget.context:,}, batch {budget.batch:,}"
    cache = layer_cache_bytes(facts, context=budget.context, batch=budget.batch)
    needs = {m.patched: m.bytes + sum(cache[i] for i in layers.teacher_indices(m.plan, kept)) for m in members}
    fitting = [member for member in members if needs[member.patched] <= budget.fits]
    if not fitting:
        least = min(members, key=lambda m: needs[m.patched])
        total, weights = needs[least.patched], least.bytes
        parts = f"{shown_bytes(weights)} of weights and {shown_bytes(total - weights)} of KV cache"
        raise BoomspecError(f"no model {asked}: the smallest needs {shown_bytes(total)} ({parts})")
    best = max(fitting, key=lambda m: m.layers)
    return best, f"{asked}: needs {shown_bytes(needs[best.patched])}"


def caches_of(facts: ModelFacts) -> tuple[LayerCache, ...]:
    """What each layer caches when the model writes; none where that is not known, or it does not write."""
    try:
        return () if is_masked(facts) else layer_caches(facts)
    except BoomspecError:
        return ()


def is_masked(facts: ModelFacts) -> bool:
    """Whether it is a masked language model."""
    return "MaskedLM" in " ".join(map(str, facts.config.get("architectures") or ())) or row_of(facts.model_type).masked


def check_teacher(file: SpecFile, facts: ModelFacts) -> None:
    """Raise SpecError for what the teacher cannot be used for, such as training on more tokens than its positions."""
    spec, problems = file.spec, []
    if is_masked(facts):
        for section in ("distill", "evaluate"):
            if getattr(spec, section) is not None:
                message = f"a {facts.model_type} model is a masked language model: it can only be built"
                problems.append(file.problem((section,), message))
        if isinstance(spec.interpolate.order, OrderSearch):
            problems.append(file.problem(("interpolate", "order"), "a masked language model cannot be searched"))
    longest = positions_of(facts)
    if spec.data is not None and longest is not None and spec.data.sequence_length > longest:
        message = f"{spec.data.sequence_length} is more than the teacher's {longest} positions"
        problems.append(file.problem(("data", "sequence_length"), message))
    if spec.data is not None and spec.data.isolate_documents and (reason := refuse_apart(facts)) is not None:
        hint = "leave it out: documents of one row then see each other"
        problems.append(file.problem(("data", "isolate_documents"), reason, hint))
    if problems:
        raise file.error(*problems)
    if spec.teacher.keeps_rest:
        with errors_at(file, ("teacher", "rest")):
            whole_names(facts)


def kept_layers(file: SpecFile, facts: ModelFacts, found: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The kept layers; `found` are those of a search or of a student that exists."""
    keep = file.spec.student.keep
    if isinstance(keep, int | KeepChoice) and found is None:
        count = keep if isinstance(keep, int) else keep.count
        if not 1 <= count < facts.count:
            message = f"{count} layers: the teacher has {facts.count}, so 1 to {facts.count - 1} are allowed"
            raise file.error_at(("student", "keep"), message)
        return layers.evenly_spaced(count, facts.count)  # of a search only the count is known by now
    kept = keep.kept(facts.count) if isinstance(keep, KeepRule) else keep if found is None else found
    assert isinstance(kept, tuple)
    if wrong := layers.check_kept(kept, facts.count):
        complaint, item = wrong
        shown = ", ".join(str(i) for i in kept)
        hint = f"this rule keeps {shown} of {facts.count} layers" if isinstance(keep, KeepRule) else None
        place: tuple[str | int, ...] = ("student", "keep" if found is None else "model")
        if found is None and isinstance(keep, tuple) and item is not None:
            place = (*place, item)
        raise file.error_at(place, complaint, hint)
    return kept


def reference_of(file: SpecFile) -> Literal["first", "last"] | None:
    """From which end the published rule lets a family grow; None where another rule says whose singletons are."""
    if file.spec.interpolate.singletons != "reference":
        return None
    return "first" if file.spec.interpolate.order == "first_to_last" else "last"


def trained_plans(file: SpecFile, kept: tuple[int, ...], count: int) -> tuple[LayerPlan, ...] | None:
    """The sizes that a patch-aware training draws from; None: any blocks. Raises SpecError where there are none."""
    assert file.spec.distill is not None
    section, place = file.spec.distill.patch_aware, ("distill", "patch_aware")
    assert section is not None
    if len(layers.patchable(kept, count)) < 2:
        raise file.error_at(place, "there is no size between student and teacher")
    if section.models == "any":
        return None
    sets = patched_sets(file, kept, count)
    if sets is None:
        message = "the sizes of the family are not known before the patch order is found"
        raise file.error_at(place, message, "name an order, or train for any blocks: models: any")
    plans = layers.family_of_sets(kept, count, sets, reference=reference_of(file))
    return tuple(plan for plan in plans if len({layer.owner for layer in plan}) == 2)


def patched_sets(file: SpecFile, kept: tuple[int, ...], count: int) -> Sets | None:
    """The patched blocks after 0, 1, ..., m steps; None where a search has to find them."""
    order, available = file.spec.interpolate.order, layers.patchable(kept, count)
    if isinstance(order, OrderSearch):
        if order.search == "exact" and (refusal := layers.refuse_exact(len(available))):
            raise file.error_at(("interpolate", "order"), refusal, layers.EXACT_HINT)
        return None
    if isinstance(order, str):
        order = layers.ORDERS[order](available)
    elif sorted(order) != available:
        message = "the order must name every block of two or more layers once"
        if extra := [i for i in order if i not in available]:
            message += f"; {extra[0]} is not one of them"
        elif twice := [i for i, times in Counter(order).items() if times > 1]:
            message += f"; {twice[0]} is named twice"
        elif missing := sorted(set(available) - set(order)):
            message += f"; {missing[0]} is missing"
        raise file.error_at(("interpolate", "order"), message, f"the blocks are {available}")
    return tuple(layers.prefixes(order))
