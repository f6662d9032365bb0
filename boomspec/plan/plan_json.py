"""A plan as JSON for programs: pydantic models, of which `boomspec schema plan` prints the JSON Schema.

`schema` rises when a field changes its meaning or goes away; new fields may come at any time. What is not known is
null, never a guess; `totals` are then lower bounds. Sizes are bytes, times are seconds.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from boomspec.compile.compiler import Compiled
from boomspec.core.graph import Node
from boomspec.plan.forecast import Clock, Forecast, Seconds, Totals
from boomspec.plan.plan import Action, RunPlan
from boomspec.plan.rates import Origin
from boomspec.plan.text_plan import Count, PlanModel, TextPlan, text_plans
from boomspec.store import Store


class _Model(PlanModel):
    model_config = ConfigDict(from_attributes=True)


class Size(_Model):
    layers: Count
    patched: Count
    parameters: Count
    bytes: Count
    tied: bool
    plan: tuple[Annotated[str, BeforeValidator(str), Field(pattern="^[st][0-9]+$")], ...]
    asked: tuple[str, ...]


class Experiment(_Model):
    label: str
    axes: dict[str, str]
    teacher_layers: Count | None
    kept: tuple[Count, ...] | None
    sizes: tuple[Size, ...]
    tasks: dict[str, str]
    """Ids of its tasks by their names in this experiment."""


class Cost(_Model):
    flops: Count | None
    """Operations, a multiply-add counted as two."""
    memory: dict[str, Count]
    """Bytes of one worker at its largest moment, by what holds them."""
    peak_memory: Count | None
    disk: Count | None
    """Bytes of the artifact."""
    scratch: Count
    """Bytes of disk while it runs: checkpoints."""
    read: Count
    tokens: Count | None
    """Through the model, padding among them."""
    real_tokens: Count | None
    unknown: str | None
    """What cannot be known before a run."""


class Task(_Model):
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


class Machine(_Model):
    cpus: Annotated[int | float, Field(ge=0)]
    gpus: Annotated[int | float, Field(ge=0)]
    device: Annotated[str | None, BeforeValidator(lambda device: device and device.name)]


class PlanJson(_Model):
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
    tasks: tuple[Task, ...]
    totals: Totals
    machine: Machine
    time: Clock
    devices: dict[str, Clock]
    """The same plan with its GPU tasks on other kinds of GPU; empty where no task asks for one."""
    unknown: tuple[str, ...]
    warnings: tuple[str, ...]


def plan_schema() -> dict[str, Any]:
    schema = PlanJson.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def plan_json(compiled: Compiled, plan: RunPlan, forecast: Forecast, store: Store) -> dict[str, Any]:
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
        return {
            **vars(step),
            "same_as": step.same_as or None,
            "id": node.id,
            "kind": node.task.kind,
            "name": node.name,
            "cost": known,
            "seconds": duration and duration.seconds,
            "seconds_from": duration and duration.source,
        }

    whole = {
        "name": graph.name,
        "graph": graph.id,
        "store": store.address,
        "pending": compiled.pending,
        "experiments": [{**vars(one), **experiment(one.label)} for one in graph.experiments],
        "texts": text_plans(graph, store),
        "tasks": [task(node) for node in graph.nodes.values()],
        "totals": forecast.totals,
        "machine": forecast.machine,
        "time": forecast.clock,
        "devices": forecast.devices,
        "unknown": tuple(forecast.reasons),
        "warnings": forecast.warnings,
    }
    return PlanJson.model_validate(whole).model_dump(mode="json", by_alias=True)
