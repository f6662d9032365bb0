"""Forecasts a plan: the cost and the time of each task, totals of the tasks that run, and what does not fit.

    plan + graph + store --forecast--> Forecast

Totals count the tasks that run, no others. Where the cost or the time of one of them is not known, its share is left
out and it is counted in `unknown`: a total is then a lower bound, and is shown as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from boomspec.core import machine
from boomspec.core.devices import DEVICES, SHOWN, Device
from boomspec.core.graph import Cost, Node, TaskGraph
from boomspec.core.sizes import shown_bytes
from boomspec.plan.known_costs import known_costs
from boomspec.plan.plan import RunPlan
from boomspec.plan.rates import Duration, Origin, Rates
from boomspec.plan.schedule import critical_path, elapsed
from boomspec.store import Store


@dataclass(frozen=True)
class MachineSpec:
    """What the tasks of a plan run on: CPUs, GPUs, and their kind, where that is known."""

    cpus: float
    gpus: float
    device: Device | None = None


@dataclass(frozen=True)
class Clock:
    """Seconds of the tasks that run, on one kind of machine."""

    durations: dict[str, Duration]
    cpu_seconds: float  # of tasks without a GPU, times their cores
    gpu_seconds: float  # times their share of a GPU
    longest_chain: float
    elapsed: float
    unknown: tuple[str, ...]  # tasks without a time

    @property
    def sources(self) -> tuple[Origin, ...]:
        return tuple(sorted({duration.source for duration in self.durations.values()}))

    @property
    def without_a_time(self) -> int:
        return len(self.unknown)


@dataclass(frozen=True)
class Totals:
    """Of the tasks that run."""

    run: int = 0
    flops: int = 0
    disk: int = 0
    read: int = 0
    tokens: int = 0
    real_tokens: int | None = 0  # None: not known for all
    largest_memory: int = 0  # bytes of memory of one worker
    scratch: int = 0  # bytes of disk while the task that needs most of them runs
    incomplete: int = 0  # tasks whose cost is not known in full


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
    costs = known_costs(graph, store)
    nodes = [graph.nodes[task_id] for task_id in plan.ids("run")]
    rates = Rates(store)
    asked = any(node.execution.gpus for node in nodes)
    shown = [on.device] if on.device else [DEVICES[name] for name in SHOWN]
    clocks = {device.name: _clock(graph, nodes, costs, rates, on, device) for device in shown} if asked else {}
    clock = clocks[on.device.name] if on.device and asked else _clock(graph, nodes, costs, rates, on, None)
    reasons: dict[str, str] = {}
    for node in nodes:
        if (cost := costs[node.id]) is not None and cost.unknown:
            reasons.setdefault(cost.unknown, node.name)
    return Forecast(
        costs=costs,
        totals=totals(nodes, costs),
        clock=clock,
        devices=clocks,
        machine=on,
        warnings=tuple(_warnings(nodes, costs, store, on, shown if asked else [])),
        reasons=reasons,
    )


def totals(nodes: list[Node], costs: Mapping[str, Cost | None]) -> Totals:
    found = [cost for node in nodes if (cost := costs[node.id]) is not None]
    real = [cost.real_tokens for cost in found if cost.tokens]
    return Totals(
        run=len(nodes),
        flops=sum(cost.flops for cost in found),
        disk=sum(cost.disk for cost in found),
        read=sum(cost.read for cost in found),
        tokens=sum(cost.tokens for cost in found),
        real_tokens=None if None in real else sum(count for count in real if count is not None),
        largest_memory=max((cost.peak for cost in found), default=0),
        scratch=max((cost.scratch for cost in found), default=0),
        incomplete=len(nodes) - len(found) + sum(bool(cost.unknown) for cost in found),
    )


def _clock(
    graph: TaskGraph,
    nodes: list[Node],
    costs: Mapping[str, Cost | None],
    rates: Rates,
    on: MachineSpec,
    device: Device | None,
) -> Clock:
    durations: dict[str, Duration] = {}
    unknown = []
    cpu_seconds = gpu_seconds = 0.0
    for node in nodes:
        duration = rates.duration(node, costs[node.id], device)
        if duration is None:
            unknown.append(node.id)
            continue
        durations[node.id] = duration
        spent = duration.seconds * node.execution.workers
        gpu_seconds += spent * node.execution.gpus
        cpu_seconds += 0.0 if node.execution.gpus else spent * node.execution.cpus
    # A task without a time still stands between others.
    seconds = {node.id: durations[node.id].seconds if node.id in durations else 0.0 for node in nodes}
    return Clock(
        durations=durations,
        cpu_seconds=cpu_seconds,
        gpu_seconds=gpu_seconds,
        longest_chain=critical_path(graph, seconds),
        elapsed=elapsed(graph, seconds, cpus=on.cpus, gpus=on.gpus),
        unknown=tuple(unknown),
    )


def _warnings(
    nodes: list[Node], costs: Mapping[str, Cost | None], store: Store, on: MachineSpec, devices: list[Device]
) -> list[str]:
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
    total = totals(nodes, costs)
    if (disk := total.disk + total.scratch) > (free := machine.free_bytes(store.root)):
        found.append(
            f"the artifacts and checkpoints take {shown_bytes(disk)}, {store.root} has {shown_bytes(free)} free"
        )
    return found
