"""Collect the tasks and sources of one experiment's graph, adding each only once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from boomspec.compile.resolved import ResolvedSpec
from boomspec.core.execution import Execution, read_options
from boomspec.core.graph import CODE, Node, Source, Task, params_json
from boomspec.core.tasks import Record
from boomspec.models.facts import ModelFacts
from boomspec.spec.sections.execution import Resources
from boomspec.spec.spec_file import ById, SpecFile

Answers = Callable[[str], dict[str, Any] | None]  # id of a search -> what it found, None where it has not run


@dataclass
class Builder:
    """Collects nodes and sources. Equal ones are created once for all experiments that are compiled together."""

    file: SpecFile
    resolved: ResolvedSpec
    answers: Answers
    nodes: dict[str, Node] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)  # searches that have to run before the rest is known
    facts: dict[str, ModelFacts] = field(default_factory=dict)  # of the sources that are models
    executions: dict[str, Execution] = field(default_factory=dict)  # by kind

    def source(self, source: Source) -> str:
        return self.sources.setdefault(source.id, source).id

    def model(self, facts: ModelFacts, source: Source) -> str:
        """A source that is a model; its id."""
        self.facts[source.id] = facts
        return self.source(source)

    def add(self, name: str, record: Record, inputs: dict[str, str]) -> str:
        """Add a task; its id."""
        execution = self._execution(record.kind, inputs.values())

        def node() -> Node:
            params = self.file.once(("params", ById(record)), lambda: params_json(record))
            return Node(Task(record, inputs, params), name, execution)

        added = self.file.once(("node", name, ById(record), ById(execution), *inputs.items()), node)
        return self.nodes.setdefault(added.id, added).id

    def _execution(self, kind: str, inputs: Iterable[str]) -> Execution:
        """Where a task of a kind runs; with the code that the models before it bring along, where it is trusted."""
        if kind not in self.executions:
            self.executions[kind] = self.file.known(("execution", kind), ("execution",), lambda: self._of_kind(kind))
        execution = self.executions[kind]
        code: set[str] = set()
        for i in inputs:
            if i in self.sources:
                code.update(self.sources[i].identity.get(CODE, {}).values())
            elif i in self.nodes:
                code.update(self.nodes[i].execution.code)
        if not code:
            return execution
        listed = tuple(sorted(code))
        return self.file.once(("execution", ById(execution), listed), lambda: replace(execution, code=listed))

    def _of_kind(self, kind: str) -> Execution:
        execution = self.file.spec.execution
        resources = execution.of(kind)
        return Execution(
            resources.cpus,
            resources.gpus,
            execution.retries,
            memory=resources.memory or 0,
            resources=dict(resources.resources),
            **read_options(resources.model_dump(exclude=set(Resources.model_fields))),
        )

    def answer(self, search: str) -> dict[str, Any] | None:
        """What a search has found; where it has not run, it becomes one that the graph waits for."""
        found = self.answers(search)
        if found is None and search not in self.pending:
            self.pending.append(search)
        return found
