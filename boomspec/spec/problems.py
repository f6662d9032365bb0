"""Run one step for all experiments, and report each error once, at the line that caused it.

    experiments x step --for_each--> results, or one SpecError

A spec may be put together from parts: a base, a variant, a point of the sweep. The line that caused a problem is then
not always the line of the value: a variant may remove what another line needs. From the top part down:

1. A problem in a value that the part wrote is a problem of the part.
2. A problem that is there without the part as well is one of the parts below.
3. Else the part caused it, by the edit without which the problem is gone and no other one appears. Of several such
   edits, the one is named whose location has most in common with the problem's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

from boomspec.core.errors import Problem, SpecError
from boomspec.spec.document import Document, Edit
from boomspec.spec.spec_file import Entry
from boomspec.spec.validate import joined
from boomspec.spec.yaml_reader import dotted

MOST_FAILURES = 20  # of the points that differ from the first one in several axes
T = TypeVar("T")
L = TypeVar("L", bound=Entry)
Key = tuple[object, ...]  # what makes it the same problem in another experiment, where it may be on another line
Traced = tuple[Problem, str]  # a problem at its cause, and the title of the part: "variant 'no-kl'", "seed=1" or ""
Trace = Callable[[Document], dict[Key, Traced]]


def for_each(items: Sequence[L], step: Callable[[L], T]) -> list[T]:
    """What `step` returns for each item. Raises SpecError with the problems of all of them.

    Points of a sweep that differ from the first one of their variant in several axes come last, and only when all
    others are right: one wrong value is not reported once per combination.
    """
    first: dict[str | None, dict[str, str]] = {}
    near: list[int] = []
    far: list[int] = []
    for i, item in enumerate(items):
        start = first.setdefault(item.axes.get("variant"), item.axes)
        (near if sum(start[axis] != text for axis, text in item.axes.items()) <= 1 else far).append(i)
    results: dict[int, T] = {}
    for indices, most in ((near, len(near)), (far, MOST_FAILURES)):
        failed: dict[int, SpecError] = {}
        for i in indices:
            try:
                results[i] = step(items[i])
            except SpecError as error:
                if len(items) == 1 and items[0].document.below is None:
                    raise
                failed[i] = error
                if len(failed) >= most:
                    break
        if failed:
            trace = _tracer(lambda document: step(items[0].with_document(document)))
            problems = _once([items[i] for i in failed], [items[i] for i in indices if i in results], trace)
            i, cause = next(iter(failed.items()))
            raise items[i].document.error(problems) from cause
    return [results[i] for i in range(len(items))]


def _once(failed: Sequence[Entry], right: Sequence[Entry], trace: Trace) -> list[Problem]:
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


def _tracer(attempt: Callable[[Document], object]) -> Trace:
    """A function that finds the cause of each problem of a document. Documents share parts: each is traced once."""

    def problems(document: Document) -> dict[Key, Problem]:
        try:
            attempt(document)
        except SpecError as error:
            places = [(p.file, p.line, p.column) if p.location is None else p.location for p in error.problems]
            return {(place, p.message): p for place, p in zip(places, error.problems, strict=True)}
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
        causes: dict[Key, list[Edit]] = {key: [] for key in raw if key not in found}
        for edit in document.edits if causes else ():
            others = tuple(other for other in document.edits if other is not edit)
            if edit.is_leaf and (after := problems(document.below.edited(others, document.title)).keys()) <= raw.keys():
                for key in causes.keys() - after:
                    causes[key].append(edit)
        return found | {key: _moved(document, raw[key], edits) for key, edits in causes.items()}

    return trace


def _moved(document: Document, problem: Problem, causes: list[Edit]) -> Traced:
    """The problem at the edit that caused it; where no single one did, at the edit that comes nearest to it."""
    location = problem.location or ()
    nearest = [edit for edit in document.edits if edit.how == "merge" and edit.covers(location)]

    def closeness(edit: Edit) -> tuple[int, bool]:
        lengths = range(min(len(edit.location), len(location)), 0, -1)
        common = next((length for length in lengths if edit.location[:length] == location[:length]), 0)
        return common, edit.how in ("remove", "omit")

    cause = max(causes or nearest[-1:] or [edit for edit in document.edits if edit.is_leaf], key=closeness)
    (line, column), file = cause.node.spot, str(cause.node.file)
    seen = None
    if location and (problem.file, problem.line) != (file, line):
        seen = f"see {problem.file}:{problem.line}"
        if dotted(location) != problem.where:  # a key that does not belong there any more
            seen = f"mappings merge, '{location[-1]}: null' removes it; {seen}"
    moved = replace(problem, line=line, column=column, file=file, hint=joined([problem.hint, seen]))
    return moved, cause.title if causes or nearest else document.title
