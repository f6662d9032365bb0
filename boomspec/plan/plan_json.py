"""A plan for programs: JSON, described by `plan.schema.json` beside this file.

`schema` rises when a field changes its meaning or goes away; new fields may come at any time. Where something is not
known it is null, never a guess; `totals` are then lower bounds.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from boomspec.compile.compiler import Compiled
from boomspec.compile.resolve import Family
from boomspec.core.graph import Cost, Node
from boomspec.plan.forecast import Clock, Forecast
from boomspec.plan.plan import Plan, Step
from boomspec.plan.text_plan import text_plans
from boomspec.store import Store

PLAN_SCHEMA_VERSION = 2
PLAN_SCHEMA = Path(__file__).with_name("plan.schema.json")


def plan_schema() -> dict[str, Any]:
    """The JSON Schema of what `plan_json` returns."""
    schema: dict[str, Any] = json.loads(PLAN_SCHEMA.read_text(encoding="utf-8"))
    return schema


def plan_json(compiled: Compiled, plan: Plan, forecast: Forecast, store: Store) -> dict[str, Any]:
    graph, totals = compiled.graph, forecast.totals
    return {
        "schema": PLAN_SCHEMA_VERSION,
        "name": graph.name,
        "graph": graph.id,
        "store": store.address,
        "pending": list(compiled.pending),
        "experiments": [
            {
                "label": experiment.label,
                "axes": experiment.axes,
                **_family(compiled.families.get(experiment.label)),
                "tasks": experiment.tasks,
            }
            for experiment in graph.experiments
        ],
        "texts": [asdict(text) for text in text_plans(graph, store)],
        "tasks": [_task(node, plan.steps[node.id], forecast) for node in graph.nodes.values()],
        "totals": {
            "run": totals.tasks,
            "reuse": len(plan.ids("reuse")),
            "unneeded": len(plan.ids("unneeded")),
            "blocked": len(plan.ids("blocked")),
            "flops": totals.flops,
            "largest_memory": totals.largest,
            "disk": totals.disk,
            "scratch": totals.scratch,
            "read": totals.read,
            "tokens": totals.tokens,
            "real_tokens": totals.real_tokens,
            "incomplete": totals.unknown,
        },
        "machine": {
            "cpus": forecast.machine.cpus,
            "gpus": forecast.machine.gpus,
            "device": forecast.machine.device.name if forecast.machine.device else None,
        },
        "time": _clock(forecast.clock),
        "devices": {name: _clock(clock) for name, clock in forecast.devices.items()},
        "unknown": list(forecast.reasons),
        "warnings": list(forecast.warnings),
    }


def _family(family: Family | None) -> dict[str, Any]:
    return {
        "teacher_layers": family.facts.count if family else None,
        "kept": list(family.kept) if family else None,
        "sizes": [
            {
                "layers": member.layers,
                "patched": member.patched,
                "parameters": member.parameters,
                "bytes": member.bytes,
                "tied": member.tied,
                "plan": list(member.plan),
                "asked": list(member.asked),
            }
            for member in (family.members if family else ())
        ],
    }


def _task(node: Node, step: Step, forecast: Forecast) -> dict[str, Any]:
    duration = forecast.clock.durations.get(node.id)
    return {
        "id": node.id,
        "kind": node.task.kind,
        "name": node.name,
        "action": step.action,
        "reason": step.reason,
        "fields": list(step.fields),
        "same_as": step.same_as or None,
        "if_inputs_differ": step.if_inputs_differ,
        "cost": _cost(forecast.costs[node.id]),
        "seconds": None if duration is None else round(duration.seconds, 1),
        "seconds_from": None if duration is None else duration.source,
    }


def _cost(cost: Cost | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    known = not cost.unknown
    return {
        "flops": cost.flops if known or cost.flops else None,
        "memory": cost.memory,
        "peak_memory": cost.peak if cost.memory else None,
        "disk": cost.disk if known or cost.disk else None,
        "scratch": cost.scratch,
        "read": cost.read,
        "tokens": cost.tokens if known or cost.tokens else None,
        "real_tokens": cost.real_tokens,
        "unknown": cost.unknown or None,
    }


def _clock(clock: Clock) -> dict[str, Any]:
    return {
        "cpu_seconds": round(clock.cpu_seconds, 1),
        "gpu_seconds": round(clock.gpu_seconds, 1),
        "longest_chain": round(clock.longest_chain, 1),
        "elapsed": round(clock.elapsed, 1),
        "from": list(clock.sources),
        "without_a_time": len(clock.unknown),
    }
