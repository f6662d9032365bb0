"""What a spec means: layers as integers, sizes as layer plans, tokens as steps.

`resolve_family` needs the spec and the teacher's facts and touches no file. Every problem points into the
spec. Behind this module there are no strategies any more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from boomspec.errors import Problem
from boomspec.facts import ModelFacts, total_bytes, total_parameters
from boomspec.fields import Size
from boomspec.language import Training
from boomspec.layers import (
    ORDERS,
    KeepRule,
    Plan,
    check_kept,
    evenly_spaced,
    family,
    owner,
    patchable,
    teacher_indices,
)
from boomspec.spec import SpecFile
from boomspec.tasks import Optimizer, Recipe, Schedule


@dataclass(frozen=True)
class Member:
    """One model of the family: `patched` blocks are the teacher's."""

    patched: int
    plan: Plan
    parameters: int
    bytes: int
    tied: bool
    asked: tuple[str, ...] = ()  # the sizes in the spec that it answers

    @property
    def layers(self) -> int:
        return len(self.plan)

    @property
    def is_student(self) -> bool:
        return all(owner(layer) == "s" for layer in self.plan)

    @property
    def is_teacher(self) -> bool:
        return all(owner(layer) == "t" for layer in self.plan)


@dataclass(frozen=True)
class Family:
    """Kept layers, patch order, and the members that are built, smallest first. All integers."""

    facts: ModelFacts
    kept: tuple[int, ...]
    order: tuple[int, ...]
    members: tuple[Member, ...]


def resolve_family(file: SpecFile, facts: ModelFacts) -> Family:
    """Resolve mapping, order and sizes against the teacher's facts. Raises SpecError with all problems."""
    kept = _kept(file, facts)
    order = _order(file, kept, facts.count)
    members = _members(file, facts, kept, order)
    return Family(facts, kept, order, _chosen(file, members))


def _kept(file: SpecFile, facts: ModelFacts) -> tuple[int, ...]:
    keep = file.spec.student.keep
    if isinstance(keep, int):
        if not 1 <= keep < facts.count:
            message = f"{keep} layers: the teacher has {facts.count}, so 1 to {facts.count - 1} are allowed"
            raise file.error(file.problem(("student", "keep"), message))
        return evenly_spaced(keep, facts.count)
    kept = keep.kept(facts.count) if isinstance(keep, KeepRule) else keep
    if complaint := check_kept(kept, facts.count):
        shown = ", ".join(str(i) for i in kept)
        hint = f"this rule keeps {shown} of {facts.count} layers" if isinstance(keep, KeepRule) else None
        raise file.error(file.problem(("student", "keep"), complaint, hint))
    return kept


def _order(file: SpecFile, kept: tuple[int, ...], layers: int) -> tuple[int, ...]:
    order, available = file.spec.interpolate.order, patchable(kept, layers)
    if isinstance(order, str):
        return ORDERS[order](available)
    if sorted(order) != available:
        message = "the order must name every block of two or more layers once"
        if extra := [i for i in order if i not in available]:
            message += f"; {extra[0]} is not one of them"
        elif twice := [i for i, count in Counter(order).items() if count > 1]:
            message += f"; {twice[0]} is named twice"
        elif missing := sorted(set(available) - set(order)):
            message += f"; {missing[0]} is missing"
        raise file.error(file.problem(("interpolate", "order"), message, f"the blocks are {available}"))
    return order


def _members(file: SpecFile, facts: ModelFacts, kept: tuple[int, ...], order: tuple[int, ...]) -> list[Member]:
    spec = file.spec
    reference: Literal["first", "last"] | None = None
    if spec.interpolate.singletons == "reference":
        reference = "first" if spec.interpolate.order == "first_to_last" else "last"
    members = []
    for patched, plan in enumerate(family(kept, facts.count, order, reference=reference)):
        # A tied model whose embedding and head have two owners with different weights cannot stay tied.
        one_owner = owner(plan[0]) == owner(plan[-1])
        tied = facts.tied and (one_owner or not spec.student.train_embedding)
        tensors = facts.tensors(teacher_indices(plan, kept), tied=tied)
        members.append(Member(patched, plan, total_parameters(tensors), total_bytes(tensors), tied))
    return members


def _chosen(file: SpecFile, members: list[Member]) -> tuple[Member, ...]:
    """Student and teacher, and for each size that was asked for the nearest member not above it."""
    sizes = file.spec.interpolate.sizes
    if isinstance(sizes, str):
        return tuple(members)
    asked: dict[int, list[str]] = {members[0].patched: [], members[-1].patched: []}
    problems: list[Problem] = []
    for i, size in enumerate(sizes):
        fitting = [m for m in members if _measure(m, size, members[-1]) <= size.value * (1 + 1e-9)]
        if not fitting or _measure(members[-1], size, members[-1]) < size.value * (1 - 1e-9):
            low, high = (_shown(m, size, members[-1]) for m in (members[0], members[-1]))
            message = f"no model of size {size.text}: the student has {low}, the teacher {high}"
            problems.append(file.problem(("interpolate", "sizes", i), message))
        else:
            asked.setdefault(max(fitting, key=lambda m: m.parameters).patched, []).append(size.text)
    if problems:
        raise file.error(*problems)
    return tuple(
        Member(m.patched, m.plan, m.parameters, m.bytes, m.tied, tuple(asked[m.patched]))
        for m in members
        if m.patched in asked
    )


def _measure(member: Member, size: Size, teacher: Member) -> float:
    match size.unit:
        case "parameters":
            return member.parameters
        case "fraction":
            return member.parameters / teacher.parameters
        case "layers":
            return member.layers
        case "bytes":
            return member.bytes


def _shown(member: Member, size: Size, teacher: Member) -> str:
    match size.unit:
        case "parameters":
            return f"{member.parameters:,} parameters"
        case "fraction":
            return f"{member.parameters / teacher.parameters:.1%}"
        case "layers":
            return f"{member.layers} layers"
        case "bytes":
            return f"{member.bytes:,} bytes"


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
