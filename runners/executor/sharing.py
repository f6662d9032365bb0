"""Which tasks of a graph are computed together, by one Ray task, because they share work.

Evaluations of one family by one measure do: layers of teacher and student are in memory once, and a layer is run once
for all sizes that begin with the same layers. Other students of the same teacher, such as one of random weights, take
part. Text that is generated shares nothing, and is left to as many workers as there are.

Distillations of one teacher on the same batches share its forward pass, where the spec allows a cohort. So do phases
of them, each of which goes on from the phase before it.

The result of each is the same as alone, and an artifact of its own.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from boomspec.core.execution import TrainingOptions
from boomspec.core.graph import TaskGraph, params_json
from boomspec.core.identity import canonical_plain
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, student_layers
from boomspec.core.tasks import Baseline, Distill, Evaluate, Interpolate, JoinBlocks, Record, Transfer
from boomspec.core.tasks.models import Subset
from boomspec.core.tasks.training import BEFORE

_STUDENTS = 4  # of one teacher that are measured together: they share little
_HEAD = 2  # layers that cost as much as the head and the scores of one size, about


@dataclass(frozen=True)
class InFamily:
    """A model as layers of a teacher and, unless that is None, of a student: ids of artifacts or sources."""

    teacher: str
    student: str | None
    plan: LayerPlan


@dataclass(frozen=True)
class Sharing:
    """Of some tasks of a graph: the group that they may be computed with.

    `models`: what evaluations measure. `cohorts`: how many distillations may be one part of their group.
    """

    groups: Mapping[str, Hashable]
    models: Mapping[str, InFamily]
    cohorts: Mapping[str, int]

    def parts(self, task_ids: Collection[str], places: int) -> list[tuple[str, ...]]:
        """The tasks of one group in parts for Ray, where there is room for so many at a time."""
        models = {task_id: self.models[task_id] for task_id in task_ids if task_id in self.models}
        if models:
            return parts(models, places)
        # Side by side on several workers they are sooner done than taking turns in one.
        count = max(-(-len(task_ids) // min(self.cohorts[i] for i in task_ids)), min(places, len(task_ids)))
        ordered = list(task_ids)
        cuts = [len(ordered) * part // count for part in range(count + 1)]
        return [tuple(ordered[start:end]) for start, end in pairwise(cuts)]


NOTHING = Sharing({}, {}, {})


def copies_files(record: Record) -> bool:
    """Whether a task of this record computes nothing and is done soon."""
    return isinstance(record, Interpolate) or (isinstance(record, Baseline) and isinstance(record.build, Subset))


def sharing(graph: TaskGraph, task_ids: Iterable[str], *, has: Callable[[str], bool], memory: float) -> Sharing:
    """What these tasks of the graph share. A task that shares nothing with another is left out.

    `has`: whether there is, or will be, a model of this id. `memory`: bytes of a machine, 0 where unknown. Tasks that
    would not fit into it together are left out, too.
    """
    made, models, cohorts = _models(graph), dict[str, InFamily](), dict[str, int]()
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for task_id in task_ids:
        node = graph.nodes[task_id]
        task, record, execution = node.task, node.task.record, canonical_plain(node.execution.to_json())
        if isinstance(record, Evaluate):
            model = made.get(task.inputs["model"])
            if model is None or node.generates or not all(map(has, {model.teacher, model.student or model.teacher})):
                continue
            models[task_id] = model
            read = {**task.inputs, "model": model.teacher}
            groups[params_json(record), canonical_plain(read), execution].append(task_id)
        elif (
            isinstance(record, Distill)
            and record.on_policy is None
            and (node.execution.training or TrainingOptions()).cohort not in (None, 1)
        ):
            recipe, padding = record.recipe, record.faithful is not None and record.faithful.padding
            batches = recipe.seed, recipe.sequences, recipe.sequence_length, recipe.isolate, padding, record.draws
            read = {role: given for role, given in task.inputs.items() if role != BEFORE}  # each goes on from its own
            groups[batches, recipe.precision, record.determinism, canonical_plain(read), execution].append(task_id)
    found: dict[str, Hashable] = {}
    for key, ids in groups.items():
        fits = _room(graph, ids, memory)
        if ids[0] in models:
            split = _by_students(ids, models, min(_STUDENTS, fits - 1))
        else:
            allowed = (graph.nodes[ids[0]].execution.training or TrainingOptions()).cohort or 1
            cohorts |= dict.fromkeys(ids, min(allowed, fits))
            split = {0: ids} if min(allowed, fits) > 1 else {}
        found |= {i: (key, part) for part, members in split.items() if len(members) > 1 for i in members}
    return Sharing(found, {i: models[i] for i in found if i in models}, cohorts)


def _room(graph: TaskGraph, task_ids: Sequence[str], memory: float) -> int:
    """How many models of the largest of these tasks fit into a machine, beside each other."""
    execution = graph.nodes[task_ids[0]].execution
    trains = graph.nodes[task_ids[0]].task.record.trains
    costs = [cost for task_id in task_ids if (cost := graph.nodes[task_id].cost) is not None]
    each = max((cost.peak for cost in costs), default=0)
    if execution.memory and trains:  # a cohort claims as much as its students do
        each, limit = execution.memory, memory
    else:
        limit = execution.memory or (0 if execution.gpus else memory)  # of a GPU's the worker sees for itself
    return int(limit // each) if each and limit else len(task_ids) + 1


def _by_students(task_ids: Iterable[str], models: Mapping[str, InFamily], most: int) -> dict[int, list[str]]:
    """The tasks by numbers of groups, each of at most so many students. None is in a group where `most` is 0."""
    numbers: dict[str, int] = {}
    found: dict[int, list[str]] = defaultdict(list)
    for task_id in task_ids if most > 0 else ():
        student = models[task_id].student
        number = 0 if student is None else numbers.setdefault(student, len(numbers)) // most
        found[number].append(task_id)
    return found


def _models(graph: TaskGraph) -> dict[str, InFamily]:
    """The models of a graph that are layers of a teacher and of a student that was distilled from it, by id."""
    found: dict[str, InFamily] = {}
    families = [experiment.family for experiment in graph.experiments if experiment.family is not None]
    rest = {family.teacher for family in families if family.rest}  # their sizes have more than a teacher's layers
    for family in families:
        found[family.teacher] = InFamily(family.teacher, None, family.members[-1].plan)
    for node in graph.nodes.values():
        record, inputs = node.task.record, node.task.inputs
        if isinstance(record, Interpolate) and "seam" not in inputs:  # else it has weights of its own
            found[node.id] = InFamily(inputs["teacher"], inputs["student"], record.plan)
        elif isinstance(record, Baseline) and isinstance(record.build, Subset):
            found[node.id] = InFamily(inputs["teacher"], None, record.build.plan)
        elif isinstance(record, Distill | JoinBlocks | Transfer):  # it is stored as what it begins as, as all sizes are
            goes_on = isinstance(record, Distill) and record.passed_steps is not None
            begins_as = inputs["teacher"] if goes_on else inputs.get("start", inputs["teacher"])
            found[node.id] = InFamily(begins_as, node.id, student_layers(len(record.kept)))
    return {model_id: model for model_id, model in found.items() if model.teacher not in rest}


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
