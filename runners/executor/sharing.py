"""Which tasks of a graph are computed together, by one Ray task, because they share work.

Evaluations of one family by one measure do: layers of teacher and student are in memory once, and a layer is run once
for all sizes that begin with the same layers. Other students of the same teacher, such as one of random weights, take
part. The result of each is the same as alone, and an artifact of its own. Text that is generated shares nothing, and is
left to as many workers as there are.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from boomspec.core.graph import TaskGraph, params_json
from boomspec.core.identity import canonical_plain
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, student_layers
from boomspec.core.tasks import Baseline, Distill, Evaluate, Interpolate, Record
from boomspec.core.tasks.models import Subset

_HEAD = 2  # layers that cost as much as the head and the scores of one size, about


@dataclass(frozen=True)
class InFamily:
    """A model as layers of a teacher and, unless that is None, of a student: ids of artifacts or sources."""

    teacher: str
    student: str | None
    plan: LayerPlan


@dataclass(frozen=True)
class Sharing:
    """Of some tasks of a graph: the group that they may be computed with, and the model that they measure."""

    groups: Mapping[str, Hashable]
    models: Mapping[str, InFamily]


NOTHING = Sharing({}, {})


def copies_files(record: Record) -> bool:
    """Whether a task of this record computes nothing and is done soon."""
    return isinstance(record, Interpolate) or (isinstance(record, Baseline) and isinstance(record.build, Subset))


def sharing(graph: TaskGraph, task_ids: Iterable[str], *, has: Callable[[str], bool], memory: float) -> Sharing:
    """What these tasks of the graph share. A task that shares nothing with another is left out.

    `has`: whether there is, or will be, a model of this id. `memory`: bytes of a machine, 0 where unknown. Tasks of
    which teacher and student together would not fit are left out, too.
    """
    made, models, groups = _models(graph), dict[str, InFamily](), dict[str, tuple[str, ...]]()
    for task_id in task_ids:
        node = graph.nodes[task_id]
        task, execution = node.task, node.execution
        model = made.get(task.inputs.get("model", ""))
        if not isinstance(task.record, Evaluate) or model is None or node.generates:
            continue
        if not (has(model.teacher) and (model.student is None or has(model.student))):
            continue
        others = {role: given for role, given in task.inputs.items() if role != "model"}
        models[task_id] = model
        groups[task_id] = (
            model.teacher,
            params_json(task.record),
            canonical_plain(others),
            canonical_plain(execution.to_json()),
        )
    members = defaultdict[Hashable, list[str]](list)
    for task_id, key in groups.items():
        members[key].append(task_id)
    shared = {i for ids in members.values() if len(ids) > 1 and _fits(graph, ids, models, memory) for i in ids}
    return Sharing({i: key for i, key in groups.items() if i in shared}, {i: models[i] for i in shared})


def _models(graph: TaskGraph) -> dict[str, InFamily]:
    """The models of a graph that are layers of a teacher and of a student that was distilled from it, by id."""
    found: dict[str, InFamily] = {}
    families = [experiment.family for experiment in graph.experiments if experiment.family is not None]
    rest = {family.teacher for family in families if family.rest}  # their sizes have more than a teacher's layers
    for family in families:
        found[family.teacher] = InFamily(family.teacher, None, family.members[-1].plan)
    for node in graph.nodes.values():
        record, inputs = node.task.record, node.task.inputs
        if isinstance(record, Interpolate):
            found[node.id] = InFamily(inputs["teacher"], inputs["student"], record.plan)
        elif isinstance(record, Baseline) and isinstance(record.build, Subset):
            found[node.id] = InFamily(inputs["teacher"], None, record.build.plan)
        elif isinstance(record, Distill):  # it is stored as its teacher is, as all sizes are
            found[node.id] = InFamily(inputs["teacher"], node.id, student_layers(len(record.kept)))
    return {model_id: model for model_id, model in found.items() if model.teacher not in rest}


def _fits(graph: TaskGraph, task_ids: Sequence[str], models: Mapping[str, InFamily], memory: float) -> bool:
    """Whether a teacher and all students fit into what each of the tasks claims, or into the machine's `memory`."""
    execution = graph.nodes[task_ids[0]].execution
    limit = execution.memory or (0 if execution.gpus else memory) or math.inf  # of a GPU's the worker sees for itself
    costs = [cost for task_id in task_ids if (cost := graph.nodes[task_id].cost) is not None]
    owners = {owner for task_id in task_ids for owner in (models[task_id].teacher, models[task_id].student) if owner}
    return len(owners) * max((sum(cost.memory.values()) for cost in costs), default=0) <= limit


def parts(models: Mapping[str, InFamily], places: int) -> list[tuple[str, ...]]:
    """The ids of `models` in at most `places` parts of about equal work; plans that begin alike are together."""
    ordered = sorted(models, key=lambda task_id: _layers(models[task_id]))
    plans = [_layers(models[task_id]) for task_id in ordered]
    new = [len(plans[0]), *(len(plan) - _shared(before, plan) for before, plan in pairwise(plans))]
    work = [_HEAD + layers for layers in new]
    found: list[list[str]] = [[]]
    done = 0
    for task_id, own in zip(ordered, work, strict=True):
        # A part ends where its share of all work is reached, in the middle of the member that crosses it.
        if found[-1] and done + own / 2 > sum(work) * len(found) / places and len(found) < places:
            found.append([])
        found[-1].append(task_id)
        done += own
    return [tuple(part) for part in found]


def _layers(model: InFamily) -> tuple[tuple[str, int], ...]:
    """The layers of a plan by the ids of the models that have them."""
    owners = {TEACHER: model.teacher, STUDENT: model.student or ""}
    return tuple((owners[layer.owner], layer.index) for layer in model.plan)


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many layers two plans begin with alike."""
    return len(list(takewhile(lambda layers: layers[0] == layers[1], zip(one, other, strict=False))))
