"""A plan as JSON for programs: pydantic models, of which `boomspec schema plan` prints the JSON Schema.

`schema` rises when a field changes its meaning or goes away; new fields may come at any time. What is not known is
null, never a guess; `totals` are then lower bounds. Sizes are bytes, times are seconds.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from boomspec.compile.compiler import Compiled
from boomspec.core.graph import Node
from boomspec.plan.forecast import Clock, Count, Forecast, PlanModel, Seconds, Totals
from boomspec.plan.plan import Action, RunPlan
from boomspec.plan.rates import Origin
from boomspec.plan.text_plan import BlendPlan, TextPlan, blend_plans, text_plans
from boomspec.plan.transfers import TransferPlan, transfer_plans
from boomspec.store import Store


class Size(PlanModel):
    layers: Count
    patched: Count
    parameters: Count
    bytes: Count
    tied: bool
    plan: tuple[Annotated[str, BeforeValidator(str), Field(pattern="^[st][0-9]+$")], ...]
    asked: tuple[str, ...]


class Experiment(PlanModel):
    label: str
    axes: dict[str, str]
    teacher_layers: Count | None
    kept: tuple[Count, ...] | None
    sizes: tuple[Size, ...]
    tasks: dict[str, str]
    """Ids of its tasks by their names in this experiment."""


class Cost(PlanModel):
    flops: Count | None
    """Operations, a multiply-add counted as two."""
    memory: dict[str, Count]
    """Bytes of one worker at its largest moment, by what holds them."""
    peak_memory: Count | None
    disk: Count | None
    """Bytes of the artifact."""
    scratch: Count
    """Bytes of disk while it runs: checkpoints."""
    host_memory: Count
    """Bytes of main memory beside that of one worker's GPU: what a checkpoint is written from."""
    model_flops_per_token: Count
    """Operations that a training needs for a real token, nothing counted that it computes again."""
    read: Count
    tokens: Count | None
    """Through the model, padding among them."""
    real_tokens: Count | None
    unknown: str | None
    """What cannot be known before a run."""


class Task(PlanModel):
    id: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    kind: str
    name: str
    action: Action
    reason: str
    fields: tuple[str, ...]
    """Fields of the spec that force it."""
    same_as: str | None
    """Of a task to reuse: the id of the artifact that was made of the same inputs, byte for byte, and is published
    under this id, too. Null where the task has its own artifact."""
    if_inputs_differ: bool
    """Of a task to run: it runs only if its inputs, which are made again, differ from what they were. Totals and times
    count it."""
    cost: Cost | None
    seconds: Seconds | None
    seconds_from: Origin | None


class Machine(PlanModel):
    cpus: Annotated[int | float, Field(ge=0)]
    gpus: Annotated[int | float, Field(ge=0)]
    device: Annotated[str | None, BeforeValidator(lambda device: device and device.name)]


class Whole(PlanModel):
    """What all tasks take, those too that wait for a search: as many sizes are assumed as it can lead to."""

    totals: Totals
    time: Clock


class PlanJson(PlanModel):
    """What `boomspec plan --json` prints."""

    schema_version: Annotated[Literal[2], Field(serialization_alias="schema")] = 2
    name: str
    graph: str
    store: str
    pending: tuple[str, ...]
    """Searches that the rest of the experiment waits for."""
    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)]
    texts: tuple[TextPlan, ...]
    """What each tokenize task reads."""
    blends: tuple[BlendPlan, ...] = ()
    """What each blend of such texts is made of."""
    transfers: tuple[TransferPlan, ...]
    """How far the deltas of each weight-delta transfer agree."""
    tasks: tuple[Task, ...]
    totals: Totals
    machine: Machine
    time: Clock
    devices: dict[str, Clock]
    """The same plan with its GPU tasks on other kinds of GPU; empty where no task asks for one."""
    with_the_rest: Whole | None
    """With what follows the searches in `pending`; null where there are none."""
    unknown: tuple[str, ...]
    warnings: tuple[str, ...]


def plan_schema() -> dict[str, Any]:
    schema = PlanJson.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def plan_json(
    compiled: Compiled, plan: RunPlan, forecast: Forecast, store: Store, whole: Forecast | None = None
) -> dict[str, Any]:
    """`whole`: a forecast with what follows the searches, where there are any."""
    graph = compiled.graph

    def experiment(label: str) -> dict[str, Any]:
        if (family := compiled.families.get(label)) is None:
            return {"teacher_layers": None, "kept": None, "sizes": ()}
        return {"teacher_layers": family.facts.count, "kept": family.kept, "sizes": family.members}

    def task(node: Node) -> dict[str, Any]:
        step, cost, known = plan.steps[node.id], forecast.costs[node.id], None
        duration = forecast.clock.durations.get(node.id)
        if cost is not None:
            known = vars(cost) | {"peak_memory": cost.peak if cost.memory else None, "unknown": cost.unknown or None}
            if cost.unknown:  # what is 0 is not known, then
                known |= {name: known[name] or None for name in ("flops", "disk", "tokens")}
        about = {"id": node.id, "kind": node.task.kind, "name": node.name, "cost": known}
        time = {"seconds": duration and duration.seconds, "seconds_from": duration and duration.source}
        return {**vars(step), **about, **time, "same_as": step.same_as or None}

    found = {
        "name": graph.name,
        "graph": graph.id,
        "store": store.address,
        "pending": compiled.pending,
        "experiments": [{**vars(one), **experiment(one.label)} for one in graph.experiments],
        "texts": text_plans(graph, store),
        "blends": blend_plans(graph, store),
        "transfers": transfer_plans(graph, store),
        "tasks": [task(node) for node in graph.nodes.values()],
        "totals": forecast.totals,
        "machine": forecast.machine,
        "time": forecast.clock,
        "devices": forecast.devices,
        "with_the_rest": whole and {"totals": whole.totals, "time": whole.clock},
        "unknown": tuple(forecast.reasons),
        "warnings": forecast.warnings,
    }
    return PlanJson.model_validate(found).model_dump(mode="json", by_alias=True)
