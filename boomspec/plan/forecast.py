"""Forecasts a plan: the cost and the time of each task, totals of the tasks that run, and what does not fit.

    plan + graph + store --forecast--> Forecast

Totals count the tasks that run, no others. Where the cost or the time of one of them is not known, its share is left
out and it is counted in `incomplete` or `without_a_time`: a total is then a lower bound, and is shown as one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from operator import attrgetter
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from boomspec.core import machine
from boomspec.core.devices import DEVICES, SHOWN, Device
from boomspec.core.graph import Cost, Node, TaskGraph
from boomspec.core.sizes import shown_bytes
from boomspec.plan.plan import RunPlan
from boomspec.plan.rates import Duration, Origin, Rates, refined
from boomspec.plan.schedule import Simulation, critical_path
from boomspec.store import Store

Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[float, Field(ge=0)]
Seconds = Annotated[_Positive, PlainSerializer(lambda seconds: round(seconds, 1), return_type=_Positive)]


class PlanModel(BaseModel):
    """A part of what `boomspec plan --json` prints; a text below a field describes it in the JSON Schema."""

    model_config = ConfigDict(
        frozen=True,
        from_attributes=True,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )


@dataclass(frozen=True)
class MachineSpec:
    """What the tasks of a plan run on: CPUs, GPUs, and their kind, where that is known."""

    cpus: float
    gpus: float
    device: Device | None = None


class Clock(PlanModel):
    # The tasks that run, on one kind of machine.
    durations: Annotated[dict[str, Duration], Field(exclude=True)]
    cpu_seconds: Seconds
    """Of tasks without a GPU, times their cores."""
    gpu_seconds: Seconds
    """Times the share of a GPU."""
    longest_chain: Seconds
    """Seconds of the longest chain of tasks that wait for each other."""
    elapsed: Seconds
    """Seconds until the last task has ended, on `machine`."""
    sources: Annotated[tuple[Origin, ...], Field(serialization_alias="from")]
    without_a_time: Count
    """Tasks whose time is not known: they count as nothing."""


class Totals(PlanModel):
    """Of the tasks that run."""

    run: Count
    reuse: Count
    unneeded: Count
    blocked: Count
    flops: Count
    largest_memory: Count  # bytes of one worker
    disk: Count
    scratch: Count  # bytes of disk while the task that needs most of them runs
    read: Count
    tokens: Count
    real_tokens: Count | None  # None: not known for all
    incomplete: Count
    """Tasks whose cost is not known in full: the sums leave that out."""


@dataclass(frozen=True)
class Forecast:
    """`costs` are of all tasks, everything else of those that run."""

    costs: dict[str, Cost | None]
    totals: Totals
    clock: Clock
    devices: dict[str, Clock]  # by the name of a device: the same plan on others, where tasks ask for a GPU
    machine: MachineSpec
    warnings: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)  # what is not known of costs -> a task that it concerns


def forecast(graph: TaskGraph, plan: RunPlan, store: Store, on: MachineSpec) -> Forecast:
    """What running `plan` takes on a machine, and what its GPU tasks would take on other devices."""

    def clock_on(device: Device | None) -> Clock:
        durations = _durations(rates, wanted, costs, kinds, device)
        spent = [(wanted[i].execution, time.seconds * wanted[i].execution.workers) for i, time in durations.items()]
        # A task without a time still stands between others.
        seconds = {i: durations[i].seconds if i in durations else 0.0 for i in wanted}
        return Clock(
            durations=durations,
            cpu_seconds=sum(seconds * execution.cpus for execution, seconds in spent if not execution.gpus),
            gpu_seconds=sum(seconds * execution.gpus for execution, seconds in spent),
            longest_chain=critical_path(graph, seconds),
            elapsed=simulation().elapsed(seconds) if any(seconds.values()) else 0.0,
            sources=tuple(sorted({duration.source for duration in durations.values()})),
            without_a_time=len(wanted) - len(durations),
        )

    costs = _refined_costs(graph, store)
    wanted = {task_id: graph.nodes[task_id] for task_id in plan.ids("run")}
    kinds = _kinds(wanted, costs)
    nodes, simulation = [*wanted.values()], cache(partial(Simulation, graph, wanted, cpus=on.cpus, gpus=on.gpus))
    rates = Rates(store)
    shown = [on.device] if on.device else [DEVICES[name] for name in SHOWN]
    shown = shown if any(node.execution.gpus for node in nodes) else []
    clocks = {device.name: clock_on(device) for device in shown}
    clock = clocks[on.device.name] if on.device and shown else clock_on(None)
    reasons: dict[str, str] = {}
    for node in nodes:
        if (cost := costs[node.id]) is not None and cost.unknown:
            reasons.setdefault(cost.unknown, node.name)
    warnings = tuple(_warnings(nodes, costs, store, shown))
    return Forecast(costs, totals(graph.nodes.values(), costs, plan), clock, clocks, on, warnings, reasons)


def expected_seconds(graph: TaskGraph, plan: RunPlan, store: Store, device: Device | None = None) -> dict[str, float]:
    """Seconds of each task that runs, by its id; without those whose time is not known."""
    costs = _refined_costs(graph, store)
    wanted = {task_id: graph.nodes[task_id] for task_id in plan.ids("run")}
    durations = _durations(Rates(store), wanted, costs, _kinds(wanted, costs), device)
    return {task_id: duration.seconds for task_id, duration in durations.items()}


def _refined_costs(graph: TaskGraph, store: Store) -> dict[str, Cost | None]:
    unread: set[str] = set()
    tasks = {i: (node.cost, node.task) for i, node in graph.nodes.items()}
    return {i: refined(cost, task.record, task.inputs, store, unread) for i, (cost, task) in tasks.items()}


def _kinds(wanted: Mapping[str, Node], costs: Mapping[str, Cost | None]) -> dict[str, int]:
    """A number for each task; those whose records and costs are the same objects take as long, and have the same."""
    known: dict[tuple[int, ...], int] = {}
    return {
        i: known.setdefault((id(node.task.record), id(costs[i]), id(node.execution)), len(known))
        for i, node in wanted.items()
    }


def _durations(
    rates: Rates,
    wanted: Mapping[str, Node],
    costs: Mapping[str, Cost | None],
    kinds: Mapping[str, int],
    device: Device | None,
) -> dict[str, Duration]:
    examples = list({kind: i for i, kind in kinds.items()}.values())
    by_kind = [rates.duration(wanted[i], costs[i], device) for i in examples]
    return {i: duration for i, kind in kinds.items() if (duration := by_kind[kind]) is not None}


def totals(nodes: Iterable[Node], costs: Mapping[str, Cost | None], plan: RunPlan) -> Totals:
    """How many of some tasks run, are reused and so on, and the sums of those that run."""
    steps, ids = plan.steps, [node.task.id for node in nodes]
    counts = Counter([steps[i].action for i in ids])
    found = [cost for i in ids if (cost := costs[i]) is not None and steps[i].action == "run"]
    real = [cost.real_tokens for cost in found if cost.tokens]
    return Totals(
        **{action: counts[action] for action in ("run", "reuse", "unneeded", "blocked")},
        **{name: sum(map(attrgetter(name), found)) for name in ("flops", "disk", "read", "tokens")},
        real_tokens=None if None in real else sum(count for count in real if count is not None),
        largest_memory=max(map(attrgetter("peak"), found), default=0),
        scratch=max(map(attrgetter("scratch"), found), default=0),
        incomplete=counts["run"] - len(found) + sum(bool(cost.unknown) for cost in found),
    )


def _warnings(nodes: list[Node], costs: Mapping[str, Cost | None], store: Store, devices: list[Device]) -> list[str]:
    """What does not fit: a worker into memory, the artifacts onto the disk."""
    found = []
    known = [(node, cost) for node in nodes if (cost := costs[node.id]) is not None]
    places = [("this machine", machine.memory_bytes(), False), *((d.name, d.memory, True) for d in devices)]
    for place, room, on_gpu in places:
        of_place = [(node, cost) for node, cost in known if (node.execution.gpus > 0) is on_gpu]
        full = [(cost.peak, node.name) for node, cost in of_place if cost.peak > room * (node.execution.gpus or 1)]
        if full:
            peak, name = max(full)
            others = "does one more task" if len(full) == 2 else f"do {len(full) - 1} more tasks"
            more = f"; nor {others} fit" if len(full) > 1 else ""
            found.append(f"{name} needs {shown_bytes(peak)} of memory, {place} has {shown_bytes(room)}{more}")
    in_bf16 = any(node.execution.gpus and node.task.record.computes_in()[0] == "bf16" for node in nodes)
    without = [device.name for device in devices if device.bf16 is None and in_bf16]
    found += [f"{name} has no bf16 units: bf16 is counted at its fp32 rate" for name in without]
    disk = sum(cost.disk for _, cost in known) + max((cost.scratch for _, cost in known), default=0)
    if disk > (free := machine.free_bytes(store.root)):
        found += [f"the artifacts and checkpoints take {shown_bytes(disk)}, {store.root} has {shown_bytes(free)} free"]
    return found
