"""Records and nodes from the sections of a spec: the pieces that `boomspec.compile.compiler` puts together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from boomspec.compile.lm_eval.sources import task_chance, task_source
from boomspec.compile.model_sources import architecture
from boomspec.core.execution import Execution, read_options
from boomspec.core.graph import CODE, Node, Source, Task, params_json
from boomspec.core.layers import Plan
from boomspec.core.tasks import (
    Baseline,
    Calibration,
    Distill,
    Evaluate,
    Faithful,
    HeldOut,
    Interpolate,
    LayerChoice,
    LmEval,
    Optimizer,
    PatchOrder,
    Precision,
    Pretrain,
    Recipe,
    Record,
    Schedule,
    Search,
    Subset,
    Tokenize,
    TrainTokenizer,
)
from boomspec.models.facts import ModelFacts
from boomspec.spec.sections.data import CalibrationSpec, DataSpec
from boomspec.spec.sections.determinism import determinism
from boomspec.spec.sections.execution import Resources
from boomspec.spec.sections.interpolate import OrderSearch
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.sections.teacher import PretrainSpec
from boomspec.spec.sections.training import DistillSpec, FaithfulSpec, Training
from boomspec.spec.spec_file import SpecFile

Answers = Callable[[str], dict[str, Any] | None]  # id of a search -> what it found, None where it has not run


@dataclass
class Builder:
    """Nodes and sources in the making. `add` returns the id; `answer` what a search found, if it has run."""

    file: SpecFile
    answers: Answers
    nodes: dict[str, Node] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)  # searches that have to run before the rest is known
    facts: dict[str, ModelFacts] = field(default_factory=dict)  # of the sources that are models
    _executions: dict[str, Execution] = field(default_factory=dict)

    def source(self, source: Source) -> str:
        return self.sources.setdefault(source.id, source).id

    def model(self, facts: ModelFacts, source: Source) -> str:
        """A source that is a model; its id."""
        self.facts[source.id] = facts
        return self.source(source)

    def add(self, name: str, record: Record, inputs: dict[str, str]) -> str:
        """The id of a task, which is made once for all experiments that have it."""
        execution = self._trusting(self._execution(record.kind), inputs.values())
        task_id, node, _ = self.file.once(
            ("node", name, id(record), id(execution), *inputs.items()),
            lambda: self._made(name, record, inputs, execution),
        )
        self.nodes.setdefault(task_id, node)
        return task_id

    def _made(
        self, name: str, record: Record, inputs: dict[str, str], execution: Execution
    ) -> tuple[str, Node, tuple[Record, Execution]]:
        """What is kept besides keeps its id from being used twice."""
        _, params = self.file.once(("params", id(record)), lambda: (record, params_json(record)))
        node = Node(Task(record, inputs, params), name, execution)
        return node.id, node, (record, execution)

    def _execution(self, kind: str) -> Execution:
        if kind not in self._executions:
            made = self.file.known(("execution", kind), ("execution",), lambda: _execution(self.file, kind))
            self._executions[kind] = made
        return self._executions[kind]

    def _trusting(self, execution: Execution, inputs: Iterable[str]) -> Execution:
        """The execution of a task that may run the code that the models behind it bring along."""
        code: set[str] = set()
        for i in inputs:
            if i in self.sources:
                code.update(self.sources[i].identity.get(CODE, {}).values())
            elif i in self.nodes:
                code.update(self.nodes[i].execution.code)
        if not code:
            return execution
        listed = tuple(sorted(code))
        _, trusting = self.file.once(
            ("trusting", id(execution), listed),
            lambda: (execution, replace(execution, code=listed)),
        )
        return trusting

    def answer(self, search: str) -> dict[str, Any] | None:
        found = self.answers(search)
        if found is None and search not in self.pending:
            self.pending.append(search)
        return found

    @property
    def data(self) -> DataSpec:
        assert self.file.spec.data is not None  # the language asks for it wherever text is read
        return self.file.spec.data


def _execution(file: SpecFile, kind: str) -> Execution:
    execution = file.spec.execution
    resources = execution.of(kind)
    return Execution(
        resources.cpus,
        resources.gpus,
        execution.retries,
        **read_options(resources.model_dump(exclude=set(Resources.model_fields))),
        memory=resources.memory or 0,
        resources=dict(resources.resources),
    )


def tokenize(file: SpecFile, data: DataSpec) -> Tokenize:
    assert data.text_field is not None
    pretrain = file.spec.teacher.pretrain
    trained = None
    if pretrain is not None:
        trained = TrainTokenizer(vocabulary=pretrain.tokenizer.vocabulary, bytes=pretrain.tokenizer.train_on)
    return Tokenize(
        text_field=data.text_field,
        train_tokenizer=trained,
        skip=data.skip,
        max_tokens=data.max_tokens,
        held_out_every=(data.held_out.every or 0) if data.held_out else 0,
        held_out_offset=data.held_out.offset if data.held_out else 0,
        bos=None if data.bos == "auto" else data.bos,
        on_bad_row="skip" if data.on_bad_row == "skip" else None,
    )


def pretrain(file: SpecFile, section: PretrainSpec, data: DataSpec) -> Pretrain:
    return Pretrain(
        architecture=architecture(section),
        recipe=recipe(section, seed=file.spec.seed, sequence_length=data.sequence_length),
        determinism=determinism(file.spec.determinism),
    )


def interpolation(build: Builder, plan: Plan, tied: bool) -> Interpolate:
    rest = True if build.file.spec.teacher.keeps_rest else None
    return build.file.once(("interpolation", plan, tied, rest), lambda: Interpolate(plan=plan, tied=tied, rest=rest))


def subset(build: Builder, plan: Plan) -> Baseline:
    rest = True if build.file.spec.teacher.keeps_rest else None
    return build.file.once(("subset", plan, rest), lambda: Baseline(build=Subset(plan=plan, rest=rest)))


def distill(
    build: Builder,
    section: DistillSpec,
    kept: tuple[int, ...],
    *,
    initial: Literal["teacher", "random"] = "teacher",
    tokens: int | None = None,
) -> Distill:
    spec = build.file.spec
    length = build.data.sequence_length
    return Distill(
        kept=kept,
        initial=initial,
        train_embedding=spec.student.train_embedding,
        losses=section.losses,
        recipe=recipe(section, seed=spec.seed, sequence_length=length, tokens=tokens),
        faithful=_faithful(section.faithful),
        determinism=determinism(spec.determinism),
    )


def _faithful(section: FaithfulSpec | None) -> Faithful | None:
    """None where every switch is off: leaving the section out means the same."""
    return None if section in (None, FaithfulSpec()) else Faithful(**section.model_dump())


def calibration(build: Builder, section: CalibrationSpec) -> Calibration:
    length = build.data.sequence_length
    return Calibration(sequences=section.sequences, sequence_length=length, seed=build.file.spec.seed)


def layer_search(build: Builder, section: KeepChoice) -> Search:
    return Search(
        choice=LayerChoice(method=section.method, count=section.count),
        calibration=calibration(build, section.calibration),
        precision=search_precision(build.file),
        determinism=determinism(build.file.spec.determinism),
    )


def order_search(build: Builder, section: OrderSearch, kept: tuple[int, ...]) -> Search:
    choice = PatchOrder(
        method=section.search,
        kept=kept,
        width=section.width,
        direction=section.direction,
        positions=section.positions,
        reduction=section.reduction,
    )
    return Search(
        choice=choice,
        calibration=calibration(build, section.calibration),
        precision=search_precision(build.file),
        determinism=determinism(build.file.spec.determinism),
    )


def search_precision(file: SpecFile) -> Precision:
    """Searches compute in what the models are measured in, else in what the student is trained in."""
    if file.spec.evaluate is not None:
        return file.spec.evaluate.precision
    return file.spec.distill.precision if file.spec.distill is not None else "bf16"


def evaluations(file: SpecFile) -> list[tuple[str, Evaluate, Source | None]]:
    """How every model is measured, by name; lm-eval tasks with where they come from."""
    return file.known("evaluations", ("evaluate", "data", "seed", "determinism"), lambda: _evaluations(file))


def _evaluations(file: SpecFile) -> list[tuple[str, Evaluate, Source | None]]:
    evaluate = file.spec.evaluate
    if evaluate is None:
        return []
    measures: list[tuple[str, HeldOut | LmEval, Source | None]] = []
    if evaluate.held_out is not None and file.spec.data is not None:
        length = file.spec.data.sequence_length
        text = HeldOut(sequence_length=length, max_tokens=evaluate.held_out.max_tokens)
        measures.append(("held_out", text, None))
    for i, (name, task) in enumerate(zip(evaluate.names, evaluate.tasks, strict=True)):
        source, chance = task_source(file, task.task, i), task_chance(file, task)
        record = LmEval(
            task=task.task,
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            seed=file.spec.seed if chance.draws else None,
            # 0 leaves out every standard error, those with a formula, too.
            bootstrap_iters=evaluate.bootstrap_iters if chance.bootstraps or not evaluate.bootstrap_iters else None,
        )
        measures.append((name, record, source))
    kernels = determinism(file.spec.determinism)
    return [
        (name, Evaluate(measure=measure, precision=evaluate.precision, determinism=kernels), source)
        for name, measure, source in measures
    ]


def recipe(training: Training, *, seed: int, sequence_length: int, tokens: int | None = None) -> Recipe:
    """Tokens become whole sequences and whole steps, rounded to the nearest and at least one."""
    sequences = max(1, round(training.batch_tokens / sequence_length))
    steps = max(1, round((tokens or training.tokens) / (sequences * sequence_length)))
    optimizer, schedule = training.optimizer, training.schedule
    return Recipe(
        seed=seed,
        steps=steps,
        sequences=sequences,
        sequence_length=sequence_length,
        optimizer=Optimizer(
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            clip=optimizer.clip,
        ),
        schedule=Schedule(kind=schedule.kind, warmup_steps=min(steps, schedule.warmup.of(steps)), final=schedule.final),
        precision=training.precision,
    )
