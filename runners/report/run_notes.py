"""Collect what a page says about its run: the question, why results are missing, where the numbers come from."""

import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import yaml

from boomspec.core.graph import TaskGraph
from boomspec.core.tasks import Tokenize
from boomspec.models.trust import warnings
from boomspec.store import Store
from runners.report.format import size
from runners.report.loss_terms import first_step, terms_at_start
from runners.report.study import BASE, VARIANT

_MOST_TASKS = 500  # listed one by one
_FIRST_ROW = 100_000  # bytes that have the first row of a training's metrics
_COMPUTED = {"student.parameters", "student.blocks", "teacher.layers", "teacher.parameters"}  # from other fields


# Of a training: see `runners.training.throughput`.
TRAINING = (
    "task", "tokens_per_second", "mfu", "tokens", "seconds", "steps", "flops_per_token",
    "device", "workers", "peak_flops", "peak_from",
)  # fmt: skip


@dataclass(frozen=True)
class Notes:
    """What a page says about its run."""

    question: Sequence[str] = ()  # paragraphs
    spec: str = ""
    resolved: str = ""  # YAML
    experiments: Mapping[str, Any] | None = None  # see `experiments`
    facts: Sequence[tuple[str, str]] = ()  # names and values of the provenance
    tasks: Sequence[dict[str, Any]] = ()  # {name, kind, id, seconds, state}
    left_out: int = 0  # tasks that are not listed
    trainings: Sequence[dict[str, Any]] = ()  # how fast each was: `TRAINING`
    terms: Sequence[dict[str, Any]] = ()  # of the losses of all experiments, at the first step: `loss_terms`
    warnings: Sequence[str] = ()  # for the top of the page, such as foreign code that was run


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
    comment = takewhile(lambda line: line.startswith("#"), spec.splitlines())
    texts = [line.lstrip("#").strip() for line in comment if "yaml-language-server:" not in line]  # that is for editors
    return [" ".join(lines) for filled, lines in groupby(texts, bool) if filled]


def notes_of(graph: TaskGraph, store: Store, failures: dict[str, str], *, several: bool) -> Notes:
    """The notes of a run: versions, hardware, and every task with how it ended. `several`: experiments, not one."""
    records = store.records((node.task.kind, node.id) for node in graph.nodes.values())
    found = {task: record["provenance"] for (_, task), record in records.items()}
    tasks: list[dict[str, Any]] = []
    for node in graph.nodes.values():
        cause, seconds = _cause(graph, node.id, failures), found.get(node.id, {}).get("seconds")
        state = "not done" if cause is None else "failed" if cause == node.id else "blocked"
        entry = {"name": node.name, "kind": node.task.kind, "id": node.id, "seconds": seconds}
        tasks.append(entry | {"state": "done" if node.id in found else state})
    shown = tasks if len(tasks) <= _MOST_TASKS else [task for task in tasks if task["state"] != "done"]
    made = [found[i] for i in graph.nodes if i in found]
    skipped = []  # how many rows had no text, by what was wrong with them
    for node in graph.nodes.values():
        if node.id in found and getattr(node.task.record, "on_bad_row", None) == "skip":
            counts = json.loads(store.read(Tokenize.kind, node.id, "meta.json")).get("skipped", {})
            skipped.append(", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "none")
    facts = {
        "graph": graph.id,
        "commit": _distinct(p.get("commit") for p in made),
        "packages": _distinct(", ".join(f"{n} {v}" for n, v in p.get("packages", {}).items()) for p in made),
        "Python": _distinct(p.get("python") for p in made),
        "hardware": _distinct(_hardware(p.get("hardware", {})) for p in made),
        "platform": _distinct(p.get("platform") for p in made),
        "finished": max((p.get("finished", "") for p in made), default=""),
        "time of all tasks": f"{sum(task['seconds'] or 0.0 for task in tasks):.0f} s",
        "rows without text, left out": _distinct(skipped),
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
        trainings=trainings(graph, found),
        terms=list(_terms(graph, store, found)) if several else (),
        warnings=warnings(graph),
    )


def trainings(graph: TaskGraph, provenance: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """How fast the trainings of a graph were. `provenance`: of its artifacts, by task id."""
    speeds = {node.name: provenance.get(node.id, {}).get("training") for node in graph.nodes.values()}
    return [{"task": name} | {key: speed.get(key) for key in TRAINING[1:]} for name, speed in speeds.items() if speed]


def _terms(graph: TaskGraph, store: Store, made: Container[str]) -> Iterator[dict[str, Any]]:
    """The terms of the losses of a graph's trainings at their first step."""
    for node in graph.nodes.values():
        if node.task.record.trains and node.id in made:
            params = node.task.record.to_json()
            number = first_step(params)
            rows = store.read(node.task.kind, node.id, "metrics.jsonl", most=None if number else _FIRST_ROW)
            first = rows.split(b"\n", number + 1)[number : number + 1]
            if first and first[0]:
                yield from terms_at_start(node.name, params, json.loads(first[0]))


def _distinct(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


def _hardware(hardware: dict[str, Any]) -> str:
    if not hardware:
        return ""
    gpus = ", ".join(hardware.get("gpus", [])) or "no GPU"
    return f"{hardware['cpu']}, {hardware['cpus']} CPUs, {size(hardware['memory_bytes'])}, {gpus}"


def experiments(graph: TaskGraph, store: Store) -> dict[str, Any]:
    """What the experiments of a graph share, and in what each variant differs from base at the same point of the sweep.

    asked: tasks of all experiments, counted for each; different: the same, a shared one counted once; common: names of
    the tasks that all have; lines: {label, tasks, own, done} of each experiment; changes: by variant, of each field
    that differs its name, its value in base and its value here.
    """
    users = Counter(task for experiment in graph.experiments for task in experiment.tasks.values())
    names = {task: name for experiment in reversed(graph.experiments) for name, task in experiment.tasks.items()}
    done = {task for _, task in store.records((graph.nodes[i].task.kind, i) for i in users if i in graph.nodes)}
    by_axes = {tuple(experiment.axes.items()): experiment for experiment in graph.experiments}
    changes: dict[str, list[tuple[str, str, str]]] = {}
    for experiment in graph.experiments:
        variant = experiment.axes.get(VARIANT, BASE)
        base = by_axes.get(tuple({**experiment.axes, VARIANT: BASE}.items()))
        if variant != BASE and variant not in changes and base is not None:
            old, new = _written(base.meaning), _written(experiment.meaning)
            fields = [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]
            changes[variant] = [(name, _shown(old, name), _shown(new, name)) for name in fields]
    lines = [
        {
            "label": experiment.label,
            "tasks": len(experiment.tasks),
            "own": sum(users[task] == 1 for task in experiment.tasks.values()),
            "done": sum(task in done for task in experiment.tasks.values()),
        }
        for experiment in graph.experiments
    ]
    common = [names[task] for task, count in users.items() if count == len(graph.experiments)]
    shared = {"asked": sum(users.values()), "different": len(users), "common": common}
    return {**shared, "lines": lines, "changes": changes}


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
