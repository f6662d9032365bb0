"""Does one thing with every experiment of a spec, and reports the problems of all of them at once.

experiments x attempt --for_each--> results, or one SpecError: each problem once, at the line that caused it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from boomspec.core.errors import Problem, SpecError
from boomspec.spec.blame import Attempt, Traced, Tracer
from boomspec.spec.document import Document

MOST_FAILURES = 20  # of the points that differ from the first one in several axes
T = TypeVar("T")


class Labelled(Protocol):
    """An experiment, validated or not."""

    @property
    def label(self) -> str: ...
    @property
    def axes(self) -> dict[str, str]: ...
    @property
    def document(self) -> Document: ...


L = TypeVar("L", bound=Labelled)


def for_each(items: Sequence[L], attempt: Callable[[L], T], on_document: Attempt) -> list[T]:
    """What `attempt` gives for each item. Raises SpecError with the problems of all of them.

    `on_document` attempts the same with a document alone. Points of a sweep that differ from the first one in several
    axes come last, and only when all others are right: what is wrong with one value is not reported by its thousands.
    """
    results: dict[int, T] = {}
    near, far = _by_distance(items)
    for indices, most in ((near, len(near)), (far, MOST_FAILURES)):
        failed: list[L] = []
        causes: list[SpecError] = []
        for i in indices:
            try:
                results[i] = attempt(items[i])
            except SpecError as error:
                if len(items) == 1 and items[0].document.below is None:
                    raise
                failed.append(items[i])
                causes.append(error)
                if len(failed) >= most:
                    break
        if failed:
            tracer = Tracer(on_document)
            right = [items[i] for i in indices if i in results]
            raise failed[0].document.error(_problems(failed, right, tracer)) from causes[0]
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


def _problems(failed: Sequence[L], right: Sequence[L], tracer: Tracer) -> list[Problem]:
    """Every problem once. One that not all experiments with a value of the sweep have names the first that has it."""
    found: dict[tuple[object, ...], tuple[Traced, list[L]]] = {}
    for item in failed:
        for traced in tracer.trace(item.document).values():
            problem = traced.problem
            key = (problem.file, problem.line, problem.column, problem.where, problem.message, traced.title)
            found.setdefault(key, (traced, []))[1].append(item)
    problems = []
    for traced, having in found.values():
        title = traced.title
        if any(title in _coordinates(item) for item in right):
            title = having[0].label
        message = f"{title}: {traced.problem.message}" if title else traced.problem.message
        problems.append(replace(traced.problem, message=message))
    return problems


def _coordinates(item: Labelled) -> list[str]:
    return [f"{axis}={text}" for axis, text in item.axes.items() if axis != "variant"]
