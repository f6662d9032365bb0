"""A comparison for programs. `schema` rises when a field changes its meaning."""

from __future__ import annotations

from typing import Any

from boomspec.diff.compared import Diff, Pair
from boomspec.diff.results import THRESHOLD, Compared, Moved
from boomspec.diff.sides import Given
from boomspec.plan.changes import Difference, TaskChange

DIFF_SCHEMA_VERSION = 1


def diff_json(diff: Diff) -> dict[str, Any]:
    """Everything that is known of a comparison; null stands for what a side does not have."""
    return {
        "schema": DIFF_SCHEMA_VERSION,
        "old": _side(diff.old),
        "new": _side(diff.new),
        "differs": diff.differs,
        "experiments": [_pair(pair) for pair in diff.pairs],
        "added": list(diff.added),
        "removed": list(diff.removed),
        "anew": {
            "tasks": [{"name": node.name, "kind": node.task.kind, "id": node.id} for node in diff.anew],
            "flops": diff.effort.flops,
            "unknown": diff.effort.unknown,
            "seconds": diff.effort.seconds,
            "gpu_seconds": diff.effort.devices,
        },
        "environment": None
        if diff.environment is None
        else [{"name": c.name, "old": list(c.old), "new": list(c.new)} for c in diff.environment],
        "results": None if diff.results is None else _results(diff.results),
    }


def _side(side: Given) -> dict[str, Any]:
    return {
        "named": side.named,
        "experiments": side.labels,
        "run": side.is_run,
        "compiled": side.graph is not None,
        "problem": side.problem,
        "note": side.note,
    }


def _pair(pair: Pair) -> dict[str, Any]:
    changes = pair.changes
    return {
        "old": pair.old.label,
        "new": pair.new.label,
        "waiting": changes.waiting,
        "fields": [
            {**_difference(f), "field": f.name, "class": f.kind, "exact": f.exact, "tasks": list(f.tasks)}
            for f in changes.fields
        ],
        "same": len(changes.of("same")),
        "tasks": [_task(task) for task in changes.of("changed", "added", "removed")],
        "sizes": [{"label": size.label, "old": size.old, "new": size.new} for size in pair.sizes],
    }


def _task(task: TaskChange) -> dict[str, Any]:
    return {
        "name": task.name,
        "kind": task.kind,
        "id": task.id,
        "state": task.state,
        "parameters": [{"parameter": d.name, **_difference(d)} for d in task.own],
        "inputs": list(task.inputs),
        "fields": list(task.fields),
        "some_of": task.some_of,
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {"old": difference.old, "new": difference.new}


def _results(results: Compared) -> dict[str, Any]:
    return {
        "threshold": THRESHOLD,
        "compared": len(results.judged),
        "moved": len(results.moved),
        "shared": results.shared,
        "only_old": list(results.only_old),
        "only_new": list(results.only_new),
        "numbers": [_number(moved) for moved in results.numbers],
    }


def _number(moved: Moved) -> dict[str, Any]:
    return {
        "experiment": moved.label,
        "model": moved.model,
        "measure": moved.measure,
        "metric": moved.metric,
        "old": moved.old.value,
        "old_stderr": moved.old.stderr,
        "new": moved.new.value,
        "new_stderr": moved.new.stderr,
        "difference": moved.difference,
        "stderr": moved.stderr,
        "paired": moved.paired,
        "moved": moved.moved,
        "better": moved.better,
    }
