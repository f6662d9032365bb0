"""Find the folders of a family's models: teacher, student, and the sizes that have been built."""

from collections.abc import Iterable
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import TaskGraph
from boomspec.core.layers import TEACHER, Owner
from boomspec.core.sizes import Lineage, Member
from boomspec.core.tasks import Interpolate
from boomspec.store import Store
from runners.modeling.models import MODEL, model_folder
from runners.runtime.job import Input


def lineage_of(graph: TaskGraph) -> Lineage:
    """The family of a graph. Raises BoomspecError where the graph ends at a search."""
    if graph.family is None:
        raise BoomspecError(f"{graph.name}: its layers or their order are still to be searched for")
    return graph.family


def owner_folders(graph: TaskGraph, store: Store, owners: Iterable[Owner]) -> dict[Owner, Path]:
    """Model folders of teacher and student, fetched from the hub where they are there."""
    lineage, folders = lineage_of(graph), {}
    for owner in owners:
        task = lineage.teacher if owner == TEACHER else lineage.student
        if task in graph.sources:
            folders[owner] = model_folder(Input(task, source=graph.sources[task]))
            continue
        node = graph.nodes[task]
        if not store.has(node.task.kind, task):
            raise BoomspecError(f"{graph.name}: '{node.name}' is not in the store {store.address}")
        folders[owner] = store.fetch(node.task.kind, task) / MODEL
    return folders


def task_of(graph: TaskGraph, member: Member) -> str | None:
    """Id of the task or source that is this model; None for a size that the graph does not build."""
    lineage = lineage_of(graph)
    if member.is_teacher:
        return lineage.teacher
    if member.plan == lineage.trained.plan:
        return lineage.student
    for node in graph.nodes.values():
        record, inputs = node.task.record, node.task.inputs
        if not isinstance(record, Interpolate) or (record.plan, record.tied) != (member.plan, member.tied):
            continue
        if (inputs["teacher"], inputs["student"]) == (lineage.teacher, lineage.student):
            return node.id
    return None


def built_folder(graph: TaskGraph, store: Store, member: Member) -> Path | None:
    """The folder of a model that is in the store already, whole."""
    task = task_of(graph, member)
    if task is None or task not in graph.nodes:
        return None
    kind = graph.nodes[task].task.kind
    ready = store.has(kind, task) and store.damage(kind, task) is None
    return store.fetch(kind, task) / MODEL if ready else None
