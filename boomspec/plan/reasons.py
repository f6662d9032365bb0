"""Explain a cache miss by the changed spec field; the basic reason is set in `plan.py`.

    plan x graph x <store>/runs/<name>-*/graph.json --explained--> the plan, with fields of the spec as reasons

An earlier run is one of the same name in the same store; of several the newest that has a task of this name counts.
Their graphs are read as plain data and few, and of a large sweep the first experiments are explained: a store may hold
thousands of runs, and a plan of a thousand experiments is read as a summary.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boomspec.compile.compiler import Compiled
from boomspec.core.files import read_json
from boomspec.core.graph import SCHEMA_VERSION
from boomspec.core.tasks import SHOWING, TRAININGS
from boomspec.plan.changes import Changes, FieldChange, Known, TaskChange, compare, shown
from boomspec.plan.origins import Side, side
from boomspec.plan.plan import ABSENT, RunPlan, Step
from boomspec.store import Store
from boomspec.store.made_of import contents_of, key_of

_MOST_RUNS = 10
_MOST_BYTES = 16 * 2**20
_MOST_EXPERIMENTS = 64
_BASES = ("base", "")  # what an experiment that is new is compared with
_ENDED = {"failed": "failed", "interrupted": "was interrupted", "blocked": "was blocked"}
_MADE = ("finished", "reused", "unneeded")
_IDENTITY = ("kind", "version", "params", "inputs")


@dataclass(frozen=True)
class _Earlier:
    sides: dict[str, Side]  # its experiments by label
    when: str
    states: Mapping[str, str]  # how its tasks ended


def with_reasons(plan: RunPlan, compiled: Compiled, store: Store) -> RunPlan:
    """The plan with a reason for every task that runs although an earlier run of this name had a task of its name."""
    steps, graph, origins = dict(plan.steps), compiled.graph, Known()
    alike: dict[str, tuple[str, Side]] = {}  # tasks that differ in their inputs alone: what they were, by their ids
    known = {i for experiment in graph.experiments[:_MOST_EXPERIMENTS] for i in experiment.tasks.values()}
    open_tasks = {i for i in known if steps[i].action == "run" and steps[i].reason == ABSENT}
    for earlier in _earlier_runs(store, graph.name) if open_tasks else ():
        for experiment in graph.experiments[:_MOST_EXPERIMENTS]:
            wanted = open_tasks.intersection(experiment.tasks.values())
            old = next((earlier.sides[label] for label in (experiment.label, *_BASES) if label in earlier.sides), None)
            if old is None or not any(name in old.names for name, i in experiment.tasks.items() if i in wanted):
                continue
            changes = compare(old, side(compiled, experiment), origins)
            trained_otherwise = _trained_otherwise(changes)
            for task in changes.tasks:
                if task.id in wanted and task.state != "removed":
                    reason = f"{ABSENT}: {_why(task, changes, earlier, steps, experiment.tasks)}"
                    steps[task.id] = replace(steps[task.id], reason=reason, fields=task.fields)
                    open_tasks.discard(task.id)
                    if task.state == "changed" and task.inputs and not task.own and task.name not in trained_otherwise:
                        alike[task.id] = old.names[task.name], old
        if not open_tasks:
            break
    for task_id in _still_there(store, alike):
        reason = f"{steps[task_id].reason}; it runs only if that comes out otherwise than before"
        steps[task_id] = replace(steps[task_id], reason=reason, if_inputs_differ=True)
    return RunPlan(steps)


def _trained_otherwise(changes: Changes) -> set[str]:
    """The trainings that other settings make others, and all that needs them: they will not come out as before."""
    found: set[str] = set()
    for task in changes.tasks:  # a task stands after those that it needs
        settings = any(own.path[0] not in ("version", "inputs") for own in task.own)
        if (task.kind in TRAININGS and settings) or found.intersection(task.inputs):
            found.add(task.name)
    return found


def _still_there(store: Store, alike: Mapping[str, tuple[str, Side]]) -> Iterator[str]:
    """Of tasks that were others, which only their inputs made so, those whose results would be found again."""
    entries = {i: (old, side.entry(old), side) for i, (old, side) in alike.items()}
    read = {
        i: (entry["kind"], old, {n: side.entry(n)["kind"] for n in entry["inputs"].values() if n in side.by_id})
        for i, (old, entry, side) in entries.items()
        if entry["kind"] not in SHOWING
    }
    wanted = {(kind, n) for _, _, kinds in read.values() for n, kind in kinds.items()}
    records = store.records(wanted | {(kind, old) for kind, old, _ in read.values()}, unread={})
    contents = {n: contents_of(record) for (_, n), record in records.items()}
    keys: dict[str, dict[str, str]] = {}  # by kind, then by id
    for i, (kind, old, kinds) in read.items():
        if (kind, old) in records and kinds.keys() <= contents.keys():
            keys.setdefault(kind, {})[i] = key_of({name: entries[i][1][name] for name in _IDENTITY}, contents)
    for kind, own in keys.items():
        listed = store.ids_by_key(kind, own.values())
        yield from (i for i, key in own.items() if read[i][1] in listed.get(key, ()))


def _why(task: TaskChange, changes: Changes, earlier: _Earlier, steps: dict[str, Step], ids: dict[str, str]) -> str:
    run = f"the run of {earlier.when}"
    if task.state == "same":
        state = earlier.states.get(task.id)
        if state in _ENDED:
            return f"it {_ENDED[state]} in {run}"
        return f"it was there in {run} and is gone" if state in _MADE else f"{run} did not come to it"
    own: list[FieldChange] = [field for field in changes.fields if task.name in field.tasks]
    more = f" (and {len(own) - 1} more)" if len(own) > 1 else ""
    if own := own or list(task.own):
        named, old, new = own[0].title, shown(own[0].old), shown(own[0].new)
        if own[0].new is None:
            return f"{named} is left out, was {old} in {run}{more}"
        return f"{named} is {new}, was {'not there' if own[0].old is None else old} in {run}{more}"
    if running := [name for name in task.inputs if name in ids and steps[ids[name]].action == "run"]:
        return f"its input {running[0]} runs"
    return f"its input {task.inputs[0]} is another one than in {run}" if task.inputs else f"new since {run}"


def _earlier_runs(store: Store, name: str) -> Iterator[_Earlier]:
    """The newest first. What cannot be read explains nothing, and hinders nobody."""
    found = []
    for folder in store.run_folders(beginning=f"{name}-"):
        with suppress(OSError):
            if re.fullmatch(r"-.{8}", folder.name.removeprefix(name)):
                file = (folder / "graph.json").stat()
                found.append((file.st_mtime, folder, file.st_size))
    read = 0
    for when, folder, size in sorted(found, reverse=True)[:_MOST_RUNS]:
        if (read := read + size) > _MOST_BYTES:
            return
        graph, status = _json(folder / "graph.json"), _json(folder / "status.json")
        if graph.get("boomspec_graph") != SCHEMA_VERSION or graph.get("name") != name:
            continue  # another version, or another name that begins alike
        try:
            sources = {i: (source["kind"], source["identity"]) for i, source in graph["sources"].items()}
            entry, found_in = graph["tasks"].__getitem__, graph["experiments"]
            sides = {e["label"]: Side(e["tasks"], entry, sources, e["meaning"], e["family"] is None) for e in found_in}
            states = {i: str(task["state"]) for i, task in status.get("tasks", {}).items()}
        except (AttributeError, KeyError, TypeError):
            continue
        yield _Earlier(sides, time.strftime("%Y-%m-%d %H:%M", time.localtime(when)), states)


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        if isinstance(data := read_json(path), dict):
            return data
    return {}
