"""What a plan says of a weight-delta transfer: how far the two deltas agree, as far as the models are on this machine.

A plan reads a sample of the weights; the task reads all, and its artifact has the exact numbers.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Node, TaskGraph
from boomspec.core.tasks import Transfer
from boomspec.core.tasks.transfer import DELTAS
from boomspec.core.types import Strict
from boomspec.models.facts import read_facts
from boomspec.models.folder import TOKENIZER
from boomspec.models.hub import cached_model
from boomspec.models.tokenizer import vocabulary
from boomspec.models.transfer import summed_tensors
from boomspec.models.weight_deltas import sampled_deltas
from boomspec.store import RECORD, Store

_UNLIKE = 0.5  # cosine of the layers' matrices, below which two models have little in common


class DeltaRow(Strict):
    """The deltas in one group of tensors: what is added, and what made the variant of its base."""

    group: str
    weights: int
    cosine: float | None
    """Between both; null where one of them is nothing."""
    transferred_norm: float
    variant_norm: float


class TransferPlan(Strict):
    """What is known of a transfer."""

    task: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    name: str
    deltas: tuple[DeltaRow, ...]
    """By group, and of all; empty where a model is not on this machine."""
    read: int | None
    """Weights that were read of each model; null: all of them, by the task itself."""
    unknown: str | None
    """Why there are no numbers."""
    warnings: tuple[str, ...]


def transfer_plans(graph: TaskGraph, store: Store) -> list[TransferPlan]:
    nodes = [node for node in graph.nodes.values() if isinstance(node.task.record, Transfer)]
    return [_plan(node, graph, store) for node in nodes]


def _plan(node: Node, graph: TaskGraph, store: Store) -> TransferPlan:
    record = node.task.record
    assert isinstance(record, Transfer)
    about: dict[str, Any] = {"task": node.id, "name": node.name, "deltas": (), "read": None, "unknown": None}
    roles = ("teacher", "base", "distilled")
    places = {role: _folder(role, node.task.inputs[role], graph, store) for role in roles}
    folders = {role: place for role, place in places.items() if isinstance(place, Path)}
    warnings = list(_tokenizers(folders))
    if store.is_whole(node.task.kind, node.id):
        found = json.loads(store.read(node.task.kind, node.id, DELTAS))
        return TransferPlan(**{**about, "deltas": tuple(found["groups"])}, warnings=tuple(warnings))
    if missing := [place for place in places.values() if isinstance(place, str)]:
        return TransferPlan(**{**about, "unknown": missing[0]}, warnings=tuple(warnings))
    try:
        variant, base, distilled = (read_facts(folders[role]) for role in roles)
        deltas, read = sampled_deltas(summed_tensors(variant, base, distilled, record.kept))
    except BoomspecError as error:  # the task will say it, too
        return TransferPlan(**{**about, "unknown": error.message}, warnings=tuple(warnings))
    for what, agreement in (
        ("the distilled student has little of the base that is named", deltas.distilled),
        ("the teacher has little of the base that is named", deltas.variant),
    ):
        cosine, layer = deltas.least(agreement)
        if cosine < _UNLIKE:
            warnings.append(f"{node.name}: {what}: the cosine in layer {layer} of the student is {cosine:.2f}")
    return TransferPlan(**{**about, "deltas": tuple(deltas.rows()), "read": read}, warnings=tuple(warnings))


def _folder(role: str, model: str, graph: TaskGraph, store: Store) -> Path | str:
    """Where a model is on this machine, or why it is not there."""
    if (source := graph.sources.get(model)) is None:
        node = graph.nodes[model]
        made = store.path(node.task.kind, model)
        return made / "model" if (made / RECORD).is_file() else f"its {role} is made first, by: {node.name}"
    if "hub" not in source.location:
        return Path(source.location["folder"])
    found = cached_model(source.location["hub"], source.identity["revision"])
    if found is None or not any(found.glob("*.safetensors")):
        return f"its {role} is on the hub: {source.location['hub']} is not on this machine"
    return found


def _tokenizers(folders: dict[str, Path]) -> list[str]:
    """A warning where variant and base read text otherwise."""
    if not all(role in folders and (folders[role] / TOKENIZER).is_file() for role in ("teacher", "base")):
        return []
    try:
        own, its = (vocabulary(folders[role]) for role in ("teacher", "base"))
    except BoomspecError:
        return []
    of_base = {number: token for token, number in its.items()}
    other = sorted(number for token, number in own.items() if of_base.get(number, token) != token)
    if not other:
        return []
    shown = f"{len(other):,} of its tokens are others there, the first is {other[0]}"
    what = "what was learned of a token is added to the one that has its number"
    return [f"transfer: the teacher's tokenizer is not that of the base: {shown}; {what}"]
