"""Run one step for all experiments, and report each error once, at the line that caused it.

    experiments x step --for_each--> results, or one SpecError

A spec may be put together from parts: a base, a variant, a point of the sweep. The line that caused a problem is then
not always the line of the value: a variant may remove what another line needs. From the top part down:

1. A problem in a value that the part wrote is a problem of the part.
2. A problem that is there without the part as well is one of the parts below.
3. Else the part caused it, by the edit without which the problem is gone and no other one appears. Of several such
   edits, the one is named whose location has most in common with the problem's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import takewhile
from typing import Protocol, Self, TypeVar

from boomspec.core.errors import Problem, SpecError
from boomspec.spec.document import Document, Edit
from boomspec.spec.messages import joined
from boomspec.spec.yaml_reader import Location, dotted

MOST_FAILURES = 20  # of the points that differ from the first one in several axes


class Labelled(Protocol):
    """An experiment, validated or not."""

    @property
    def label(self) -> str: ...
    @property
    def axes(self) -> dict[str, str]: ...
    @property
    def document(self) -> Document: ...
    def with_document(self, document: Document) -> Self: ...


T = TypeVar("T")
L = TypeVar("L", bound=Labelled)
Key = tuple[object, ...]  # what makes it the same problem in another experiment, where it may be on another line
Traced = tuple[Problem, str]  # a problem at its cause, and the title of the part: "variant 'no-kl'", "seed=1" or ""


def for_each(items: Sequence[L], step: Callable[[L], T]) -> list[T]:
    """What `step` returns for each item. Raises SpecError with the problems of all of them.

    Points of a sweep that differ from the first one in several axes come last, and only when all others are right: one
    wrong value is not reported once per combination.
    """
    results: dict[int, T] = {}
    near, far = _by_distance(items)
    for indices, most in ((near, len(near)), (far, MOST_FAILURES)):
        failed: list[tuple[L, SpecError]] = []
        for i in indices:
            try:
                results[i] = step(items[i])
            except SpecError as error:
                if len(items) == 1 and items[0].document.below is None:
                    raise
                failed.append((items[i], error))
                if len(failed) >= most:
                    break
        if failed:
            right = [items[i] for i in indices if i in results]
            trace = _tracer(lambda document: step(items[0].with_document(document)))
            first, cause = failed[0]
            raise first.document.error(_once([item for item, _ in failed], right, trace)) from cause
    return [results[i] for i in range(len(items))]


def _by_distance(items: Sequence[L]) -> tuple[list[int], list[int]]:
    """Indices of those that differ from the first of their variant in at most one axis, and of the others."""
    first: dict[str | None, dict[str, str]] = {}
    near: list[int] = []
    far: list[int] = []
    for i, item in enumerate(items):
        start = first.setdefault(item.axes.get("variant"), item.axes)
        differing = sum(start[axis] != text for axis, text in item.axes.items())
        (near if differing <= 1 else far).append(i)
    return near, far


def _once(failed: Sequence[L], right: Sequence[L], trace: Callable[[Document], dict[Key, Traced]]) -> list[Problem]:
    """Every problem once, with the title of what caused it in its message."""
    found: dict[Key, tuple[Problem, str, str]] = {}
    for item in failed:
        for problem, title in trace(item.document).values():
            key = (problem.file, problem.line, problem.column, problem.where, problem.message, title)
            found.setdefault(key, (problem, title, item.label))
    # A value of the sweep that is right in another experiment is wrong in this one: its label is named.
    passing = {f"{axis}={text}" for item in right for axis, text in item.axes.items() if axis != "variant"}
    titled = [(problem, label if title in passing else title) for problem, title, label in found.values()]
    return [replace(problem, message=f"{title}: {problem.message}") if title else problem for problem, title in titled]


def _tracer(attempt: Callable[[Document], object]) -> Callable[[Document], dict[Key, Traced]]:
    """A function that finds the cause of each problem of a document. Documents share parts: each is traced once."""

    def problems(document: Document) -> dict[Key, Problem]:
        try:
            attempt(document)
        except SpecError as error:
            return {_key(problem): problem for problem in error.problems}
        return {}

    @cache
    def trace(document: Document) -> dict[Key, Traced]:
        raw = problems(document)
        if document.below is None or not raw:
            return {key: (problem, "") for key, problem in raw.items()}
        below = trace(document.below)
        found: dict[Key, Traced] = {}
        for key, problem in raw.items():
            if (location := problem.location) is None:  # of reading the text
                found[key] = problem, ""
            elif writer := next((e for e in document.edits if e.how == "set" and e.covers(location)), None):
                found[key] = problem, writer.title
            elif key in below:
                # A base may be incomplete: the file that extends it lacks what is missing.
                lacking = not document.title and any(location == edit.location for edit in document.edits)
                found[key] = (problem, "") if lacking else below[key]
        rest = {key: problem for key, problem in raw.items() if key not in found}
        causes: dict[Key, list[Edit]] = {key: [] for key in rest}
        for edit in document.edits if rest else ():
            others = tuple(other for other in document.edits if other is not edit)
            if edit.is_leaf and (after := problems(document.below.edited(others, document.title)).keys()) <= raw.keys():
                for key in rest.keys() - after:
                    causes[key].append(edit)
        return found | {key: _moved(document, problem, causes[key]) for key, problem in rest.items()}

    return trace


def _key(problem: Problem) -> Key:
    if problem.location is None:
        return problem.file, problem.line, problem.column, problem.message
    return problem.location, problem.message


def _moved(document: Document, problem: Problem, causes: list[Edit]) -> Traced:
    """The problem at the edit that caused it; where no single one did, at the edit that comes nearest to it."""
    location = problem.location or ()
    nearest = [edit for edit in document.edits if edit.how == "merge" and edit.covers(location)]
    choice = causes or nearest[-1:] or [edit for edit in document.edits if edit.is_leaf]
    cause = max(choice, key=lambda edit: (_common(edit.location, location), edit.how in ("remove", "omit")))
    (line, column), file = cause.node.spot, str(cause.node.file)
    seen = None
    if location and (problem.file, problem.line) != (file, line):
        seen = f"see {problem.file}:{problem.line}"
        if dotted(location) != problem.where:  # a key that does not belong there any more
            seen = f"mappings merge, '{location[-1]}: null' removes it; {seen}"
    moved = replace(problem, line=line, column=column, file=file, hint=joined([problem.hint, seen]))
    return moved, cause.title if causes or nearest else document.title


def _common(one: Location, other: Location) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
