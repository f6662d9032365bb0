"""One experiment while it is compiled: its tasks and sources, each there once, and what is known of it so far.

Every long task waits for a quick check of what the experiment builds, on tiny random weights. A teacher that the spec
trains itself needs none: it is a Llama, of which every size is right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import distributions
from typing import Any, Literal

from boomspec.compile.family import ResolvedFamily
from boomspec.compile.resolved import ResolvedSpec
from boomspec.compile.texts import tokens_of
from boomspec.core.execution import Execution, read_options
from boomspec.core.graph import CODE, Experiment, Node, Source, Task, params_json
from boomspec.core.layers import evenly_spaced, plan_of
from boomspec.core.sizes import Lineage
from boomspec.core.tasks import BlockStates, BuiltSize, Cell, Check, DistillBlock, Interpolate, Outline, Record, Search
from boomspec.core.tasks.record import LayerPlanShape
from boomspec.models.facts import ModelFacts
from boomspec.models.outline import config_text, outline
from boomspec.spec.sections.data import LossOn
from boomspec.spec.sections.execution import Resources
from boomspec.spec.sections.shares import BlendPart
from boomspec.spec.spec_file import SpecFile

Answers = Callable[[str], dict[str, Any] | None]  # id of a search -> what it found, None where it has not run


@dataclass
class Builder:
    """One experiment. Equal nodes are created once for all experiments that are compiled together.

    A model or a text is known by the id of the task that makes it, or of the source that it is.
    """

    file: SpecFile
    resolved: ResolvedSpec
    answers: Answers
    nodes: dict[str, Node] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    executions: dict[str, Execution] = field(default_factory=dict)  # by kind
    check: tuple[str, ...] = ()  # the task that comes before those in `checked`
    checked: frozenset[str] = frozenset()
    adopted: set[str] = field(default_factory=set)  # of `nodes` and `sources`, those that another experiment has made
    pending: list[str] = field(default_factory=list)  # searches that have to run before the rest is known
    guesses: bool = False  # what has not been searched for is made up, for a forecast
    layers: int = 0  # of the teacher
    facts: dict[str, ModelFacts] = field(default_factory=dict)  # of the sources that are models
    teacher: str = ""
    student: str = ""
    tokenizer: Source | None = None  # of the teacher; None where one is trained with it
    own_tokenizer: Literal["same", "other", "unknown"] = "same"  # of a student that exists, against the teacher's
    last_teacher: tuple[str, tuple[int, ...]] = ("", ())  # whom the student learns from, and its layers of the teacher
    other_teachers: dict[str, str] = field(default_factory=dict)  # beside it, by their role in a distillation
    # Those that are measured while the student is trained; None: nothing is.
    sizes_during: tuple[BuiltSize, ...] | None = None
    tokens: str = ""  # the data as a whole; "" where nothing reads that
    text_names: dict[str, str] = field(default_factory=dict)  # of the sources that are text, by id
    kept: tuple[int, ...] | None = None  # None while a search has to find the layers
    trainings: dict[str, str] = field(default_factory=dict)  # those that have curves, by label
    phases: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # of these: names and tasks
    family: ResolvedFamily | None = None
    lineage: Lineage | None = None
    products: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()  # the numbers of the report
    deployed: tuple[Cell, ...] = ()  # what the report has beside them
    roles: dict[str, str] = field(default_factory=dict)  # the tasks that they come from

    def source(self, source: Source) -> str:
        self.adopted.discard(source.id)
        return self.sources.setdefault(source.id, source).id

    def tokenizer_of(self, model: str, *, asked_anew: bool) -> dict[str, str]:
        """The input that gives a student that exists its teacher's tokenizer: none, where it has that itself.

        All sizes of a family read text alike, and a student's folder may have no tokenizer, or another chat template.
        `asked_anew`: where it cannot be told whether the two are the same, the teacher's is given.
        """
        differs = self.own_tokenizer == "other" or (self.own_tokenizer == "unknown" and asked_anew)
        if model != self.student or not differs or self.tokenizer is None:
            return {}
        return {"tokenizer": self.source(self.tokenizer)}

    def add(self, name: str, record: Record, inputs: dict[str, str], *, generates: bool = False) -> str:
        """Add a task; its id. It may run the code that the models before it bring along, where that is trusted."""
        kind = record.kind
        if (execution := self.executions.get(kind)) is None:
            execution = self.file.known(("execution", kind), ("execution",), lambda: self._execution(kind))
            self.executions[kind] = execution
        code = set[str]()
        for i in inputs.values():
            if (made := self.nodes.get(i)) is not None:
                code.update(made.execution.code)
            elif i in self.sources:
                code.update(self.sources[i].identity.get(CODE, {}).values())
        if code:
            listed = tuple(sorted(code))
            execution = self.file.once(("execution", listed), partial(replace, execution, code=listed), execution)

        def node() -> Node:
            params = self.file.once("params", lambda: params_json(record), record)
            return Node(Task(record, inputs, params), name, execution, generates=generates)

        added = self.file.once(("node", name, *inputs.items()), node, record, execution)
        self.nodes.setdefault(task := added.task.id, added)
        return task

    def tokens_of(self, which: str | Mapping[str, BlendPart] | None = None, *, loss_on: LossOn | None = None) -> str:
        """The task that makes a text: one source, a blend of several, or (None) the data as a whole."""
        return tokens_of(self, which, loss_on=loss_on)

    def _execution(self, kind: str) -> Execution:
        section = self.file.spec.execution
        resources = section.of(kind)
        return Execution(
            resources.cpus,
            resources.gpus,
            section.retries,
            memory=resources.memory or 0,
            resources=dict(resources.resources),
            **read_options(resources.model_dump(exclude=set(Resources.model_fields))),
        )

    def answer(self, search: str) -> dict[str, Any] | None:
        """What a search has found; where it has not run, it becomes one that the graph waits for."""
        found = self.answers(search)
        if found is None and self.guesses:
            record = self.nodes[search].task.record
            assert isinstance(record, Search)
            return record.choice.guess(self.layers)
        if found is None and search not in self.pending:
            self.pending.append(search)
        return found

    def add_check(self) -> None:
        """Add the check of what the experiment builds, and let its other tasks come after it."""
        teacher, student = (self._written(model) for model in (self.teacher, self.student))
        own = (node for node in self.nodes.values() if node.id not in self.adopted)
        waiting = [node for node in own if node.task.record.reads_models]
        if teacher not in self.facts or not waiting:
            return
        facts, given = self.facts[teacher], self.facts.get(student)
        kept = self.kept or evenly_spaced(max(1, facts.count // 2), facts.count)
        # Two students that are put together are what they are with their teacher.
        tried = [
            n for n in waiting if not isinstance(n.task.record, Interpolate) or n.task.inputs["teacher"] == self.teacher
        ]
        models = [model for node in tried if isinstance(model := node.task.record.model(), LayerPlanShape)]
        # A student that is trained begins as layers of its teacher.
        plans = [(m.plan, facts.tied if m.tied is None else m.tied) for m in models if not m.merged]
        half = plan_of(kept, facts.count, [i >= len(kept) // 2 for i in range(len(kept))])
        sizes = tuple(dict.fromkeys(plans or [(half, False)]))  # where no size is known a plan of both models
        merged = any(model.merged for model in models)
        alone = any(isinstance(node.task.record, BlockStates | DistillBlock) for node in waiting)
        data = self.resolved.spec.data
        apart = data is not None and data.isolate_documents
        record = self.file.once(
            ("check", kept, sizes, merged, alone, apart),
            lambda: Check(
                teacher=_outline(facts),
                student=None if given is None else _outline(given),
                kept=kept,
                sizes=tuple(BuiltSize(plan=plan, tied=tied) for plan, tied in sizes),
                alone=True if alone else None,
                apart=True if apart else None,
                merged=True if merged else None,
                transformers=next((found.version for found in distributions(name="transformers")), "not installed"),
            ),
            facts,
            given,
        )
        models_read = {"teacher": teacher, "student": student}.items()
        inputs = {role: i for role, i in models_read if i in self.facts and CODE in self.sources[i].identity}
        check = self.add("check the family", record, inputs)
        self.nodes = {check: self.nodes.pop(check), **self.nodes}  # what comes first stands first
        self.check, self.checked = (check,), frozenset(node.id for node in waiting)

    def _written(self, model: str) -> str:
        """The source of a model that is dequantised first; any other model itself."""
        node = self.nodes.get(model)
        copied = node.task.record.model() if node is not None else None
        return node.task.inputs[copied] if node is not None and isinstance(copied, str) else model

    def experiment(self) -> Experiment:
        tasks = {node.name: node.id for node in self.nodes.values()}
        sources = tuple(source for source in self.sources.values() if source.id not in self.adopted)
        resolved = replace(self.resolved, family=self.family, sources=sources, text_names=self.text_names)
        meaning = resolved.to_json()
        if (
            self.student in self.nodes
            and (other := self.nodes[self.student].task.inputs.get("distilled")) in self.nodes
        ):
            meaning["sources"]["transferred student"] = other
        return Experiment(self.file.label, self.file.axes, tasks, meaning, self.lineage)


def _outline(facts: ModelFacts) -> Outline:
    return Outline(config=config_text(facts.written), tensors=outline(facts.stored), tied=facts.tied)
