"""Finds the line that caused a problem, where a spec is put together from several parts.

A value's own place is not always the answer: when a variant removes what another line needs, the line that is wrong
is the variant's. The rule, from the top part down:

1. A problem at a value that the part wrote is there.
2. A problem that is there without the part as well is one of the parts below it.
3. Else the part caused it: the line to blame is the one without which the problem is gone, and nothing else is wrong
   instead; of several the one that has most of its way in common with the problem. Without one, the problem stands
   where the part comes nearest to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile

from boomspec.core.errors import Problem, SpecError
from boomspec.spec.document import Document
from boomspec.spec.edits import Edit
from boomspec.spec.messages import joined
from boomspec.spec.yaml_reader import dotted

Attempt = Callable[[Document], object]  # raises SpecError where something is wrong
Key = tuple[object, ...]


@dataclass(frozen=True)
class Traced:
    """A problem at the line that caused it, and what that line belongs to: "variant 'no-kl'", "seed=1", or the file."""

    problem: Problem
    title: str = ""


class Tracer:
    """Traces the problems of documents that have parts in common; what was attempted is not attempted again."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._traced: dict[int, tuple[Document, dict[Key, Traced]]] = {}  # holds the documents: an id is not used twice

    def trace(self, document: Document) -> dict[Key, Traced]:
        """The problems of a document, each at the line that caused it."""
        if id(document) not in self._traced:
            self._traced[id(document)] = document, self._trace(document)
        return self._traced[id(document)][1]

    def _trace(self, document: Document) -> dict[Key, Traced]:
        raw = self._problems(document)
        if document.below is None or not raw:
            return {key: Traced(problem) for key, problem in raw.items()}
        below = self.trace(document.below)
        found: dict[Key, Traced] = {}
        for key, problem in raw.items():
            if writer := _writer(document.edits, problem):
                found[key] = Traced(problem, writer.title)
            elif key in below:
                # What a base lacks is looked for in the file that extends it: a base may be incomplete.
                lacking = not document.title and any(problem.location == edit.location for edit in document.edits)
                found[key] = Traced(problem) if lacking else below[key]
        rest = {key: problem for key, problem in raw.items() if key not in found}
        causes = self._causes(document, rest, raw) if rest else {}
        for key, problem in rest.items():
            found[key] = _moved(document, problem, causes.get(key, []))
        return found

    def _problems(self, document: Document) -> dict[Key, Problem]:
        try:
            self._attempt(document)
        except SpecError as error:
            return {_key(problem): problem for problem in error.problems}
        return {}

    def _causes(self, document: Document, rest: dict[Key, Problem], raw: dict[Key, Problem]) -> dict[Key, list[Edit]]:
        """The edits without which a problem is gone, and no other one there instead."""
        assert document.below is not None
        causes: dict[Key, list[Edit]] = {}
        for edit in document.edits:
            if edit.is_leaf:
                others = tuple(other for other in document.edits if other is not edit)
                after = self._problems(document.below.with_edits(others, document.title))
                if after.keys() <= raw.keys():
                    for key in rest.keys() - after.keys():
                        causes.setdefault(key, []).append(edit)
        return causes


def _key(problem: Problem) -> Key:
    """What makes it the same problem in another experiment, where it may stand on another line."""
    if problem.location is None:
        return problem.file, problem.line, problem.column, problem.message
    return problem.location, problem.message


def _writer(edits: tuple[Edit, ...], problem: Problem) -> Edit | None:
    """The edit that wrote the value in which a problem is."""
    location = problem.location
    if location is None:
        return None
    return next((e for e in edits if e.how == "set" and location[: len(e.location)] == e.location), None)


def _moved(document: Document, problem: Problem, causes: list[Edit]) -> Traced:
    """The problem at the edit that caused it; where no single one did, at the one that comes nearest to it."""
    if problem.location is None:
        return Traced(problem)  # of the reading itself
    location = problem.location
    nearest = [
        edit for edit in document.edits if edit.how == "open" and location[: len(edit.location)] == edit.location
    ]
    choice = causes or nearest[-1:] or [edit for edit in document.edits if edit.is_leaf]
    cause = max(choice, key=lambda edit: (_common(edit.location, location), edit.how == "remove"))
    line, column = cause.spot
    file = str(cause.place.file)
    title = cause.title if causes or nearest else document.title
    elsewhere = location and (problem.file, problem.line) != (file, line)
    seen = f"see {problem.file}:{problem.line}" if elsewhere else None
    if elsewhere and dotted(location) != problem.where:  # a key that does not belong there any more
        seen = f"mappings merge, '{location[-1]}: null' removes it; {seen}"
    moved = replace(problem, line=line, column=column, file=file, hint=joined([problem.hint, seen]))
    return Traced(moved, title)


def _common(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
