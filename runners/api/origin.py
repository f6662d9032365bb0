"""Where a family comes from: what `runners.api.family` asks of a finished run."""

import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from boomspec.core.graph import TaskGraph
from boomspec.core.layers import TEACHER
from boomspec.core.sizes import Lineage, Member
from boomspec.core.tasks import Cell, Report
from boomspec.models import trust
from boomspec.models.facts import ModelFacts, read_facts
from boomspec.models.hub import pinned_model
from boomspec.plan.run import Run
from runners.report.collect import collect
from runners.report.study import Row, Study
from runners.runtime.job import fetch_numbers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from runners.modeling import family as modeling


NOT_RUN = "it has not been run"


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

    def measured(self, row: Row) -> Member | None:
        """The member that a number is of; None for a baseline's."""


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
        made = {role: (self._whole.nodes[inputs[role]].task.kind, inputs[role]) for role in map(_input, record.cells)}
        folders = fetch_numbers(self._store, self._store.records(set(made.values())))
        return collect(record, lambda role: folders.get(made[role], NOT_RUN))

    def measured(self, row: Row) -> Member | None:
        return self._members.get(self._whole.nodes[self._numbers[1][row.cell.input]].task.inputs["model"])

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


def _input(cell: Cell) -> str:
    return cell.input
