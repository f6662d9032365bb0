"""How two experiments differ: which fields of their specs, which tasks that changes, and which field forces which.

    meaning A, meaning B --differences--> fields, with their old and new values
    side A, side B       --compare------> each task same, changed, added or removed, and the fields that force it

Tasks are paired by their names in the two experiments. A task is changed by its own parameters, by what it reads, or
only because an input is another one; `boomspec.plan.origins` finds the fields. The class of a field is what the tasks
say, not its section: a field that changes no task is cosmetic.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from boomspec.compile.resolved import BORROWED, FOLLOWING, unresolved
from boomspec.core.tasks import SHOWING
from boomspec.plan.origins import TASK_ORDER, Origin, Path, Side, origins

Class = Literal["results", "execution", "cosmetic"]
State = Literal["same", "changed", "added", "removed"]
# The classes of fields that no task has. Every other field may change results.
_SECTIONS: dict[Path, Class] = {
    ("execution",): "execution",
    ("name",): "cosmetic",
    ("determinism", "tolerance"): "cosmetic",
}
_BY_CONTENTS = {("data", "format"), ("data", "text_field")}  # defaults that only a compiled spec has
_OF_ENVIRONMENT = {("version",), ("transformers",)}  # of a task: no spec can change them
_READ = {
    "data": "contents of data",
    "held_out_text": "contents of data.held_out.files",
    "teacher": "contents of teacher.model",
    "student": "contents of student.model",
    "transfer base": "contents of student.transfer.base",
    "transfer from": "contents of student.transfer.from",
    "transferred student": "the spec that student.transfer.from names",
    "tokenizer": "tokenizer of teacher.model",
    "lm_eval_tasks": "contents of evaluate.tasks",
}
_DIGEST = 12  # characters of one that people are shown


@dataclass(frozen=True)
class FieldChange:
    """One value that two sides have differently; None where a side has none."""

    path: Path
    old: Any
    new: Any

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def title(self) -> str:
        """The name for people: "distill.losses.kl.weight", "contents of data"."""
        return _READ.get(self.path[1], self.path[1]) if self.path[:1] == ("sources",) and self.path[1:] else self.name


@dataclass(frozen=True)
class Field(FieldChange):
    """A differing field of the spec, and the names of the tasks that it changes itself, not of those that need them."""

    kind: Class
    tasks: tuple[str, ...] = ()
    exact: bool = True  # the class is what the compiled tasks say; else what the section of the spec says


@dataclass(frozen=True)
class TaskChange:
    """What becomes of one task, and why."""

    name: str
    kind: str
    id: str
    state: State
    own: tuple[FieldChange, ...] = ()  # parameters that differ, and sources
    inputs: tuple[str, ...] = ()  # of the tasks that it needs those that are others now, or that its side alone has
    fields: tuple[str, ...] = ()  # that differ and force it: its own ones, then those that reach it through its inputs
    some_of: bool = False  # it could not be found out which of its own fields do


@dataclass(frozen=True)
class Changes:
    fields: tuple[Field, ...]
    tasks: tuple[TaskChange, ...]  # in the order of the newer graph; removed ones last
    waiting: bool = False  # a side waits for a search: the tasks after it are not known and not compared

    def of(self, *states: State) -> tuple[TaskChange, ...]:
        return tuple(task for task in self.tasks if task.state in states)

    @property
    def changes_results(self) -> bool:
        numbers = any(task.state != "same" and task.kind not in SHOWING for task in self.tasks)
        return numbers or any(field.kind == "results" for field in self.fields)


# Origins that are known already: experiments of a sweep mostly differ from their partners alike.
Known = dict[object, dict[str, Origin]]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[FieldChange]:
    """The fields in which two meanings differ, without those that only follow from others; in the language's order."""
    return _found(old, new)[0]


def compare(old: Side, new: Side, known: Known | None = None) -> Changes:
    known = {} if known is None else known
    found, borrowed = _found(old.meaning, new.meaning)
    waiting = old.waits or new.waits
    if waiting:  # what only the tasks after the search read is not known either
        found = [d for d in found if d.path[0] != "sources" or (d.old is not None and d.new is not None)]
    tasks = list(_tasks(old, new))
    wanted = {
        task.name: [d.path for d in task.own]
        for task in tasks
        if task.state in ("added", "removed") or any(d.path not in _OF_ENVIRONMENT for d in task.own)
    }
    able = [d for d in found if not any(d.path[: len(start)] == start for start in _SECTIONS)]
    facts = [d.path for d in able if d.path[0] == "sources" or d.path[-1] == "found"]
    fields = [d.path for d in able if d.path not in facts]
    key = (*((d.path, repr(d.old), repr(d.new)) for d in able), *((name, *own) for name, own in wanted.items()))
    if key not in known:
        known[key] = origins((old, new), fields, facts, borrowed, wanted)
    forced = {task.name: known[key].get(task.name, Origin(frozenset())) for task in tasks}
    by_field = {d.path: {t.name: t.kind for t in tasks if d.path in forced[t.name].fields} for d in found}
    done: dict[str, TaskChange] = {}
    for task in tasks:
        names = dict.fromkeys(d.name for d in found if task.name in by_field[d.path])
        for needed in task.inputs:
            names |= dict.fromkeys(done[needed].fields)
        done[task.name] = replace(task, fields=tuple(names), some_of=not forced[task.name].exact)
    classified = tuple(_classified(d, by_field[d.path], exact=not waiting) for d in found)
    return Changes(classified, tuple(done.values()), waiting)


def compare_meanings(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    """Compare the meanings of two specs of which one cannot be compiled: no tasks, and classes by section."""
    plain = [{k: v for k, v in unresolved(meaning).items() if k != "sources"} for meaning in (old, new)]
    found = (d for d in _found(*plain)[0] if d.path not in _BY_CONTENTS or (d.old is not None and d.new is not None))
    return Changes(tuple(_classified(d, {}, exact=False) for d in found), ())


def _tasks(old: Side, new: Side) -> Iterator[TaskChange]:
    """What becomes of every task, without the fields that force it."""
    known, now = set(old.names.values()), set(new.names.values())
    alone: set[str] = set()  # tasks that one side alone has

    def of_one(name: str, side: Side, other: Side, state: State) -> Iterator[TaskChange]:
        entry = side.entry(task_id := side.names[name])
        # After a search nothing is known, and of several experiments none has a report of its own.
        if entry["kind"] == "search" or not (other.waits or entry["kind"] in SHOWING):
            needs = [side.by_id[i] for i in dict.fromkeys(entry["inputs"].values()) if i in side.by_id]
            alone.add(name)
            yield TaskChange(name, entry["kind"], task_id, state, inputs=tuple(n for n in needs if n in alone))

    for name, task_id in new.names.items():
        if task_id in known:
            yield TaskChange(name, new.entry(task_id)["kind"], task_id, "same")
        elif name in old.names:
            yield _changed(name, old, new)
        else:
            yield from of_one(name, new, old, "added")
    alone.clear()
    for name, task_id in old.names.items():
        if name not in new.names and task_id not in now:
            yield from of_one(name, old, new, "removed")


def _changed(name: str, old: Side, new: Side) -> TaskChange:
    """A task that both sides have, with different ids."""
    before, after = old.entry(old.names[name]), new.entry(new.names[name])
    own = [*_leaves(before["version"], after["version"], ("version",)), *_leaves(before["params"], after["params"], ())]
    inputs: dict[str, None] = {}
    for role in dict.fromkeys([*after["inputs"], *before["inputs"]]):
        a, b = before["inputs"].get(role), after["inputs"].get(role)
        first, second = (i and side.by_id.get(i, i[:_DIGEST]) for side, i in ((old, a), (new, b)))
        if a != b and first == second:
            inputs[str(second)] = None
        elif a != b:
            own.append(FieldChange(("inputs", role), first, second))
    return TaskChange(name, after["kind"], new.names[name], "changed", tuple(own), tuple(inputs))


def _classified(difference: FieldChange, tasks: dict[str, str], *, exact: bool) -> Field:
    path = difference.path
    kind: Class = next((kind for start, kind in _SECTIONS.items() if path[: len(start)] == start), "results")
    if set(tasks.values()) - SHOWING:
        kind, exact = "results", True
    elif exact and kind == "results":
        kind = "cosmetic"
    return Field(path, difference.old, difference.new, kind, tuple(tasks), exact or kind != "results")


def _found(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[FieldChange], dict[Path, Path]]:
    """The differing fields, and the borrowed defaults that differ as their lender does: borrower -> lender."""
    if ("written" in old) != ("written" in new):
        old, new = unresolved(old), unresolved(new)
    found = {d.path: d for d in _fields(old, new, ()) if not _follows(d.path, old, new)}
    borrowed = {
        borrower: lender
        for borrower, lender in BORROWED.items()
        if borrower in found and lender in found
        if (found[borrower].old, found[borrower].new) == (found[lender].old, found[lender].new)
    }
    return [d for path, d in found.items() if path not in borrowed], borrowed


def _fields(old: Any, new: Any, path: Path) -> Iterator[FieldChange]:
    """`_leaves` of two meanings. What is read is compared as a whole, sizes are named by their labels."""
    if path and path[0] != "evaluate" and old == new:
        return  # most of two meanings is the same, and only lm-eval tasks have an order that shows
    if path == ("interpolate", "sizes"):
        old, new = (list(value) if isinstance(value, dict) else value for value in (old, new))
    if not (isinstance(old, dict) and isinstance(new, dict)) or (path[:1] == ("sources",) and len(path) == 2):
        yield from _leaves(old, new, path, deep=False)
        return
    for key in dict.fromkeys([*new, *old]):
        yield from _fields(old.get(key), new.get(key), (*path, key))
    if path == TASK_ORDER[:-1] and old.keys() == new.keys():
        yield from _leaves(list(old), list(new), TASK_ORDER)


def _leaves(old: Any, new: Any, path: Path, *, deep: bool = True) -> Iterator[FieldChange]:
    """Every place at which two trees of plain data differ; lists are compared as wholes."""
    if deep and isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):
            yield from _leaves(old.get(key), new.get(key), (*path, key))
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield FieldChange(path, old, new)


def _follows(path: Path, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a value is worked out, from a rule that is the same on both sides. What a search found is not."""
    if path[:1] in FOLLOWING or path[:2] in FOLLOWING:
        return True
    if "written" not in old or path[-1:] == ("found",):
        return False
    before, after = old["written"], new["written"]
    if path[:2] == ("student", "keep"):
        return bool(before.get("keep") == after.get("keep"))
    in_family = path[:1] == ("interpolate",) and len(path) > 1
    return in_family and bool(before["interpolate"].get(path[1]) == after["interpolate"].get(path[1]))


def shown(value: Any, *, width: int = 60) -> str:
    """A value on one line, cut in its middle where it is long; "-" where there is none."""
    text = _text(value)
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"


def listed(names: Iterable[str], *, most: int = 6) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case str():
            return value
        case {"hub": hub, "revision": revision, **rest}:
            more = "".join(f" {key} {item}" for key, item in rest.items() if key in ("config", "split"))
            return f"{hub}@{str(revision)[:_DIGEST]}{more}"
        case {"files": files, "id": digest}:
            return f"{files}, {digest}"
        case {"sha256": dict(files)}:
            return ", ".join(f"{name} {digest[:_DIGEST]}" for name, digest in files.items())
        case {"lm_eval": _} | {"folder": _}:
            return ", ".join(f"{key.replace('_', '-')} {str(item)[:_DIGEST]}" for key, item in value.items())
        case dict():
            return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_text, value)) + "]"
        case _:
            return json.dumps(value)
