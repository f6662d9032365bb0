"""A plan as JSON for programs: pydantic models, of which `boomspec schema plan` prints the JSON Schema.

`schema` rises when a field changes its meaning or goes away; new fields may come at any time. What is not known is
null, never a guess; `totals` are then lower bounds. Sizes are bytes, times are seconds.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from boomspec.compile.compiler import Compiled
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Node, Source, TaskGraph
from boomspec.core.tasks import Tokenize
from boomspec.models.tokenizer import text_start
from boomspec.plan.forecast import Clock, Count, Forecast, PlanModel, Seconds, Totals
from boomspec.plan.plan import Action, RunPlan
from boomspec.plan.rates import Origin
from boomspec.plan.transfers import TransferPlan, transfer_plans
from boomspec.store import Store


class FileEntrySummary(PlanModel):
    """What one entry of data.files gives, each file once; null where it is not known before it is read."""

    entry: str
    held_out: bool = False
    files: Count | None = None
    documents: Count | None = None
    bytes: Count | None = None


class TextPlan(PlanModel):
    """The text that one tokenize task reads."""

    task: str
    """The id of the tokenize task."""
    given: tuple[FileEntrySummary, ...]
    begins: str
    """How documents begin, in a sentence."""
    bos: tuple[str, ...] | None
    """The tokens that a document begins with; null where only the loaded tokenizer knows."""
    tokens: Count | None
    """Training tokens: those that were found, else data.max_tokens."""
    on_bad_row: Literal["error", "skip"]
    skipped: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Rows without text that were left out, by what was wrong; null before the text is read."""
    passes: dict[str, float] = {}  # noqa: RUF012 (pydantic copies it)
    """How often a training goes through the text, where that is more than once."""


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


def text_plans(graph: TaskGraph, store: Store) -> list[TextPlan]:
    tasks = ((node, node.task.record) for node in graph.nodes.values())
    return [_text_plan(record, node, graph, store) for node, record in tasks if isinstance(record, Tokenize)]


def _text_plan(record: Tokenize, node: Node, graph: TaskGraph, store: Store) -> TextPlan:
    inputs = node.task.inputs
    meta = _meta(store, node.id)
    given = [found for role in ("text", "held_out") if role in inputs for found in _given(graph.sources[inputs[role]])]
    tokens = meta["train"]["tokens"] if meta else record.max_tokens
    begins, bos = _beginning(record, graph.sources.get(inputs.get("tokenizer", "")))
    readers = [n for n in graph.nodes.values() if tokens and n.task.inputs.get("tokens") == node.id]
    passes = {reader.name: reader.task.record.text_tokens() / (tokens or 1) for reader in readers}
    return TextPlan(
        task=node.id,
        given=tuple(given),
        begins=begins,
        bos=bos,
        tokens=tokens,
        on_bad_row=record.on_bad_row or "error",
        skipped=meta.get("skipped", {} if record.on_bad_row == "skip" else None) if meta else None,
        # The last document is read whole: less is a matter of rounding.
        passes={name: times for name, times in passes.items() if times > 1.005},
    )


def _given(source: Source) -> list[FileEntrySummary]:
    held_out = source.kind == "held_out_text"
    if entries := source.location.get("entries"):
        return [FileEntrySummary(**entry, held_out=held_out) for entry in entries]
    if "hub" in source.identity:
        return [FileEntrySummary(entry=source.identity["hub"])]
    files = source.identity.get("files", ())
    size = sum(file["bytes"] for file in files)
    documents = len(files) if source.identity.get("format") == "text" else None
    name = str(source.location.get("name", "files"))
    return [FileEntrySummary(entry=name, held_out=held_out, files=len(files), documents=documents, bytes=size)]


def _beginning(record: Tokenize, tokenizer: Source | None) -> tuple[str, tuple[str, ...] | None]:
    """How documents begin, as a phrase and as tokens."""
    if record.bos is False or tokenizer is None:
        return "after an end-of-text token, without a token of their own", ()
    if record.bos:
        return "with the beginning-of-sequence token of the teacher's tokenizer (data.bos: true)", None
    folder = tokenizer.location.get("folder")
    start = text_start(Path(folder)) if folder is not None else None
    if start is None:
        return "as the teacher's tokenizer begins a text", None
    if start:
        return f"with {' '.join(start)}, as the teacher's tokenizer begins a text", start
    return "after an end-of-text token: the teacher's tokenizer puts nothing in front of a text", ()


def _meta(store: Store, task: str) -> Any:
    try:
        return json.loads(store.read("tokenize", task, "meta.json")) if store.has("tokenize", task) else None
    except (OSError, ValueError, BoomspecError):
        return None
