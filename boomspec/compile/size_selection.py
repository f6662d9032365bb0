"""Which members of a family a spec asks for.

A size, or each size of a range, is answered by one member (`boomspec.core.sizes.answer`). A budget is answered by the
member of most layers whose weights and KV cache fit. Student and teacher are always there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from boomspec.core.errors import BoomspecError, Problem
from boomspec.core.layers import teacher_indices
from boomspec.core.sizes import Member, answer, no_such_size, shown_bytes
from boomspec.core.types import Sizes
from boomspec.models.facts import ModelFacts
from boomspec.models.kv_cache import layer_cache_bytes
from boomspec.spec.sections.interpolate import BudgetSpec
from boomspec.spec.spec_file import SpecFile
from boomspec.spec.yaml_reader import Location


def chosen(file: SpecFile, facts: ModelFacts, kept: Sequence[int], members: Sequence[Member]) -> tuple[Member, ...]:
    """The members that are built, each with what it answers in `asked`. Raises SpecError with every problem."""
    interpolate = file.spec.interpolate
    if interpolate.sizes == "all":
        return tuple(members)
    asked: dict[int, list[str]] = {members[0].patched: [], members[-1].patched: []}
    problems: list[Problem] = []
    for place, item in _items(interpolate.sizes):
        if isinstance(item, BudgetSpec):
            try:
                member, needed = _within(item, facts, kept, members)
                asked.setdefault(member.patched, []).append(f"{_text(item)}: needs {shown_bytes(needed)}")
            except BoomspecError as error:
                problems.append(file.problem(place, error.message, error.hint))
            continue
        for size in item.sizes:
            found = answer(members, size, choose=interpolate.choose)
            if found is None:
                problems.append(file.problem(place, no_such_size(members, size)))
            else:
                asked.setdefault(found.patched, []).append(size.text)
    if problems:
        raise file.error(*problems)
    return tuple(replace(m, asked=tuple(asked[m.patched])) for m in members if m.patched in asked)


def _items(sizes: Sizes | BudgetSpec | Sequence[Sizes | BudgetSpec]) -> Iterator[tuple[Location, Sizes | BudgetSpec]]:
    """Each thing that is asked for, with its place in the spec."""
    if isinstance(sizes, Sizes | BudgetSpec):
        yield ("interpolate", "sizes"), sizes
        return
    for i, item in enumerate(sizes):
        yield ("interpolate", "sizes", i), item


def _within(
    budget: BudgetSpec, facts: ModelFacts, kept: Sequence[int], members: Sequence[Member]
) -> tuple[Member, int]:
    """The member of most layers that fits, and the bytes that it needs. Raises BoomspecError where none does."""
    cache = layer_cache_bytes(facts, context=budget.context, batch=budget.batch)
    needs = {m.patched: m.bytes + sum(cache[i] for i in teacher_indices(m.plan, kept)) for m in members}
    fitting = [member for member in members if needs[member.patched] <= budget.fits]
    if not fitting:
        least = min(members, key=lambda m: needs[m.patched])
        total, weights = needs[least.patched], least.bytes
        message = (
            f"no model {_text(budget)}: the smallest needs {shown_bytes(total)} "
            f"({shown_bytes(weights)} of weights and {shown_bytes(total - weights)} of KV cache)"
        )
        raise BoomspecError(message)
    best = max(fitting, key=lambda m: m.layers)
    return best, needs[best.patched]


def _text(budget: BudgetSpec) -> str:
    return f"fits {shown_bytes(budget.fits)} at context {budget.context:,}, batch {budget.batch:,}"
