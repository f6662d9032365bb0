"""How two experiments differ: which fields of their specs, which tasks that changes, and which field forces which.

    meaning A, meaning B --differences--> fields, with their old and new values
    graph A, graph B     --compare------> each task same, changed, added or removed, and why
    both                 ---------------> the class of every field: what the graphs say, not where it stands

Tasks are paired by their names in the two experiments. A task is changed by its own parameters, by what it reads, or
only because an input is another one; `boomspec.plan.origins` leads from parameters to fields. Where several differing
fields make one parameter together (tokens and batch tokens make steps), each of them is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from boomspec.compile.resolved import BORROWED, FOLLOWING, unresolved
from boomspec.core.graph import Experiment, TaskGraph
from boomspec.core.tasks import SHOWING
from boomspec.plan.field_text import title
from boomspec.plan.origins import Path, origins, presence, touches

Class = Literal["results", "execution", "cosmetic"]
State = Literal["same", "changed", "added", "removed"]
# Of what is no field of a task. Everything else that no graph can tell about counts as changing results.
_SECTIONS: dict[Path, Class] = {
    ("execution",): "execution",
    ("name",): "cosmetic",
    ("determinism", "tolerance"): "cosmetic",
}

_BY_CONTENTS = {("data", "format"), ("data", "text_field")}  # defaults that only a compiled spec has


@dataclass(frozen=True)
class Difference:
    """One value that two sides have differently; None where a side has none."""

    path: Path
    old: Any
    new: Any

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def title(self) -> str:
        """What a person calls it."""
        return title(self.path)


@dataclass(frozen=True)
class Field(Difference):
    """A differing field of the spec, and the names of the tasks that it changes itself, without those behind them.

    `exact`: the class is what the compiled graphs say; else what the section of the spec says.
    """

    kind: Class
    tasks: tuple[str, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class TaskChange:
    """What becomes of one task, and why.

    own: parameters that differ, and sources. inputs: names of the tasks that it needs and that are others now; of a
    task that only one side has, those that this side alone has, too.
    fields: names of the differing fields that force it: its own ones, then those that reach it through its inputs.
    """

    name: str
    kind: str
    id: str
    state: State
    own: tuple[Difference, ...] = ()
    inputs: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changes:
    fields: tuple[Field, ...]
    tasks: tuple[TaskChange, ...]  # in the order of the newer graph; removed ones behind
    waiting: bool = False  # a side waits for a search: the tasks behind it are not known and not compared

    def of(self, *states: State) -> tuple[TaskChange, ...]:
        return tuple(task for task in self.tasks if task.state in states)

    @property
    def changes_results(self) -> bool:
        numbers = any(task.state != "same" and task.kind not in SHOWING for task in self.tasks)
        return numbers or any(field.kind == "results" for field in self.fields)


@dataclass(frozen=True)
class Side:
    """One experiment as it is compared: its tasks' ids by their names, each behind its inputs, and what they are."""

    names: Mapping[str, str]
    entry: Callable[[str], Mapping[str, Any]]  # from an id to kind, version, params, inputs, as in a graph file
    meaning: dict[str, Any]
    waits: bool = False  # for a search, so that the tasks behind it are not known

    @cached_property
    def by_id(self) -> dict[str | None, str]:
        return {task_id: name for name, task_id in self.names.items()}


def side(graph: TaskGraph, experiment: Experiment) -> Side:
    """An experiment of a compiled graph."""

    def entry(task_id: str) -> Mapping[str, Any]:
        return graph.nodes[task_id].task.identity()

    return Side(experiment.tasks, entry, experiment.meaning, waits=experiment.family is None)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    """The fields in which two meanings differ, without those that only follow from others; in the language's order."""
    return _found(old, new)[0]


def compare(old: Side, new: Side) -> Changes:
    """Compare two compiled experiments."""
    found, aliases = _found(old.meaning, new.meaning)
    waiting = old.waits or new.waits
    if waiting:  # what only the tasks behind the search read is not known either
        found = [d for d in found if d.path[0] != "sources" or (d.old is not None and d.new is not None)]
    blame = _Blame(found, aliases)
    tasks: dict[str, TaskChange] = {}
    known, now = set(old.names.values()), set(new.names.values())
    for name, task_id in new.names.items():
        if task_id in known:
            tasks[name] = TaskChange(name, new.entry(task_id)["kind"], task_id, "same")
        elif name in old.names:
            tasks[name] = blame.changed(name, old, new, tasks)
        elif _is_known(old, new.entry(task_id)["kind"]):
            tasks[name] = blame.present(name, new, tasks, "added")
    for name, task_id in old.names.items():
        gone = name not in new.names and task_id not in now
        if gone and _is_known(new, old.entry(task_id)["kind"]):
            tasks[name] = blame.present(name, old, tasks, "removed")
    fields = tuple(_classified(d, blame.direct.get(d.name, {}), exact=not waiting) for d in found)
    return Changes(fields, tuple(tasks.values()), waiting)


def compare_meanings(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    """Compare what two specs say where one cannot be compiled: no tasks, and classes by the section of the spec."""
    plain = [{k: v for k, v in unresolved(said).items() if k != "sources"} for said in (old, new)]
    found = (d for d in _found(*plain)[0] if d.path not in _BY_CONTENTS or (d.old is not None and d.new is not None))
    return Changes(tuple(_classified(d, {}, exact=False) for d in found), ())


def _is_known(side: Side, kind: str) -> bool:
    """Whether a task of this kind that is not there is one that the experiment does not have.

    Behind a search nothing is known, and of several experiments none has a report of its own.
    """
    return kind == "search" or not (side.waits or kind in SHOWING)


class _Blame:
    """Finds the fields that force tasks, and collects which tasks each field changes itself."""

    def __init__(self, found: list[Difference], aliases: dict[Path, Path]) -> None:
        self._found, self._aliases = found, aliases
        self.direct: dict[str, dict[str, str]] = {}  # field -> name of a task -> its kind

    def changed(self, name: str, old: Side, new: Side, done: Mapping[str, TaskChange]) -> TaskChange:
        """A task that both sides have, with different ids."""
        before, after = old.entry(old.names[name]), new.entry(new.names[name])
        own = [d for part in ("version", "params") for d in _leaves(before[part], after[part], ())]
        inputs: dict[str, None] = {}
        for role in dict.fromkeys([*after["inputs"], *before["inputs"]]):
            a, b = before["inputs"].get(role), after["inputs"].get(role)
            if a == b:
                continue
            first, second = old.by_id.get(a, a and a[:12]), new.by_id.get(b, b and b[:12])
            if first == second:
                inputs[second] = None
            else:
                own.append(Difference(("inputs", role), first, second))
        kind = after["kind"]
        wanted = {origin for d in own for origin in origins(kind, name, d.path)}
        return self._change(name, kind, new.names[name], "changed", own, inputs, wanted, done)

    def present(self, name: str, where: Side, done: Mapping[str, TaskChange], state: State) -> TaskChange:
        """A task that only one side has."""
        entry, names = where.entry(where.names[name]), where.by_id
        needs = [names[i] for i in dict.fromkeys(entry["inputs"].values()) if i in names]
        inputs = [need for need in needs if need in done and done[need].state == state]
        return self._change(
            name, entry["kind"], where.names[name], state, [], inputs, presence(entry["kind"], name), done
        )

    def _change(
        self,
        name: str,
        kind: str,
        task_id: str,
        state: State,
        own: list[Difference],
        inputs: Iterable[str],
        wanted: set[Path],
        done: Mapping[str, TaskChange],
    ) -> TaskChange:
        fields = dict.fromkeys(d.name for d in self._found if any(self._touches(d, origin) for origin in wanted))
        for field in fields:
            self.direct.setdefault(field, {})[name] = kind
        for needed in inputs:
            fields |= dict.fromkeys(done[needed].fields)
        return TaskChange(name, kind, task_id, state, tuple(own), tuple(inputs), tuple(fields))

    def _touches(self, difference: Difference, origin: Path) -> bool:
        borrowers = (borrower for borrower, lender in self._aliases.items() if lender == difference.path)
        return any(touches(path, origin) for path in (difference.path, *borrowers))


def _classified(difference: Difference, tasks: dict[str, str], *, exact: bool) -> Field:
    path = difference.path
    by_section: Class = next((kind for start, kind in _SECTIONS.items() if path[: len(start)] == start), "results")
    if set(tasks.values()) - SHOWING:
        by_section, exact = "results", True
    elif exact and by_section == "results":
        by_section = "cosmetic"
    return Field(path, difference.old, difference.new, by_section, tuple(tasks), exact or by_section != "results")


def _found(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[Difference], dict[Path, Path]]:
    """The differing fields, and the borrowed defaults that differ as their lender does: borrower -> lender."""
    if ("written" in old) != ("written" in new):
        old, new = unresolved(old), unresolved(new)
    found = {d.path: d for d in _fields(old, new, ()) if not _follows(d.path, old, new)}
    aliases = {
        borrower: lender
        for borrower, lender in BORROWED.items()
        if borrower in found and lender in found
        if (found[borrower].old, found[borrower].new) == (found[lender].old, found[lender].new)
    }
    return [d for path, d in found.items() if path not in aliases], aliases


def _fields(old: Any, new: Any, path: Path) -> Iterator[Difference]:
    """`_leaves` of two meanings. What is read is compared as a whole, sizes are named by their labels."""
    if path and path[0] != "evaluate" and old == new:
        return  # quickly: most of two meanings is the same, and only tasks have an order that shows
    if path == ("interpolate", "sizes"):
        old, new = (list(value) if isinstance(value, dict) else value for value in (old, new))
    if not (isinstance(old, dict) and isinstance(new, dict)) or (path[:1] == ("sources",) and len(path) == 2):
        yield from _leaves(old, new, path, deep=False)
        return
    for key in dict.fromkeys([*new, *old]):
        yield from _fields(old.get(key), new.get(key), (*path, key))
    if path == ("evaluate", "tasks") and old.keys() == new.keys():
        yield from _leaves(list(old), list(new), (*path, "order"))  # of the columns of a report


def _leaves(old: Any, new: Any, path: Path, *, deep: bool = True) -> Iterator[Difference]:
    """Every place at which two trees of plain data differ; lists are compared as wholes."""
    if deep and isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):
            yield from _leaves(old.get(key), new.get(key), (*path, key))
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield Difference(path, old, new)


def _follows(path: Path, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a value is worked out, from a rule that is the same on both sides. What a search found is none."""
    if path[:1] in FOLLOWING or path[:2] in FOLLOWING:
        return True
    if "written" not in old or path[-1:] == ("found",):
        return False
    before, after = old["written"], new["written"]
    if path[:2] == ("student", "keep"):
        return bool(before.get("keep") == after.get("keep"))
    if path[:1] == ("interpolate",) and len(path) > 1:
        return bool(before["interpolate"][path[1]] == after["interpolate"][path[1]])
    return False
