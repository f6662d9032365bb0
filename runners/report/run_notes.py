"""Collect what a page says about its run: the question, why results are missing, where the numbers come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from boomspec.core.graph import TaskGraph
from boomspec.core.tasks import Tokenize
from boomspec.models.trust import warnings
from boomspec.store import Store
from runners.report.format import size
from runners.report.study import BASE, VARIANT

_MOST_TASKS = 500  # listed one by one
_COMPUTED = {"student.parameters", "student.blocks", "teacher.layers", "teacher.parameters"}  # from other fields


@dataclass(frozen=True)
class Experiments:
    """What several experiments share, and in what they differ."""

    asked: int  # tasks of all experiments, counted for each
    different: int  # the same, a shared one counted once
    common: Sequence[str]  # names of the tasks that all have
    lines: Sequence[dict[str, Any]]  # {label, axes, tasks, own, done} of each experiment
    changes: dict[str, list[tuple[str, str, str]]]  # by variant: field, its value in base, its value here


@dataclass(frozen=True)
class Notes:
    """What a page says about its run."""

    question: Sequence[str] = ()  # paragraphs
    spec: str = ""
    resolved: str = ""  # YAML
    experiments: Experiments | None = None
    facts: Sequence[tuple[str, str]] = ()  # names and values of the provenance
    tasks: Sequence[dict[str, Any]] = ()  # {name, kind, id, seconds, state}
    left_out: int = 0  # tasks that are not listed
    warnings: Sequence[str] = ()  # for the top of the page, such as foreign code that was run


NO_NOTES = Notes()


def why(graph: TaskGraph, task_id: str, failures: dict[str, str]) -> str:
    """Why a task has no artifact: its own failure, or the one that its failure follows from."""
    cause = _cause(graph, task_id, failures)
    if cause is None:
        return "it has not been run"
    if cause == task_id:
        return failures[task_id]
    return f"needs {graph.nodes[cause].name}, which failed: {failures[cause]}"


def _cause(graph: TaskGraph, task_id: str, failures: dict[str, str]) -> str | None:
    """The failed task, among those that `task_id` needs and itself, that needs no other failed one."""
    above = (_cause(graph, needed, failures) for needed in graph.waits_for(task_id))
    return next((cause for cause in above if cause is not None), task_id if task_id in failures else None)


def opening(spec: str) -> Sequence[str]:
    """The paragraphs of the comment that a spec opens with: the question that it answers."""
    paragraphs = [""]
    for line in spec.splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if "yaml-language-server:" in line:
            continue  # for editors
        if text:
            paragraphs[-1] = f"{paragraphs[-1]} {text}".strip()
        else:
            paragraphs.append("")
    return [paragraph for paragraph in paragraphs if paragraph]


def notes_of(graph: TaskGraph, store: Store, failures: dict[str, str], *, several: bool) -> Notes:
    """The notes of a run: versions, hardware, and every task with how it ended. `several`: experiments, not one."""
    records = store.records((node.task.kind, node.id) for node in graph.nodes.values())
    found = {task: record["provenance"] for (_, task), record in records.items()}
    tasks: list[dict[str, Any]] = []
    for node in graph.nodes.values():
        cause = _cause(graph, node.id, failures)
        state = "not done" if cause is None else "failed" if cause == node.id else "blocked"
        entry = {"name": node.name, "kind": node.task.kind, "id": node.id, "seconds": None, "state": state}
        tasks.append(entry | ({"seconds": found[node.id].get("seconds"), "state": "done"} if node.id in found else {}))
    shown = tasks if len(tasks) <= _MOST_TASKS else [task for task in tasks if task["state"] != "done"]
    made = [found[i] for i in graph.nodes if i in found]
    texts = (i for i in graph.nodes if i in found and getattr(graph.nodes[i].task.record, "on_bad_row", None) == "skip")
    facts = {
        "graph": graph.id,
        "commit": _distinct(p.get("commit") for p in made),
        "packages": _distinct(", ".join(f"{n} {v}" for n, v in p.get("packages", {}).items()) for p in made),
        "Python": _distinct(p.get("python") for p in made),
        "hardware": _distinct(_hardware(p.get("hardware", {})) for p in made),
        "platform": _distinct(p.get("platform") for p in made),
        "finished": max((p.get("finished", "") for p in made), default=""),
        "time of all tasks": f"{sum(task['seconds'] or 0.0 for task in tasks):.0f} s",
        "rows without text, left out": _distinct(_skipped(store, i) for i in texts),
    }
    resolved = graph.experiments[0].meaning if graph.experiments and not several else None
    return Notes(
        question=opening(graph.spec),
        spec=graph.spec,
        resolved=yaml.safe_dump(resolved, sort_keys=False, default_flow_style=None, width=110) if resolved else "",
        experiments=experiments(graph, store) if several else None,
        facts=[(name, value) for name, value in facts.items() if value],
        tasks=shown,
        left_out=len(tasks) - len(shown),
        warnings=warnings(graph),
    )


def _skipped(store: Store, task: str) -> str:
    """How many rows had no text, by what was wrong with them."""
    meta = json.loads(store.read(Tokenize.kind, task, "meta.json"))
    return ", ".join(f"{count:,} {kind}" for kind, count in meta.get("skipped", {}).items()) or "none"


def _distinct(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


def _hardware(hardware: dict[str, Any]) -> str:
    if not hardware:
        return ""
    gpus = ", ".join(hardware.get("gpus", [])) or "no GPU"
    return f"{hardware['cpu']}, {hardware['cpus']} CPUs, {size(hardware['memory_bytes'])}, {gpus}"


def experiments(graph: TaskGraph, store: Store) -> Experiments:
    """What the experiments of a graph share, and in what each one's spec differs from the first."""
    users = Counter(task for experiment in graph.experiments for task in experiment.tasks.values())
    names: dict[str, str] = {}
    for experiment in graph.experiments:
        names = {task: name for name, task in experiment.tasks.items()} | names
    common = [names[task] for task, count in users.items() if count == len(graph.experiments)]
    done = {task for _, task in store.records((graph.nodes[i].task.kind, i) for i in users if i in graph.nodes)}
    lines = [
        {
            "label": experiment.label,
            "axes": experiment.axes,
            "tasks": len(experiment.tasks),
            "own": sum(users[task] == 1 for task in experiment.tasks.values()),
            "done": sum(task in done for task in experiment.tasks.values()),
        }
        for experiment in graph.experiments
    ]
    return Experiments(sum(users.values()), len(users), common, lines, _variants(graph))


def _variants(graph: TaskGraph) -> dict[str, list[tuple[str, str, str]]]:
    """In what each variant's spec differs from the file's own experiment at the same point of the sweep."""
    by_axes = {tuple(experiment.axes.items()): experiment for experiment in graph.experiments}
    changes: dict[str, list[tuple[str, str, str]]] = {}
    for experiment in graph.experiments:
        variant = experiment.axes.get(VARIANT, BASE)
        base = by_axes.get(tuple({**experiment.axes, VARIANT: BASE}.items()))
        if variant != BASE and variant not in changes and base is not None:
            old, new = _written(base.meaning), _written(experiment.meaning)
            fields = [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]
            changes[variant] = [(name, _shown(old, name), _shown(new, name)) for name in fields]
    return changes


def _written(meaning: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a resolved spec; the rules that were written stand for the values that follow from them."""
    written = meaning.get("written", {})
    student = {**meaning.get("student", {}), **({"keep": written["keep"]} if "keep" in written else {})}
    plain = {**meaning, "student": student, **({"interpolate": written["interpolate"]} if written else {})}
    fields = _fields({name: value for name, value in plain.items() if name not in ("written", "sources")})
    return {name: value for name, value in fields if name not in _COMPUTED}


def _fields(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from _fields(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name], ensure_ascii=False) if name in fields else "(not there)"
