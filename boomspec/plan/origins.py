"""Find which changed field forces which task, by recompiling one spec with the other's values.

    base x field --compile with the other side's value--> tasks; the ones that are changed are forced by the field

Where one field alone does not compile, the differing fields of its mapping are changed together. A task that no field
changes alone is forced by a smallest set of them. What is no field (contents of files, commits, what a search found)
forces what still differs when all fields have the other side's values. Where neither side can be compiled, fields are
matched with parameters by their names, and a task is forced by some of the fields: `Origin.exact` is False.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from pydantic import ValidationError

from boomspec.compile.compiler import Compiled, tasks_of
from boomspec.compile.resolved import FOLLOWING, unresolved
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.graph import Experiment, Task
from boomspec.core.tasks import KINDS
from boomspec.spec.spec_file import SpecFile
from boomspec.spec.yaml_reader import Location, Node

Path = tuple[str, ...]
Paths = frozenset[Path]
Fields = Sequence[Path]
Entry = Mapping[str, Any]  # kind, version, params and inputs of a task, as in a graph file
TASK_ORDER: Path = ("evaluate", "tasks", "order")  # of a report's columns: no field, but it may be all that differs


@dataclass(frozen=True)
class Side:
    """One experiment as it is compared."""

    names: Mapping[str, str]  # its tasks' ids by their names, each after its inputs
    entry: Callable[[str], Entry]  # of a task's id
    sources: Mapping[str, tuple[str, Mapping[str, Any]]]  # kind and identity by id
    meaning: dict[str, Any]
    waits: bool = False  # for a search, so that the tasks after it are not known
    label: str = ""
    compiled: Compiled | None = None  # what can be compiled again with other values; None for a graph file

    @cached_property
    def by_id(self) -> dict[str, str]:
        return {task_id: name for name, task_id in self.names.items()}

    def facts(self, name: str, *, indirect: bool) -> set[Path]:
        """Where the sources that a task reads stand in the meaning; `indirect`: also those of the tasks it needs."""
        found: set[Path] = set()
        waiting = [self.names[name]] if name in self.names else []
        seen = set(waiting)
        while waiting:
            for needed in self.entry(waiting.pop())["inputs"].values():
                if needed in self.sources:
                    kind, identity = self.sources[needed]
                    if kind == "model":
                        plain = {key: value for key, value in identity.items() if value is not None}
                        named = self.meaning["sources"].items()
                        kind = next((role for role, identity in named if identity == plain), "teacher")
                    found.add(("sources", "data" if kind in ("text", "hub_dataset") else kind))
                elif indirect and needed in self.by_id and needed not in seen:
                    waiting.append(needed)
                    seen.add(needed)
        return found


def side(compiled: Compiled, experiment: Experiment) -> Side:
    """An experiment of a compiled spec, or of a graph that was read."""
    graph = compiled.graph
    return Side(
        names=experiment.tasks,
        entry=lambda task_id: graph.nodes[task_id].task.identity(),
        sources={source.id: (source.kind, source.identity) for source in graph.sources.values()},
        meaning=experiment.meaning,
        waits=experiment.family is None,
        label=experiment.label,
        compiled=compiled if compiled.files else None,
    )


@dataclass(frozen=True)
class Origin:
    """The fields that force a task."""

    fields: Paths
    exact: bool = True  # each of them does; else some of them do


def origins(
    sides: tuple[Side, Side], fields: Fields, facts: Fields, borrowed: Mapping[Path, Path], wanted: Mapping[str, Fields]
) -> dict[str, Origin]:
    """What forces each of the tasks `wanted`: those of one side alone, and those whose given parameters differ.

    fields, facts: all that differs. borrowed: other fields, which differ as the one that their default comes from does.
    """
    if len(fields) == 1 and not facts:
        return {name: Origin(frozenset(fields)) for name in wanted}
    own_side, other = next((pair for pair in (sides[::-1], sides) if pair[0].compiled), (None, sides[0]))
    if own_side is None or not wanted:
        return {name: _guess(own, fields, facts) for name, own in wanted.items()}
    tasks_with = _compiler(own_side, other, borrowed)
    found: dict[str, set[Path]] = {name: set() for name in wanted}
    for path in fields:
        forced, names = _forced_by(path, tasks_with, fields, wanted)
        for name in names:
            found[name] |= forced
    if facts:
        every = tasks_with(frozenset(fields))
        left_over = set(wanted) if every is None else every.differing(_some(other, wanted), wanted)
        for name, own in wanted.items():
            found[name] |= _facts_read(name, own, facts, sides, left_over=name in left_over)
    exact = {name: Origin(frozenset(paths or _smallest(tasks_with, fields, name))) for name, paths in found.items()}
    return {name: one if one.fields else _guess(wanted[name], fields, facts) for name, one in exact.items()}


@dataclass(frozen=True)
class _Tasks:
    """The tasks of one experiment by their names."""

    tasks: Mapping[str, Task]
    names: Mapping[str, str]  # by their ids
    waits: bool  # for a search

    def differing(self, other: "_Tasks", names: Iterable[str]) -> set[str]:
        """Which of some tasks differ themselves, and not only by the tasks that they need."""

        def differs(one: Task | None, two: Task | None) -> bool:
            if one is not None and two is not None:
                own = {role: self.names.get(i, i) for role, i in one.inputs.items()}
                others = {role: other.names.get(i, i) for role, i in two.inputs.items()}
                return one.id != two.id and (one.record != two.record or own != others)
            there, waits = one or two, self.waits if one is None else other.waits
            return there is not None and (there.kind == "search" or not waits)  # after a search nothing is known

        return {name for name in names if differs(self.tasks.get(name), other.tasks.get(name))}


_TasksWith = Callable[[Paths], _Tasks | None]


def _some(side: Side, wanted: Collection[str]) -> _Tasks:
    """Some tasks of a side. One that this boomspec cannot read is left out, and so differs from any."""
    tasks = {}
    for name in side.names.keys() & set(wanted):
        entry = side.entry(side.names[name])
        with suppress(KeyError, ValidationError):
            tasks[name] = Task(KINDS[entry["kind"]].model_validate(entry["params"]), dict(entry["inputs"]))
    return _Tasks(tasks, side.by_id, side.waits)


def _compiler(side: Side, other: Side, borrowed: Mapping[Path, Path]) -> _TasksWith:
    """Gives a side's tasks with the other side's values of some fields; None where that does not compile."""
    assert side.compiled is not None
    compiled = side.compiled
    file = next(file for file in compiled.files if file.label == side.label)
    before, after, root = unresolved(side.meaning), unresolved(other.meaning), file.document.root

    def spec_with(paths: Paths) -> SpecFile:
        paths |= {borrower for borrower, lender in borrowed.items() if lender in paths}
        values = dict(before)
        for path in paths:
            _set(values, after, path)
        # The other sections stay the same nodes: what was read for them is known.
        sections = {path[0]: root.get(path[0]) or root for path in paths}
        nodes = {key: node for key, node in root.value.items() if key not in sections}
        nodes |= {key: _node(_as_written(key, values[key]), like) for key, like in sections.items() if key in values}
        while True:
            try:
                return file.with_document(replace(file.document, root=replace(root, value=nodes)))
            except SpecError as error:
                refused = [problem.location or () for problem in error.problems]
                if not any(_remove(nodes, place, paths) for place in refused):
                    raise

    @cache
    def tasks_with(paths: Paths) -> _Tasks | None:
        if not paths:
            nodes = compiled.graph.nodes
            return _Tasks({name: nodes[i].task for name, i in side.names.items()}, side.by_id, side.waits)
        with suppress(BoomspecError, OSError):
            tasks, waits = tasks_of(spec_with(paths), compiled.answers)
            return _Tasks(tasks, {task.id: name for name, task in tasks.items()}, waits)
        return None

    return tasks_with


def _forced_by(path: Path, tasks_with: _TasksWith, fields: Fields, wanted: Collection[str]) -> tuple[Paths, set[str]]:
    """The tasks that a field forces, and with which other fields: none where it compiles, alone or beside others."""
    for length in range(len(path), -1, -1):  # alone, then with the differing fields of its mapping, or of that one's
        group = frozenset(other for other in fields if other[:length] == path[:length])
        if (tasks := tasks_with(group)) is not None:
            without = tasks_with(group - {path})
            forced = group if without is None else frozenset([path])
            return forced, tasks.differing(without or tasks_with(frozenset()) or tasks, wanted)
    return frozenset(), set()


def _smallest(tasks_with: _TasksWith, fields: Fields, name: str) -> Paths:
    """Fields that together change a task, none of which can be left out; empty where all of them do not."""

    def changes(paths: Paths) -> bool:
        before, after = tasks_with(frozenset()), tasks_with(paths)
        return before is not None and after is not None and bool(after.differing(before, [name]))

    kept = frozenset(fields)
    if not changes(kept):
        return frozenset()
    for path in fields:
        kept = kept - {path} if changes(kept - {path}) else kept
    return kept


def _facts_read(name: str, own: Fields, facts: Fields, sides: tuple[Side, Side], *, left_over: bool) -> set[Path]:
    """Of the differing facts those that a task reads; where no field explains it, those of the tasks it needs, too."""
    reads = any(path[0] == "inputs" for path in own)
    direct = {fact for side in sides for fact in side.facts(name, indirect=False) if fact in facts}
    if (direct and reads) or not left_over:
        return direct if reads else set()
    indirect = {fact for side in sides for fact in side.facts(name, indirect=True)}
    return {fact for fact in facts if fact in indirect or fact[-1] == "found"} or set(facts)


def _guess(own: Fields, fields: Fields, facts: Fields) -> Origin:
    """The fields that are called like a parameter that differs; without such a field all of them."""
    every = [*fields, *facts]
    alike = frozenset(path for path in every if any(path[-1] in place for place in own)) or frozenset(every)
    return Origin(alike, exact=len(alike) == 1)


def _set(values: dict[str, Any], others: dict[str, Any], path: Path) -> None:
    """Give a field its other value. Where one side has no mapping around it, that is what the value is of."""
    if path == TASK_ORDER:
        tasks = values["evaluate"]["tasks"]
        values["evaluate"] = {**values["evaluate"], "tasks": {key: tasks[key] for key in others["evaluate"]["tasks"]}}
        return
    for length, key in enumerate(path, 1):
        inside, other = values.get(key), others.get(key)
        if length == len(path) or not (isinstance(inside, dict) and isinstance(other, dict)):
            values.pop(key, None)
            values |= {key: other} if key in others else {}
            return
        values[key] = dict(inside)
        values, others = values[key], other


def _as_written(section: str, value: Any) -> Any:
    """A section of a meaning as a spec says it."""
    if section == "baselines":
        value = [{kind: settings} for kind, settings in value.items()]
    elif section == "evaluate":
        tasks = [{"task": name, **settings} for name, settings in value["tasks"].items()]
        named = zip(tasks, value["tasks"], strict=True)
        value = {**value, "tasks": [task if task["task"] == name else {**task, "name": name} for task, name in named]}
    elif isinstance(value, dict):
        value = {key: item for key, item in value.items() if (section, key) not in FOLLOWING and item is not None}
    return value


def _remove(nodes: dict[str, Node], place: Location, changed: Collection[Path]) -> bool:
    """Remove a value that the language refuses beside the others; a meaning has it where it has no effect, too."""
    inside: Any = nodes if place[:1] in {path[:1] for path in changed} else {}
    for key in place[:-1]:
        inside = inside[key].value if isinstance(inside, dict) and key in inside else {}
    found = inside.get(place[-1]) if place and isinstance(inside, dict) else None
    if found is None or place in changed or isinstance(found.value, dict):
        return False
    del inside[place[-1]]
    return True


def _node(value: Any, like: Node) -> Node:
    """Plain data as nodes, with the places of the nodes that stood there: paths are relative to their files."""
    if isinstance(value, dict):
        value = {key: _node(item, like.get(key) or like) for key, item in value.items()}
    elif isinstance(value, list):
        value = tuple(_node(item, like.get(i) or like) for i, item in enumerate(value))
    return replace(like, value=value)
