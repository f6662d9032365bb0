"""Compares two sides: fields, sizes, tasks and the cost of redoing them; of two runs, environments and results, too.

Experiments are paired by their labels. A plain spec has one without a label: its partner is the first one of the other
side, which is the file's own. `schema` of the JSON rises when a field changes its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from boomspec.core.devices import DEVICES
from boomspec.core.graph import Experiment, Node
from boomspec.core.machine import cpus
from boomspec.diff.results import Compared, Condition, compare_results, conditions, measured
from boomspec.diff.sides import ComparedInput
from boomspec.plan.changes import Changes, FieldChange, Memo, compare, compare_meanings
from boomspec.plan.forecast import MachineSpec, forecast
from boomspec.plan.origins import side
from boomspec.plan.plan import RunPlan, Step

DIFF_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SizeComparison:
    """One size of a family on both sides: layer plan and parameters; None where a side does not build it."""

    label: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None


@dataclass(frozen=True)
class Pair:
    """Two experiments."""

    old: Experiment
    new: Experiment
    changes: Changes
    sizes: tuple[SizeComparison, ...]

    def to_json(self) -> dict[str, Any]:
        changes = self.changes
        return {
            "old": self.old.label,
            "new": self.new.label,
            "waiting": changes.waiting,
            "fields": [
                {
                    **_values(field),
                    "field": field.name,
                    "class": field.kind,
                    "exact": field.exact,
                    "tasks": list(field.tasks),
                }
                for field in changes.fields
            ],
            "same": len(changes.of("same")),
            "tasks": [
                {
                    "name": task.name,
                    "kind": task.kind,
                    "id": task.id,
                    "state": task.state,
                    "parameters": [{"parameter": d.name, **_values(d)} for d in task.own],
                    "inputs": list(task.inputs),
                    "fields": list(task.fields),
                    "some_of": task.some_of,
                }
                for task in changes.of("changed", "added", "removed")
            ],
            "sizes": [{"label": size.label, **_values(size)} for size in self.sizes],
        }


@dataclass(frozen=True)
class Effort:
    """What it takes to do tasks. `unknown`: tasks whose share is left out, which makes the rest a lower bound.

    seconds: on this machine, as measured or calibrated here; None where that cannot be told, or GPUs are asked for.
    devices: GPU seconds by kind of GPU.
    """

    flops: int = 0
    unknown: int = 0
    seconds: float | None = None
    devices: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Diff:
    """How two sides differ. `anew`: the newer side's tasks that the older side's store would not have.

    environment, results: of two runs; None for anything else.
    """

    old: ComparedInput
    new: ComparedInput
    pairs: tuple[Pair, ...]
    added: tuple[str, ...]  # labels of experiments
    removed: tuple[str, ...]
    anew: tuple[Node, ...]
    environment: tuple[Condition, ...] | None
    results: Compared | None
    effort: Effort

    @property
    def differs(self) -> bool:
        """Whether results differ, or could: what is only executed otherwise, or called otherwise, does not count."""
        by_spec = any(pair.changes.changes_results for pair in self.pairs)
        return bool(by_spec or self.added or self.removed or (self.results and self.results.moved))

    def to_json(self) -> dict[str, Any]:
        """Everything that is known, for programs; null stands for what a side does not have."""
        return {
            "schema": DIFF_SCHEMA_VERSION,
            **{name: side.to_json() for name, side in (("old", self.old), ("new", self.new))},
            "differs": self.differs,
            "experiments": [pair.to_json() for pair in self.pairs],
            "added": list(self.added),
            "removed": list(self.removed),
            "anew": {
                "tasks": [{"name": node.name, "kind": node.task.kind, "id": node.id} for node in self.anew],
                "flops": self.effort.flops,
                "unknown": self.effort.unknown,
                "seconds": self.effort.seconds,
                "gpu_seconds": self.effort.devices,
            },
            "environment": self.environment and [{"name": c.name, **_values(c)} for c in self.environment],
            "results": self.results and self.results.to_json(),
        }


def _values(difference: FieldChange | SizeComparison | Condition) -> dict[str, Any]:
    return {"old": difference.old, "new": difference.new}


def compared(old: ComparedInput, new: ComparedInput) -> Diff:
    """Compare two sides."""
    partners, added, removed = _partners(old, new)
    memo = Memo()
    pairs = tuple(_pair(old, new, a, b, memo) for a, b in partners)
    anew = tuple(_anew(old, new, pairs, set(added)))
    environment, results = _of_runs(old, new, partners)
    return Diff(old, new, pairs, tuple(added), tuple(removed), anew, environment, results, _effort(new, anew))


def _partners(
    old: ComparedInput, new: ComparedInput
) -> tuple[list[tuple[Experiment, Experiment]], list[str], list[str]]:
    """Experiments that belong together, the labels that only the newer side has, and those that only the older has."""
    before, after = ({e.label: e for e in side.experiments} for side in (old, new))
    partners = [(before[label], experiment) for label, experiment in after.items() if label in before]
    alone = len(before) == 1 or len(after) == 1
    if not partners and alone and before and after:
        partners = [(next(iter(before.values())), next(iter(after.values())))]
    paired = {id(experiment) for pair in partners for experiment in pair}
    added = [label for label, experiment in after.items() if id(experiment) not in paired]
    removed = [label for label, experiment in before.items() if id(experiment) not in paired]
    return partners, added, removed


def _pair(old: ComparedInput, new: ComparedInput, before: Experiment, after: Experiment, memo: Memo) -> Pair:
    if old.compiled is None or new.compiled is None:
        return Pair(before, after, compare_meanings(before.meaning, after.meaning), ())
    changes = compare(side(old.compiled, before), side(new.compiled, after), memo)
    return Pair(before, after, changes, tuple(_sizes(before, after)))


def _sizes(before: Experiment, after: Experiment) -> Iterator[SizeComparison]:
    sizes = [experiment.meaning["interpolate"]["sizes"] for experiment in (before, after)]
    if not all(isinstance(known, dict) for known in sizes):
        return  # a search comes first
    for label in sorted({*sizes[0], *sizes[1]}, key=lambda label: (int(label.split()[0]), label)):
        old, new = sizes[0].get(label), sizes[1].get(label)
        if old != new:
            yield SizeComparison(label, old, new)


def _anew(old: ComparedInput, new: ComparedInput, pairs: tuple[Pair, ...], added: set[str]) -> Iterator[Node]:
    if old.graph is None or new.graph is None:
        return
    wanted = {task.id for pair in pairs for task in pair.changes.of("changed", "added")}
    wanted.update(i for e in new.experiments if e.label in added for i in e.tasks.values())
    named = {task_id for experiment in new.experiments for task_id in experiment.tasks.values()}
    for node in new.graph.nodes.values():
        # The comparison of several experiments is a task of none of them.
        if node.id not in old.graph.nodes and (node.id in wanted or node.id not in named):
            yield node


def _effort(new: ComparedInput, anew: tuple[Node, ...]) -> Effort:
    if new.graph is None or not anew:
        return Effort()
    wanted = {node.id for node in anew}
    plan = RunPlan({task_id: Step("run" if task_id in wanted else "unneeded", "") for task_id in new.graph.nodes})
    execution = new.experiments[0].meaning["execution"]
    device = DEVICES.get(execution.get("device", ""))
    found = forecast(new.graph, plan, new.store, MachineSpec(execution.get("cpus") or cpus(), 1, device))
    gpus = {name: clock.gpu_seconds for name, clock in found.devices.items() if clock.gpu_seconds}
    known = not gpus and not found.clock.unknown
    return Effort(found.totals.flops, found.totals.incomplete, found.clock.elapsed if known else None, gpus)


def _of_runs(
    old: ComparedInput, new: ComparedInput, partners: list[tuple[Experiment, Experiment]]
) -> tuple[tuple[Condition, ...] | None, Compared | None]:
    if not (old.is_run and new.is_run) or old.graph is None or new.graph is None:
        return None, None
    environment = conditions((old.store, old.graph.nodes.values()), (new.store, new.graph.nodes.values()))
    results = compare_results(
        [
            (
                measured(old.graph, old.store, before.label, before.tasks),
                measured(new.graph, new.store, after.label, after.tasks),
            )
            for before, after in partners
        ]
    )
    return environment, results
