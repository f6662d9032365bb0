"""Make models of any size from one teacher and one student in memory, sharing their weights (see `rewired`)."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


class Weights(Protocol):
    """Where the models of a family come from: memory that they share, or files."""

    @property
    def counts(self) -> Mapping[Owner, int]:
        """Layers of teacher and student."""

    @property
    def fitted(self) -> bool:
        """Whether the weights that were fitted at seams are among them."""

    def owned(self, owner: Owner) -> PreTrainedModel:
        """Teacher or student."""

    def model(self, plan: LayerPlan, *, tied: bool) -> PreTrainedModel:
        """The model of a layer plan whose layers exist."""


@dataclass(frozen=True)
class Family:
    """Every size between student and teacher, made when it is asked for."""

    lineage: Lineage
    weights: Weights

    @property
    def teacher(self) -> PreTrainedModel:
        return self.weights.owned(TEACHER)

    @property
    def student(self) -> PreTrainedModel:
        return self.weights.owned(STUDENT)

    @property
    def sizes(self) -> tuple[Member, ...]:
        """Layers, parameters, bytes and layer plan of every model, smallest first; the last one is the teacher."""
        return self.lineage.members

    def model(self, size: str | Member | Sequence[str | Layer]) -> PreTrainedModel:
        """The model of a size ("24 layers", "3B", "80%", "student") or of a layer plan (["s0", "s1", "t4", ...]).

        The largest member not above a size is taken. A layer plan need not be one of `sizes`; where its first and
        last layer have two owners, embedding and head do, too. Raises BoomspecError for what does not exist.
        """
        if isinstance(size, str | Member):
            member = self.lineage.pick(size) if isinstance(size, str) else size
            return self._made(member.plan, member, tied=member.tied)
        try:
            plan = read_layers(size)
        except ValueError as error:
            raise BoomspecError(str(error)) from error
        if not plan:
            raise BoomspecError("a layer plan needs at least one layer")
        for layer in plan:
            if layer.index >= (count := self.weights.counts[layer.owner]):
                raise BoomspecError(f"{layer} does not exist: that model has {count} layers")
        members = {member.plan: member for member in (self.lineage.trained, *self.sizes)}
        first, last = ends_of(plan)
        same, alone = members.get(plan), self.sizes[-1].tied and first == last
        return self._made(plan, same, tied=alone if same is None else same.tied)

    def _made(self, plan: LayerPlan, member: Member | None, *, tied: bool) -> PreTrainedModel:
        if member is not None and self.lineage.is_fitted(member) and not self.weights.fitted:
            raise _own_weights(member)
        return self.weights.model(plan, tied=tied)


@dataclass(frozen=True)
class InMemory:
    """Teacher and student, held once: other models are made of their weights. Changing one changes it in all.

    `models` may load each of them when it is asked for: a plan of one owner's layers asks for that one alone.
    """

    models: Mapping[Owner, PreTrainedModel]
    facts: Mapping[Owner, ModelFacts]
    fitted: bool = False

    @property
    def counts(self) -> Mapping[Owner, int]:
        return {owner: facts.count for owner, facts in self.facts.items()}

    def owned(self, owner: Owner) -> PreTrainedModel:
        return self.models[owner]

    def model(self, plan: LayerPlan, *, tied: bool) -> PreTrainedModel:
        owners = {layer.owner for layer in plan}
        return rewired({o: self.models[o] for o in self.facts if o in owners}, self.facts, plan, tied=tied)


class _Loaded(Mapping[Owner, PreTrainedModel]):
    """Models by owner, each loaded when it is first asked for."""

    def __init__(self, load_one: Callable[[Owner], PreTrainedModel], owners: Iterable[Owner]) -> None:
        self._load, self._owners, self._models = load_one, tuple(owners), dict[Owner, PreTrainedModel]()

    def __getitem__(self, owner: Owner) -> PreTrainedModel:
        if owner not in self._models:
            self._models[owner] = self._load(owner)
        return self._models[owner]

    def __iter__(self) -> Iterator[Owner]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)


def load_family(graph: TaskGraph, store: Store, *, dtype: Dtype = None, code: Code | None = None) -> Family:
    """The family that a graph has made. See `open_family`. `code`: None warns of what the spec trusts, and runs it."""
    folders = owner_folders(graph, store, (TEACHER, STUDENT))
    known = _trusted(graph) if code is None else code
    return open_family(folders[TEACHER], folders[STUDENT], lineage_of(graph), dtype=dtype, code=known)


def load_member(graph: TaskGraph, store: Store, member: Member, *, dtype: Dtype = None) -> PreTrainedModel:
    """One model of the family that a graph has made: from its folder where it has been built, else re-wired."""
    code = _trusted(graph)
    if (alone := load_own(graph, store, member, dtype=dtype, code=code)) is not None:
        return alone
    if lineage_of(graph).is_fitted(member):
        raise _own_weights(member)
    return load_family(graph, store, dtype=dtype, code=code).model(member)


def load_own(graph: TaskGraph, store: Store, member: Member, *, dtype: Dtype, code: Code) -> PreTrainedModel | None:
    """A model that a folder holds alone: the teacher, or what the graph has built. None for any other."""
    folder = built_folder(graph, store, member)
    if folder is None and member.is_teacher:
        folder = owner_folders(graph, store, [TEACHER])[TEACHER]
    return folder and load(folder, dtype=torch_dtype(dtype, folder), code=code)


def _own_weights(member: Member) -> BoomspecError:
    message = f"the size of {member.layers} layers has weights of its own, fitted at its seams: it shares no memory"
    return BoomspecError(message, hint="run the spec, or export this size, and load its folder")


def _trusted(graph: TaskGraph) -> frozenset[str]:
    """The code that the graph's spec trusts; warns of it."""
    for line in trust.warnings(graph):
        warnings.warn(line, stacklevel=4)
    return trust.trusted_code(graph.sources.values())


def open_family(teacher: Path, student: Path, lineage: Lineage, *, dtype: Dtype = None, code: Code = ()) -> Family:
    """The models of two folders of one family, on this device; no more of their code runs than `code` (sha256).

    No weights are read before a model needs them. Raises BoomspecError where the two cannot share layers.
    """
    folders: dict[Owner, Path] = {TEACHER: teacher, STUDENT: student}
    facts = {owner: read_facts(folder) for owner, folder in folders.items()}
    if facts[TEACHER].model_type != facts[STUDENT].model_type:
        types = " and a ".join(model.model_type for model in facts.values())
        message = f"a {types} model cannot share their layers in memory"
        raise BoomspecError(message, hint="boomspec export writes any size to a folder")
    wanted = torch_dtype(dtype, teacher)
    models = _Loaded(lambda owner: load(folders[owner], dtype=wanted, code=code), folders)
    return Family(lineage, InMemory(models, facts))


def torch_dtype(dtype: Dtype, folder: Path) -> torch.dtype:
    return floating_dtype(dtype) or stored_dtype(folder)


def floating_dtype(dtype: Dtype) -> torch.dtype | None:
    """The dtype of torch that a name means; None for None. Raises BoomspecError for what is none."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and (not isinstance(found, torch.dtype) or not found.is_floating_point):
        raise BoomspecError(f"'{dtype}' is not a floating-point dtype of torch", hint="for example: bfloat16, float32")
    return found
