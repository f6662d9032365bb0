"""The metadata that a model card opens with, as the Hugging Face hub reads it: licence, data, base, and results.

The results are a `model-index`: an entry for each model, and in it one for each data set. The hub tells data sets apart
by task, type, config and split, so two measures never share these four.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from boomspec.core.files import read_json
from boomspec.core.graph import HELD_OUT_TEXT, TaskGraph
from boomspec.core.sizes import Member
from boomspec.core.task_data import TASKS
from boomspec.core.tasks import Distill, Report
from boomspec.core.tasks.report import shown_measure
from boomspec.store import Store
from runners.modeling.models import lineage_of
from runners.report.collect import collect
from runners.report.page import fetched
from runners.report.study import Row

HELD_OUT = "held_out"
_TEXTS = ("text", "hub_dataset", HELD_OUT_TEXT)
_TAGS = ("boomerang-distillation", "model-interpolation", "boomspec")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def front_matter(
    graph: TaskGraph,
    store: Store,
    models: Mapping[str, Member],
    base: Mapping[str, Any],
    *,
    library: str,
    pipeline: str = "text-generation",
    tags: tuple[str, ...] = (),
) -> str:
    """The YAML of a card. `models`: those that it is of, by their names; `base`: what the base model's card says."""
    hub = [source.identity["hub"] for source in graph.sources.values() if source.kind == "hub_dataset"]
    relation, student = _relation(graph, models) if base else None, graph.sources.get(lineage_of(graph).student)
    if relation == "merge" and student is not None and "hub" in student.identity:
        base = {**base, "base_model": [base["base_model"], student.identity["hub"]]}
    described: dict[str, Any] = {**base, **({} if relation is None else {"base_model_relation": relation})}
    described |= {"library_name": library, "pipeline_tag": pipeline, "tags": [*_TAGS, *tags]}
    described["datasets"] = list(dict.fromkeys(hub)) or None
    data = ModelCardData(**described).to_dict()  # type: ignore[no-untyped-call]
    found = list(measured_rows(graph, store))
    index: list[dict[str, Any]] = []
    for name, member in models.items():
        own = [row for model, row in found if model == graph.task_of(member)]
        if results := evaluation_results(graph, own, pipeline):
            index += eval_results_to_model_index(name, results)
    return yaml.safe_dump({**data, **({"model-index": index} if index else {})}, sort_keys=False, allow_unicode=True)


def measured_rows(graph: TaskGraph, store: Store) -> Iterator[tuple[str, Row]]:
    """Every number in the store, with the id of the model that it is of."""
    for report in (node.task for node in graph.nodes.values() if isinstance(node.task.record, Report)):
        assert isinstance(report.record, Report)
        inputs = {cell.input: report.inputs[cell.input] for cell in report.record.cells}
        folders = fetched(graph, store, inputs)
        for cell in (cell for cell in report.record.cells if cell.input in folders):
            study = collect(Report(cells=(cell,), trainings={}), folders.__getitem__)
            yield from ((graph.nodes[inputs[cell.input]].task.inputs["model"], row) for row in study.rows)


def _relation(graph: TaskGraph, models: Mapping[str, Member]) -> str | None:
    """What the hub calls it: layers of two models put together are a merge, a trained student is a finetune.

    None where it has no word: for the base itself, and for a student that was trained from random weights.
    """
    lineage = lineage_of(graph)
    members = [member for member in models.values() if not member.is_teacher]
    if any(member.plan != lineage.trained.plan for member in members):
        return "merge"
    node = graph.nodes.get(lineage.student)
    from_random = node is not None and isinstance(node.task.record, Distill) and node.task.record.initial == "random"
    return "finetune" if members and not from_random else None


class _Measured(NamedTuple):
    """What a number was measured on, in the hub's terms."""

    type: str
    name: str
    config: str | None = None
    split: str | None = None
    shots: int | None = None


def evaluation_results(graph: TaskGraph, rows: list[Row], pipeline: str) -> list[EvalResult]:
    """The numbers of one model in the terms of the hub."""
    found: list[EvalResult] = []
    taken: dict[tuple[str | None, ...], str] = {}  # by what the hub tells data sets apart by: the measure
    for row in rows:
        on = _measured(graph, row)
        if taken.setdefault((on.type, on.config, on.split), row.measure) != row.measure:
            on = _Measured(row.measure, on.name, shots=on.shots)  # the same documents, asked in another way
        found.append(
            EvalResult(
                task_type=pipeline,
                dataset_type=on.type,
                dataset_name=on.name,
                dataset_config=on.config,
                dataset_split=on.split,
                dataset_args=None if on.shots is None else {"num_few_shot": on.shots},
                metric_type=row.metric.partition(",")[0],
                metric_name=row.metric.replace("_", " "),
                metric_value=row.value,
            )
        )
    return found


def _measured(graph: TaskGraph, row: Row) -> _Measured:
    if row.cell.measure == HELD_OUT:
        texts = {s.identity.get("hub", s.id) for s in graph.sources.values() if s.kind in _TEXTS}
        of = next((s.identity["hub"] for s in graph.sources.values() if s.kind == "hub_dataset"), HELD_OUT)
        return _Measured(of if len(texts) == 1 else HELD_OUT, "held-out documents of the training data")
    results, inputs = _artifact(row.artifact)
    shown = {shown_measure(name, task=row.cell.task, called=row.cell.measure): name for name in results["configs"]}
    alone = row.measure.removesuffix(f" ({row.cell.measure})")
    if (task := shown.get(row.measure, shown.get(alone))) is None:
        return _Measured(row.measure, row.measure)  # a group
    config, shots = results["configs"][task], results.get("n-shot", {}).get(task)
    source = graph.sources.get(inputs.get("tasks", ""))
    path, options = str(config.get("dataset_path")), config.get("dataset_kwargs") or {}
    is_local = source is not None and task in source.identity.get(TASKS, ())
    if is_local or "data_files" in options or _HUB_ID.fullmatch(path) is None or path == "None":
        return _Measured(row.measure, row.measure, shots=shots)
    split = config.get("test_split") or config.get("validation_split")
    return _Measured(path, row.measure, config.get("dataset_name"), split, shots)


@cache
def _artifact(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The results of an evaluation in lm-eval's format, and the ids of its inputs."""
    results = read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
    return {"configs": {}, **results}, read_json(folder / "artifact.json")["task"]["inputs"]
