"""Compares two sides: fields, sizes, tasks and the cost of redoing them; of two runs, environments and results, too.

Experiments are paired by their labels; where no label is on both sides (two variants of one sweep), by the axes that
vary on each side, such as the seed. A plain spec has one without a label: its partner is the first one of the other
side, which is the file's own. `schema` of the JSON rises when a field changes its meaning.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from boomspec.core.devices import DEVICES
from boomspec.core.graph import Experiment, Node
from boomspec.core.machine import cpus
from boomspec.diff.results import Compared, compare_results, conditions
from boomspec.diff.sides import ComparedInput
from boomspec.plan.changes import Changes, FieldChange, Known, compare, compare_meanings
from boomspec.plan.forecast import MachineSpec, forecast
from boomspec.plan.origins import side
from boomspec.plan.plan import RunPlan, Step

DIFF_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Pair:
    """Two experiments. `sizes`: layer plan and parameters of those that differ, by their labels."""

    old: Experiment
    new: Experiment
    changes: Changes
    sizes: tuple[FieldChange, ...]

    def to_json(self) -> dict[str, Any]:
        changes, tasks = self.changes, []
        for task in changes.of("changed", "added", "removed"):
            named = {"name": task.name, "kind": task.kind, "id": task.id, "state": task.state}
            own = [{"parameter": d.name, **_values(d)} for d in task.own]
            why = {"inputs": list(task.inputs), "fields": list(task.fields), "some_of": task.some_of}
            tasks.append({**named, "parameters": own, **why})
        return {
            "old": self.old.label,
            "new": self.new.label,
            "waiting": changes.waiting,
            "fields": [
                {**_values(f), "field": f.name, "class": f.kind, "exact": f.exact, "tasks": list(f.tasks)}
                for f in changes.fields
            ],
            "same": len(changes.of("same")),
            "tasks": tasks,
            "sizes": [{"label": size.name, **_values(size)} for size in self.sizes],
        }


@dataclass(frozen=True)
class Effort:
    """What it takes to do tasks."""

    flops: int = 0
    unknown: int = 0  # tasks whose share is left out, which makes the rest a lower bound
    seconds: float | None = None  # on this machine, as measured here; None where not known, or GPUs are asked for
    gpu_seconds: dict[str, float] = field(default_factory=dict)  # by kind of GPU


@dataclass(frozen=True)
class Diff:
    """How two sides differ."""

    old: ComparedInput
    new: ComparedInput
    pairs: tuple[Pair, ...]
    added: tuple[str, ...]  # labels of experiments
    removed: tuple[str, ...]
    anew: tuple[Node, ...]  # the newer side's tasks that the older side's store would not have
    environment: tuple[FieldChange, ...] | None  # of two runs
    results: Compared | None  # of two runs, and of specs as far as their stores have some
    effort: Effort

    @property
    def differs(self) -> bool:
        """Whether results differ, or could: what is only executed otherwise, or called otherwise, does not count."""
        by_spec = any(pair.changes.changes_results for pair in self.pairs)
        return bool(by_spec or self.added or self.removed or (self.results and self.results.moved))

    def to_json(self) -> dict[str, Any]:
        """Everything that is known, for programs; null stands for what a side does not have."""
        tasks = [{"name": node.name, "kind": node.task.kind, "id": node.id} for node in self.anew]
        return {
            "schema": DIFF_SCHEMA_VERSION,
            "old": self.old.to_json(),
            "new": self.new.to_json(),
            "differs": self.differs,
            "experiments": [pair.to_json() for pair in self.pairs],
            "added": list(self.added),
            "removed": list(self.removed),
            "anew": {"tasks": tasks, **asdict(self.effort)},
            "environment": self.environment and [{"name": c.name, **_values(c)} for c in self.environment],
            "results": self.results and self.results.to_json(),
        }


def _values(difference: FieldChange) -> dict[str, Any]:
    return {"old": difference.old, "new": difference.new}


def compared(old: ComparedInput, new: ComparedInput) -> Diff:
    partners = _partners(old, new)
    paired = {id(experiment) for pair in partners for experiment in pair}
    added, removed = (tuple(e.label for e in one.experiments if id(e) not in paired) for one in (new, old))
    memo, pairs = Known(), []
    for before, after in partners:
        if old.compiled is None or new.compiled is None:
            pairs.append(Pair(before, after, compare_meanings(before.meaning, after.meaning), ()))
        else:
            changes = compare(side(old.compiled, before), side(new.compiled, after), memo)
            pairs.append(Pair(before, after, changes, tuple(_sizes(before, after))))
    wanted = {task.id for pair in pairs for task in pair.changes.of("changed", "added")}
    wanted.update(i for e in new.experiments if e.label in added for i in e.tasks.values())
    named = {task_id for experiment in new.experiments for task_id in experiment.tasks.values()}
    anew: list[Node] = []
    environment = results = None
    if old.graph is not None and new.graph is not None:
        others = [node for node in new.graph.nodes.values() if node.id not in old.graph.nodes]
        # The comparison of several experiments is a task of none of them.
        anew = [node for node in others if node.id in wanted or node.id not in named]
        if old.is_run and new.is_run:
            environment = conditions(old, new)
        runs = old.is_run and new.is_run
        # What specs have in stores here is seen at once; one at a URL is asked for runs alone.
        if runs or not (old.store.is_remote or new.store.is_remote):
            found = compare_results(old, new, partners)
            results = found if runs or found.numbers else None
    return Diff(old, new, tuple(pairs), added, removed, tuple(anew), environment, results, _effort(new, anew))


def _partners(old: ComparedInput, new: ComparedInput) -> list[tuple[Experiment, Experiment]]:
    before = {experiment.label: experiment for experiment in old.experiments}
    partners = [(before[e.label], e) for e in new.experiments if e.label in before]
    alone = len(old.experiments) == 1 or len(new.experiments) == 1
    if not partners and alone and old.experiments and new.experiments:
        return [(old.experiments[0], new.experiments[0])]
    return partners or _at_same_points(old.experiments, new.experiments)


def _at_same_points(old: tuple[Experiment, ...], new: tuple[Experiment, ...]) -> list[tuple[Experiment, Experiment]]:
    """Pairs at the same point of what varies on each side; none where several are at one point."""

    def points(experiments: tuple[Experiment, ...]) -> dict[tuple[tuple[str, str], ...], Experiment]:
        values: dict[str, set[str]] = defaultdict(set)
        for experiment in experiments:
            for axis, value in experiment.axes.items():
                values[axis].add(value)
        vary = [axis for axis, found in values.items() if len(found) > 1]
        return {tuple((axis, one.axes.get(axis, "")) for axis in vary): one for one in experiments}

    before, after = points(old), points(new)
    if len(before) < len(old) or len(after) < len(new):
        return []
    return [(before[point], after[point]) for point in after if point in before]


def _sizes(before: Experiment, after: Experiment) -> Iterator[FieldChange]:
    sizes = [experiment.meaning["interpolate"]["sizes"] for experiment in (before, after)]
    if not all(isinstance(known, dict) for known in sizes):
        return  # a search comes first
    for label in sorted({*sizes[0], *sizes[1]}, key=lambda label: (int(label.split()[0]), label)):
        old, new = sizes[0].get(label), sizes[1].get(label)
        if old != new:
            yield FieldChange((label,), old, new)


def _effort(new: ComparedInput, anew: list[Node]) -> Effort:
    if new.graph is None or not anew:
        return Effort()
    wanted = {node.id for node in anew}
    plan = RunPlan({task_id: Step("run" if task_id in wanted else "unneeded", "") for task_id in new.graph.nodes})
    execution = new.experiments[0].meaning["execution"]
    device = DEVICES.get(execution.get("device", ""))
    found = forecast(new.graph, plan, new.store, MachineSpec(execution.get("cpus") or cpus(), 1, device))
    gpus = {name: clock.gpu_seconds for name, clock in found.devices.items() if clock.gpu_seconds}
    known = not gpus and not found.clock.without_a_time
    return Effort(found.totals.flops, found.totals.incomplete, found.clock.elapsed if known else None, gpus)
