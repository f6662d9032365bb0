"""What a spec means: layers as integers, sizes as layer plans, tokens as steps.

Nothing here touches a file: it needs the spec, the teacher's facts, and what searches have found. Every problem
points into the spec. Behind this module there are no strategies any more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from boomspec.choosing import chosen
from boomspec.facts import ModelFacts, total_bytes, total_parameters
from boomspec.layers import (
    EXACT_HINT,
    ORDERS,
    KeepRule,
    Plan,
    check_kept,
    evenly_spaced,
    family_of_sets,
    owner,
    patchable,
    prefixes,
    refuse_exact,
    teacher_indices,
)
from boomspec.searches import KeepChoice, OrderSearch
from boomspec.sizes import Member
from boomspec.spec import SpecFile
from boomspec.tasks import Optimizer, Recipe, Schedule
from boomspec.training import Training

_CONTEXT = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class Family:
    """Kept layers and the members that are built, smallest first; the last one is the teacher. All integers."""

    facts: ModelFacts
    kept: tuple[int, ...]
    student: Member  # the student itself: by the reference rule the member with no patched block is another
    members: tuple[Member, ...]
    every: tuple[Member, ...]  # also the members that are not built


def resolve_family(file: SpecFile, facts: ModelFacts, kept: tuple[int, ...], sets: list[tuple[int, ...]]) -> Family:
    """Turn mapping, patched sets and sizes into layer plans. Raises SpecError with all problems.

    `sets[k]` are the blocks that the member with k patched blocks has from the teacher.
    """
    order = file.spec.interpolate.order
    reference: Literal["first", "last"] | None = None
    if file.spec.interpolate.singletons == "reference":
        reference = "first" if order == "first_to_last" else "last"
    plans = family_of_sets(kept, facts.count, sets, reference=reference)
    members = [_member(file, facts, kept, k, plan) for k, plan in enumerate(plans)]
    student = _member(file, facts, kept, 0, tuple(f"s{i}" for i in range(len(kept))))
    return Family(facts, kept, student, chosen(file, facts, kept, members), tuple(members))


def check_context(file: SpecFile, facts: ModelFacts) -> None:
    """Raise SpecError where sequences are longer than the teacher has positions for."""
    longest = next((facts.config[key] for key in _CONTEXT if isinstance(facts.config.get(key), int)), None)
    if file.spec.data is not None and longest is not None and file.spec.data.sequence_length > longest:
        message = f"{file.spec.data.sequence_length} is more than the teacher's {longest} positions"
        raise file.error(file.problem(("data", "sequence_length"), message))


def kept_layers(file: SpecFile, facts: ModelFacts, found: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The kept layers; `found` are those of a search or of a student that exists."""
    keep = file.spec.student.keep
    if isinstance(keep, int | KeepChoice) and found is None:
        count = keep if isinstance(keep, int) else keep.count
        if not 1 <= count < facts.count:
            message = f"{count} layers: the teacher has {facts.count}, so 1 to {facts.count - 1} are allowed"
            raise file.error(file.problem(("student", "keep"), message))
        return evenly_spaced(count, facts.count)  # of a search only the count is known by now
    kept = keep.kept(facts.count) if isinstance(keep, KeepRule) else found or keep
    assert isinstance(kept, tuple)
    if complaint := check_kept(kept, facts.count):
        shown = ", ".join(str(i) for i in kept)
        hint = f"this rule keeps {shown} of {facts.count} layers" if isinstance(keep, KeepRule) else None
        raise file.error(file.problem(("student", "keep" if found is None else "model"), complaint, hint))
    return kept


def patched_sets(file: SpecFile, kept: tuple[int, ...], layers: int) -> list[tuple[int, ...]] | None:
    """The patched blocks after 0, 1, ..., m steps; None where a search has to find them."""
    order, available = file.spec.interpolate.order, patchable(kept, layers)
    if isinstance(order, OrderSearch):
        if order.search == "exact" and (refusal := refuse_exact(len(available))):
            raise file.error(file.problem(("interpolate", "order"), refusal, EXACT_HINT))
        return None
    if isinstance(order, str):
        order = ORDERS[order](available)
    elif sorted(order) != available:
        message = "the order must name every block of two or more layers once"
        if extra := [i for i in order if i not in available]:
            message += f"; {extra[0]} is not one of them"
        elif twice := [i for i, count in Counter(order).items() if count > 1]:
            message += f"; {twice[0]} is named twice"
        elif missing := sorted(set(available) - set(order)):
            message += f"; {missing[0]} is missing"
        raise file.error(file.problem(("interpolate", "order"), message, f"the blocks are {available}"))
    return prefixes(order)


def _member(file: SpecFile, facts: ModelFacts, kept: tuple[int, ...], patched: int, plan: Plan) -> Member:
    # A tied model whose embedding and head have two owners with different weights cannot stay tied.
    one_owner = owner(plan[0]) == owner(plan[-1])
    tied = facts.tied and (one_owner or not file.spec.student.train_embedding)
    return member_of(facts, plan, kept, patched=patched, tied=tied)


def member_of(facts: ModelFacts, plan: Plan, kept: tuple[int, ...] = (), *, patched: int, tied: bool) -> Member:
    """A member with its exact size. A plan of the teacher's layers alone needs no `kept`."""
    tensors = facts.tensors(teacher_indices(plan, kept), tied=tied)
    return Member(patched, plan, total_parameters(tensors), total_bytes(tensors), tied)


def recipe(training: Training, *, seed: int, sequence_length: int, tokens: int | None = None) -> Recipe:
    """Tokens become whole sequences and whole steps, rounded to the nearest and at least one."""
    sequences = max(1, round(training.batch_tokens / sequence_length))
    steps = max(1, round((tokens or training.tokens) / (sequences * sequence_length)))
    optimizer, schedule = training.optimizer, training.schedule
    return Recipe(
        seed=seed,
        steps=steps,
        sequences=sequences,
        sequence_length=sequence_length,
        optimizer=Optimizer(
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            clip=optimizer.clip,
        ),
        schedule=Schedule(kind=schedule.kind, warmup_steps=min(steps, schedule.warmup.of(steps)), final=schedule.final),
        precision=training.precision,
    )
