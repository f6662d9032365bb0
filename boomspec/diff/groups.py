"""What is said of a comparison, whatever it is printed as: each thing once, for all experiments that it holds for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from boomspec.core.format import shown_seconds, with_unit
from boomspec.diff.compared import Diff, Pair, Size
from boomspec.diff.results import THRESHOLD, Compared, Moved
from boomspec.plan.changes import Changes, Field, State, TaskChange, count, listed

CLASSES = {"results": "Changes results", "execution": "Execution only", "cosmetic": "Cosmetic"}
MARKS = {"changed": "~", "added": "+", "removed": "-"}
_DONE: dict[State, str] = {"changed": "done anew", "added": "new", "removed": "no longer made", "same": "the same"}


@dataclass(frozen=True)
class Group:
    """Experiments that differ alike."""

    labels: tuple[str, ...]
    changes: Changes
    sizes: tuple[Size, ...]
    exact: bool

    @property
    def heading(self) -> str:
        """ "" where there is one experiment and it has no label."""
        return "" if self.labels == ("",) else listed(self.labels)


def groups(diff: Diff) -> list[Group]:
    """The pairs that differ, those together that differ in the same fields and tasks."""
    found: dict[tuple[object, ...], list[Pair]] = {}
    for pair in diff.pairs:
        changed = [(task.name, task.state) for task in pair.changes.tasks if task.state != "same"]
        if pair.changes.fields or changed:
            fields = [(field.path, repr(field.old), repr(field.new), field.kind) for field in pair.changes.fields]
            found.setdefault((*fields, *changed), []).append(pair)
    return [
        Group(tuple(p.new.label or p.old.label for p in pairs), pairs[0].changes, pairs[0].sizes, pairs[0].exact)
        for pairs in found.values()
    ]


def reached(field: Field, changes: Changes) -> int:
    """How many tasks a field changes, with those behind."""
    return sum(field.name in task.fields for task in changes.tasks if task.state != "same")


def consequence(field: Field, changes: Changes) -> str:
    """What a field does, in a few words."""
    if tasks := reached(field, changes):
        return count(tasks, "task")
    return "" if field.exact else "by its section"


def follows(task: TaskChange, changes: Changes) -> bool:
    """Whether no field forces a task that does not force one of its inputs already."""
    own = {field.name for field in changes.fields if task.name in field.tasks}
    above = {name for other in changes.tasks if other.name in task.inputs for name in other.fields}
    return bool(task.inputs) and own <= above


def folded(names: Iterable[str]) -> list[str]:
    """Names of tasks, the evaluations of one model in one: "evaluate student (held_out, arc_easy)"."""
    found: dict[str, list[str]] = {}
    for name in names:
        model, _, measure = name.rpartition(": ") if name.startswith("evaluate ") else (name, "", "")
        found.setdefault(model, []).append(measure)
    return [f"{model} ({', '.join(measures)})" if any(measures) else model for model, measures in found.items()]


def why(task: TaskChange, changes: Changes) -> str:
    """Why a task is not the same: its own fields, or the inputs that reach it."""
    own = [field.title for field in changes.fields if task.name in field.tasks]
    if own:
        return ("some of: " if task.some_of else "") + listed(own, most=3)
    if task.inputs:
        return f"its input {listed(task.inputs, most=1)}"
    return listed((difference.title for difference in task.own), most=3)


def counted(changes: Changes) -> str:
    """12 done anew, 3 new, 1 no longer made, 25 the same."""
    states = Counter(task.state for task in changes.tasks)
    return ", ".join(f"{states[state]} {words}" for state, words in _DONE.items() if states[state])


def effort(diff: Diff) -> str:
    """What it costs to do the tasks of the newer side that the older one's store would not have."""
    parts, cost = [count(len(diff.anew), "task")], diff.effort
    least = "at least " if cost.unknown else ""
    if cost.flops:
        parts.append(f"{least}{with_unit(cost.flops)}")
    if cost.seconds is not None:
        parts.append(f"about {shown_seconds(cost.seconds)} on this machine")
    if cost.devices:
        times = (f"{shown_seconds(seconds)} on {name}" for name, seconds in cost.devices.items())
        parts.append(f"GPU time: {least}{' or '.join(times)}")
    return ", ".join(parts)


def remarks(diff: Diff) -> Iterator[str]:
    """What has to be known to read the rest."""
    for side in (diff.old, diff.new):
        if side.problem is not None:
            first = side.problem.splitlines()[0].partition(". ")[0]
            yield f"{side.named} cannot be compiled here, so tasks are not compared: {first}"
        if side.note is not None:
            yield f"{side.named}: {side.note}"
    if any(pair.changes.waiting for pair in diff.pairs):
        yield "a side waits for a search: the tasks behind it are not known yet, and not compared"
    if diff.added:
        yield f"experiments of {diff.new.named} alone: {listed(diff.added)}"
    if diff.removed:
        yield f"experiments of {diff.old.named} alone: {listed(diff.removed)}"


def verdict(diff: Diff) -> str:
    """One sentence for the top."""
    fields = {(f.name, f.kind) for pair in diff.pairs for f in pair.changes.fields}
    kinds = Counter(kind for _, kind in fields)
    if kinds["results"]:
        return (
            f"{count(kinds['results'], 'field')} that changes results."
            if kinds["results"] == 1
            else (f"{kinds['results']} fields that change results.")
        )
    if any(pair.changes.changes_results for pair in diff.pairs):
        return "The same fields, but other tasks."
    if diff.added or diff.removed:
        return "Other experiments."
    return "They mean the same." if not fields else "They mean the same results."


def judged(results: Compared) -> str:
    """How many numbers were compared, and how many of them moved."""
    total, moved = len(results.judged), len(results.moved)
    if not total:
        same = "; all numbers are of the same evaluations" if results.shared else ""
        return f"No results to compare{same}."
    expected = total * math.erfc(THRESHOLD / math.sqrt(2))
    chance = f" (of {total}, about {expected:.1f} do so by chance)" if total > 1 else ""
    return f"{moved} of {count(total, 'number')} moved by more than {THRESHOLD:g} standard errors{chance}."


def number(moved: Moved) -> tuple[str, str, str]:
    """Old value, new value, and their difference with its standard error."""
    error = "" if moved.stderr is None else f" ± {moved.stderr:.2g}"
    return f"{moved.old.value:.4g}", f"{moved.new.value:.4g}", f"{moved.difference:+.3g}{error}"


def direction(moved: Moved) -> str:
    """better, worse, moved, noise; nothing where there is no verdict."""
    if moved.moved is None:
        return ""
    if not moved.moved:
        return "noise" if moved.difference else "same"
    return {True: "better", False: "worse", None: "moved"}[moved.better]
