"""Make models of any size from one teacher and one student in memory, sharing their weights (see `rewired`)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import TaskGraph
from boomspec.core.layers import STUDENT, TEACHER, Layer, LayerPlan, Owner, ends_of, read_layers
from boomspec.core.sizes import Lineage, Member
from boomspec.models import trust
from boomspec.models.facts import ModelFacts, read_facts
from boomspec.store import Store
from runners.modeling.models import Code, built_folder, lineage_of, load, owner_folders, stored_dtype
from runners.modeling.rewired import rewired

Dtype = torch.dtype | str | None  # None: the one that the weights are stored in


@dataclass(frozen=True)
class Family:
    """Teacher, student, and what makes every size between them. Changing a shared weight changes it in all."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    lineage: Lineage
    facts: Mapping[Owner, ModelFacts]

    @property
    def sizes(self) -> tuple[Member, ...]:
        """Layers, parameters, bytes and layer plan of every model, smallest first; the last one is the teacher."""
        return self.lineage.members

    def model(self, size: str | Sequence[str | Layer]) -> PreTrainedModel:
        """The model of a size ("24 layers", "3B", "80%", "student") or of a layer plan (["s0", "s1", "t4", ...]).

        The largest member not above a size is taken. A layer plan need not be one of `sizes`; where its first and
        last layer have two owners, embedding and head do, too. Raises BoomspecError for what does not exist.
        """
        if isinstance(size, str):
            member = self.lineage.pick(size)
            if self.lineage.is_fitted(member):
                raise _own_weights(member)
            return self._rewired(member.plan, tied=member.tied)
        try:
            plan = read_layers(size)
        except ValueError as error:
            raise BoomspecError(str(error)) from error
        if not plan:
            raise BoomspecError("a layer plan needs at least one layer")
        for layer in plan:
            if layer.index >= (count := self.facts[layer.owner].count):
                raise BoomspecError(f"{layer} does not exist: that model has {count} layers")
        members = {member.plan: member for member in (self.lineage.trained, *self.sizes)}
        if (same := members.get(plan)) is not None and self.lineage.is_fitted(same):
            raise _own_weights(same)
        known = {plan: member.tied for plan, member in members.items()}
        first, last = ends_of(plan)
        return self._rewired(plan, tied=known.get(plan, self.facts[TEACHER].tied and first == last))

    def _rewired(self, plan: LayerPlan, *, tied: bool) -> PreTrainedModel:
        return rewired({TEACHER: self.teacher, STUDENT: self.student}, self.facts, plan, tied=tied)


def load_family(graph: TaskGraph, store: Store, *, dtype: Dtype = None) -> Family:
    """The family that a graph has made. See `open_family`."""
    folders = owner_folders(graph, store, (TEACHER, STUDENT))
    return open_family(folders[TEACHER], folders[STUDENT], lineage_of(graph), dtype=dtype, code=_trusted(graph))


def load_member(graph: TaskGraph, store: Store, member: Member, *, dtype: Dtype = None) -> PreTrainedModel:
    """One model of the family that a graph has made: from its folder where it has been built, else re-wired."""
    folder = built_folder(graph, store, member)
    if folder is None and member.is_teacher:
        folder = owner_folders(graph, store, [TEACHER])[TEACHER]
    if folder is None and lineage_of(graph).is_fitted(member):
        raise _own_weights(member)
    if folder is None:
        return load_family(graph, store, dtype=dtype).model(member.plan)
    return load(folder, dtype=torch_dtype(dtype, folder), code=_trusted(graph))


def _own_weights(member: Member) -> BoomspecError:
    message = f"the size of {member.layers} layers has weights of its own, fitted at its seams: it shares no memory"
    return BoomspecError(message, hint="run the spec, or export this size, and load its folder")


def _trusted(graph: TaskGraph) -> frozenset[str]:
    """The code that the graph's spec trusts; warns of it."""
    for line in trust.warnings(graph):
        warnings.warn(line, stacklevel=4)
    return trust.trusted_code(graph.sources.values())


def open_family(teacher: Path, student: Path, lineage: Lineage, *, dtype: Dtype = None, code: Code = ()) -> Family:
    """Load the models of two folders of one family, on this device; no more of their code runs than `code` (sha256)."""
    folders: dict[Owner, Path] = {TEACHER: teacher, STUDENT: student}
    facts = {owner: read_facts(folder) for owner, folder in folders.items()}
    if facts[TEACHER].model_type != facts[STUDENT].model_type:
        types = " and a ".join(model.model_type for model in facts.values())
        message = f"a {types} model cannot share their layers in memory"
        raise BoomspecError(message, hint="boomspec export writes any size to a folder")
    models = {owner: load(folder, dtype=torch_dtype(dtype, teacher), code=code) for owner, folder in folders.items()}
    return Family(models[TEACHER], models[STUDENT], lineage, facts)


def torch_dtype(dtype: Dtype, folder: Path) -> torch.dtype:
    if dtype is None:
        return stored_dtype(folder)
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BoomspecError(f"'{dtype}' is not a floating-point dtype of torch", hint="for example: bfloat16, float32")
    return found
