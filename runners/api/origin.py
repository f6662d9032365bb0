"""Where a family comes from: what `runners.api.family` asks of a finished run."""

import os
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from boomspec.core.graph import TaskGraph
from boomspec.core.layers import TEACHER, layers_text
from boomspec.core.sizes import Lineage, Member
from boomspec.core.tasks import Cell, Report
from boomspec.models import trust
from boomspec.models.facts import ModelFacts, read_facts
from boomspec.models.family_file import FamilyFile, read_family_file, teacher_facts
from boomspec.models.hub import pinned_model
from boomspec.plan.run import Run
from runners.report import study
from runners.report.collect import collect
from runners.report.study import Row, Study
from runners.runtime.job import fetch_numbers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from runners.modeling import family as modeling


NOT_RUN = "it has not been run"
_CELL = ("series", "layers", "parameters", "bytes", "measure", "task")  # of a number in family.json


class Origin(Protocol):
    """Nothing here reads weights but the models that `shared` and `own` give."""

    name: str
    lineage: Lineage

    def shared(self, dtype: "torch.dtype | str | None") -> "modeling.Family":
        """Teacher and student, and what makes every size of them. BoomspecError where they cannot share layers."""

    def own(self, member: Member, dtype: "torch.dtype | str | None") -> "PreTrainedModel | None":
        """A size that is in a folder of its own; None where it is not."""

    def facts(self) -> ModelFacts:
        """What the teacher's config and headers say."""

    def tokenizer(self) -> Any:
        """The teacher's."""

    def study(self) -> Study:
        """What was measured, as the store holds it now."""

    def measured(self, cell: Cell) -> Member | None:
        """The member that a cell is of; None for a baseline's."""


class FromRun:
    """A run by its compiled graph and its store. Warns of the code that its models run."""

    def __init__(self, run: Run) -> None:
        self._run, self.name, self.lineage = run, run.graph.name, run.lineage()
        self._graph, self._store = run.graph, run.store
        self._code = trust.trusted_code(self._graph.sources.values())
        for line in trust.warnings(self._graph):
            warnings.warn(line, stacklevel=3)

    def shared(self, dtype: "torch.dtype | str | None") -> "modeling.Family":
        from runners.modeling.family import load_family

        return load_family(self._graph, self._store, dtype=dtype, code=self._code)

    def own(self, member: Member, dtype: "torch.dtype | str | None") -> "PreTrainedModel | None":
        from runners.modeling.family import load_own

        return load_own(self._graph, self._store, member, dtype=dtype, code=self._code)

    def facts(self) -> ModelFacts:
        teacher = self.lineage.teacher
        if teacher in self._graph.nodes:
            return read_facts(self._store.fetch(self._graph.nodes[teacher].task.kind, teacher) / "model")
        source = self._graph.sources[teacher]
        if "hub" in source.location:  # headers alone: its weights may not be here
            return pinned_model(source.location["hub"], source.identity["revision"])[1]
        return read_facts(Path(source.location["folder"]))

    def tokenizer(self) -> Any:
        from runners.modeling.foreign_code import tokenizer_of
        from runners.modeling.models import owner_folders

        return tokenizer_of(owner_folders(self._graph, self._store, [TEACHER])[TEACHER], self._code)

    def study(self) -> Study:
        record, inputs = self._numbers
        roles = [cell.input for cell in (*record.cells, *(record.deployed or ()))]
        made = {role: (self._whole.nodes[inputs[role]].task.kind, inputs[role]) for role in roles}
        folders = fetch_numbers(self._store, self._store.records(set(made.values())))
        return collect(record, lambda role: folders.get(made[role], NOT_RUN))

    def measured(self, cell: Cell) -> Member | None:
        return self._members.get(self._whole.nodes[self._numbers[1][cell.input]].task.inputs["model"])

    @cached_property
    def _numbers(self) -> tuple[Report, dict[str, str]]:
        return self._run.numbers()

    @property
    def _whole(self) -> TaskGraph:
        return self._run.whole or self._graph

    @cached_property
    def _members(self) -> dict[str, Member]:
        """The family's, by the tasks or sources that make them."""
        found = {self._graph.task_of(member): member for member in (*self.lineage.members, self.lineage.trained)}
        return {task: member for task, member in found.items() if task is not None}


def from_folder(place: str | os.PathLike[str]) -> "FromFolder":
    """The family in a folder, or in a repository of the hub. Raises BoomspecError where there is none."""
    if (folder := Path(place)).is_dir():
        return FromFolder(folder, read_family_file(folder))
    from runners.modeling.family_folder import fetch_family

    name = os.fspath(place)
    return FromFolder(*fetch_family(name), hub=name)


class FromFolder:
    """A family that `boomspec export --family` has written into a folder, here or on the hub."""

    def __init__(self, folder: Path, file: FamilyFile, *, hub: str | None = None) -> None:
        self._folder, self._file, self._hub = folder, file, hub
        self.name, self.lineage = file.name, file.lineage

    def shared(self, dtype: "torch.dtype | str | None") -> "modeling.Family":
        from runners.modeling.family import Family, floating_dtype
        from runners.modeling.family_folder import FolderWeights

        return Family(self.lineage, FolderWeights(self._folder, self._file, floating_dtype(dtype), hub=self._hub))

    def own(self, member: Member, dtype: "torch.dtype | str | None") -> "PreTrainedModel | None":
        return None

    def facts(self) -> ModelFacts:
        return teacher_facts(self._folder, self._file, hub=self._hub)

    def tokenizer(self) -> Any:
        from runners.modeling.foreign_code import tokenizer_of

        return tokenizer_of(self._folder)

    def study(self) -> Study:
        """The numbers in family.json."""
        rows = [self._row(number) for number in self._file.results]
        return Study([study.Trial("", {}, {row.cell: row.size for row in rows}, tuple(rows))], {})

    def _row(self, number: dict[str, Any]) -> Row:
        cell = Cell(**{name: number[name] for name in _CELL if name in number}, input=number.get("plan", ""))
        value, stderr = float(number["value"]), number.get("stderr")
        about = number.get("higher_is_better"), number.get("note", "")
        place = study.Size(cell.layers), self._folder, "", number["of"], number["metric"]
        return Row(cell, *place, value, stderr, *about)

    def measured(self, cell: Cell) -> Member | None:
        return self._members.get(cell.input)

    @cached_property
    def _members(self) -> dict[str, Member]:
        return {layers_text(member.plan): member for member in (*self.lineage.members, self.lineage.trained)}
