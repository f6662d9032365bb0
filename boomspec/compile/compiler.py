"""The compiler: a spec file becomes a task graph.

    spec file --resolve--> family --compile--> TaskGraph

Two specs that mean the same give the same task ids: names, paths, the store and the execution section go
into nodes and locations, never into records.

A choice that needs data (which layers, which patch order) is made by a `search` task. The compiler reads
what it found and goes on with integers. As long as it has not run, the graph ends at the search: it is
`pending`, `boomspec run` runs it and compiles again. So the tasks behind a search have the ids that they
would have had the integers been written in the spec.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from boomspec.compile import records as make
from boomspec.compile.baselines import Model, controls, members
from boomspec.compile.check import check, check_against, together
from boomspec.compile.cost.pricing import priced
from boomspec.compile.lm_eval.checks import check_tasks
from boomspec.compile.model_check import add_check
from boomspec.compile.model_sources import Role, dequantization, local_facts, model_sources, student_mapping
from boomspec.compile.places import tracking_of
from boomspec.compile.records import Answers, Builder
from boomspec.compile.resolve import Family, kept_layers, patched_sets, resolve_family
from boomspec.compile.resolved import complete, resolve
from boomspec.compile.text_sources import held_out_source, text_source
from boomspec.core.errors import BoomspecError, redact
from boomspec.core.graph import Experiment, Source, TaskGraph
from boomspec.core.layers import student_layers
from boomspec.core.sizes import Lineage
from boomspec.core.tasks import Cell, Evaluate, LmEval, Report
from boomspec.models.facts import ModelFacts
from boomspec.models.fit import plan_entries
from boomspec.spec.problems import for_each
from boomspec.spec.sections.interpolate import OrderSearch
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.spec_file import SpecFile
from boomspec.store import Store


@dataclass(frozen=True)
class Compiled:
    """A graph and the families that it builds, by the experiment's label; none while layers have to be searched for.

    `family` is the only experiment's.
    """

    graph: TaskGraph
    families: dict[str, Family]
    pending: tuple[str, ...] = ()  # names of the searches that the rest waits for

    @property
    def family(self) -> Family | None:
        return next(iter(self.families.values()), None) if len(self.graph.experiments) == 1 else None


@dataclass(frozen=True)
class Parts:
    """What one experiment is compiled to. `cells` are its numbers, `roles` the tasks that they come from."""

    build: Builder
    family: Family | None = None
    lineage: Lineage | None = None
    products: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
    trainings: dict[str, str] = field(default_factory=dict)

    def experiment(self) -> Experiment:
        file = self.build.file
        tasks = {node.name: node.id for node in self.build.nodes.values()}
        resolved = resolve(file.spec, self.family, self.build.sources.values())
        return Experiment(file.label, file.axes, tasks, resolved.to_json(), self.lineage)


@dataclass(frozen=True)
class _Start:
    """What everything else begins with; ids of sources or tasks."""

    facts: ModelFacts
    teacher: str
    tokens: str | None
    trainings: dict[str, str]


def answers_of(store: Store) -> Answers:
    """What the searches in a store have found."""

    def answer(search: str) -> dict[str, Any] | None:
        if not store.has("search", search) or store.damage("search", search) is not None:
            return None  # a damaged one is made again
        found: dict[str, Any] = json.loads(store.read("search", search, "search.json"))
        return found

    return answer


def compile_spec(file: SpecFile, answers: Answers = lambda search: None) -> Compiled:
    """Compile a spec. Reads what it names (digests of files, headers) or asks the hub for pinned commits.

    `answers` gives what a search found. Raises SpecError or BoomspecError before anything is run.
    """
    [parts] = compile_parts([file], answers)
    build = parts.build
    pending = tuple(build.nodes[search].name for search in build.pending)
    targets = build.pending if pending else [*parts.products, _report(parts)]
    graph = TaskGraph(
        name=file.spec.name,
        nodes=priced(build.nodes, build.sources, build.facts),
        sources=build.sources,
        targets=tuple(dict.fromkeys(targets)),
        spec=spec_text(file),
        experiments=(parts.experiment(),),
        tracking=tracking_of(file),
    )
    return Compiled(graph, {file.label: parts.family} if parts.family else {}, pending)


def spec_text(file: SpecFile) -> str:
    """The text that was compiled, with those of its bases; a graph is written into the store, so it holds no secret."""
    others = [f"# ---- {name} ----\n{text}" for name, text in file.document.others.items()]
    return redact("\n".join([file.document.text, *others]))


def compile_parts(files: Sequence[SpecFile], answers: Answers) -> list[Parts]:
    """Experiments up to their numbers, or to the searches that come first. Raises SpecError with all problems."""
    files = together(files)
    return for_each(files, lambda file: _compile(file, answers))


def _compile(file: SpecFile, answers: Answers) -> Parts:
    file = replace(file, spec=complete(file.spec))
    check(file)
    build = Builder(file, answers)
    start = _start(build)
    check_against(file, start.facts)
    make.evaluations(file)  # an unknown task is an error now, not behind a search
    check_tasks(file, start.facts)
    kept = _kept(build, start)
    if kept is None:
        return _pending(build, start)
    student, trainings, found = _student(build, start, kept)
    sets = patched_sets(file, kept, start.facts.count) or _searched_sets(build, start, student, kept)
    if sets is None:
        return _pending(build, start, kept, student)
    family = resolve_family(file, start.facts, kept, sets, found=found)
    inner = members(build, family, start.teacher, student, "interpolated")
    models = [
        Model("teacher", "teacher", family.members[-1], start.teacher),
        Model("student", "student", family.student, student),
        *inner,
    ]
    more, more_trainings = controls(build, family, start.teacher, start.tokens)
    if build.pending:
        return _pending(build, start, kept, student, family)
    cells, roles = _cells(build, [*models, *more], start.tokens)
    add_check(build, start.teacher, kept, student)
    products = tuple(model.task for model in inner if model.task in build.nodes)
    lineage = Lineage(start.teacher, student, kept, family.student, family.every, family.rest)
    return Parts(build, family, lineage, products, cells, roles, {**trainings, **more_trainings})


def _start(build: Builder) -> _Start:
    file, spec = build.file, build.file.spec
    if spec.teacher.pretrain is not None:
        facts = local_facts(file)
        assert facts is not None
        tokens = build.add("tokenize", make.tokenize(file, build.data), _texts(build))
        record = make.pretrain(file, spec.teacher.pretrain, build.data)
        teacher = build.add("pretrain teacher", record, {"tokens": tokens})
        return _Start(facts, teacher, tokens, {"teacher": teacher})
    facts, model, tokenizer = model_sources(file, "teacher")
    if spec.data is None:
        return _Start(facts, _model(build, "teacher", facts, model), None, {})
    inputs = {**_texts(build), "tokenizer": build.source(tokenizer)}
    teacher = _model(build, "teacher", facts, model)
    return _Start(facts, teacher, build.add("tokenize", make.tokenize(file, spec.data), inputs), {})


def _model(build: Builder, role: Role, facts: ModelFacts, source: Source) -> str:
    """The id of a model that exists, as everything else reads it: of the task that dequantises it, where it must be."""
    model, record = build.model(facts, source), dequantization(build.file, role)
    return model if record is None else build.add(f"dequantize {role}", record, {"model": model})


def _texts(build: Builder) -> dict[str, str]:
    """The sources of the text, by their roles: what is trained on, and what is held out where it is apart."""
    held_out = held_out_source(build.file)
    apart = {} if held_out is None else {"held_out": build.source(held_out)}
    return {"text": build.source(text_source(build.file)), **apart}


def _kept(build: Builder, start: _Start) -> tuple[int, ...] | None:
    keep = build.file.spec.student.keep
    if keep is None:
        return kept_layers(build.file, start.facts, student_mapping(build.file, start.facts.count))
    if not isinstance(keep, KeepChoice):
        return kept_layers(build.file, start.facts)
    assert start.tokens is not None
    inputs = {"teacher": start.teacher, "tokens": start.tokens}
    found = build.answer(build.add(f"search layers by {keep.method}", make.layer_search(build, keep), inputs))
    return None if found is None else kept_layers(build.file, start.facts, tuple(found["kept"]))


def _student(build: Builder, start: _Start, kept: tuple[int, ...]) -> tuple[str, dict[str, str], ModelFacts | None]:
    """The student's id, the trainings that have curves, and the facts of a student that exists."""
    section = build.file.spec.distill
    if section is None:
        facts, model, _ = model_sources(build.file, "student")
        if facts.count != len(kept):
            message = f"the student has {facts.count} layers, its mapping names {len(kept)}"
            raise build.file.error(build.file.problem(("student", "model"), message))
        try:
            plan_entries(start.facts, facts, student_layers(facts.count), tied=facts.tied)
        except BoomspecError as error:
            raise build.file.error(build.file.problem(("student", "model"), error.message, error.hint)) from error
        return _model(build, "student", facts, model), start.trainings, facts
    assert start.tokens is not None
    inputs = {"teacher": start.teacher, "tokens": start.tokens}
    student = build.add("distill student", make.distill(build, section, kept), inputs)
    return student, {**start.trainings, "student": student}, None


def _searched_sets(build: Builder, start: _Start, student: str, kept: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    order = build.file.spec.interpolate.order
    assert isinstance(order, OrderSearch)
    assert start.tokens is not None
    inputs = {"teacher": start.teacher, "student": student, "tokens": start.tokens}
    record = make.order_search(build, order, kept)
    found = build.answer(build.add(f"search patch order by {order.search}", record, inputs))
    return None if found is None else [tuple(patched) for patched in found["sets"]]


def _pending(
    build: Builder,
    start: _Start,
    kept: tuple[int, ...] | None = None,
    student: str | None = None,
    family: Family | None = None,
) -> Parts:
    """The experiment up to the searches that have not run."""
    needed = set(build.pending)
    for node in reversed(list(build.nodes.values())):
        if node.id in needed:
            needed.update(node.task.inputs.values())
    build.nodes = {task: node for task, node in build.nodes.items() if task in needed}
    build.sources = {i: source for i, source in build.sources.items() if i in needed}
    add_check(build, start.teacher, kept, student if student in build.sources else None)
    return Parts(build, family)


def _cells(build: Builder, models: list[Model], tokens: str | None) -> tuple[tuple[Cell, ...], dict[str, str]]:
    """Every number of the report, and the evaluations by their roles."""
    file = build.file
    evaluations = make.evaluations(file)
    reads = [{"tasks": build.source(source)} if source else {"tokens": tokens or ""} for _, _, source in evaluations]
    inputs: dict[str, str] = {}
    for model in models:
        for (name, record, _), read in zip(evaluations, reads, strict=True):
            role = f"{model.label}/{name}"
            assert role not in inputs  # labels tell models apart
            inputs[role] = build.add(f"evaluate {model.label}: {name}", record, {"model": model.task, **read})
    same = tuple((model.series, model.label, id(model.member)) for model in models)
    _, cells = file.once(
        ("cells", id(evaluations), same),
        lambda: (models, tuple(_cell(model, name, record) for model in models for name, record, _ in evaluations)),
    )
    return cells, inputs


def _cell(model: Model, measure: str, record: Evaluate) -> Cell:
    task = record.measure.task if isinstance(record.measure, LmEval) else measure
    return Cell(
        series=model.series,
        layers=model.member.layers,
        parameters=model.member.parameters,
        bytes=model.member.bytes,
        measure=measure,
        input=f"{model.label}/{measure}",
        task=task if task != measure else None,
    )


def _report(parts: Parts) -> str:
    build, trainings = parts.build, parts.trainings
    searches = {node.name: node.id for node in build.nodes.values() if node.task.kind == "search"}
    roles = {label: f"training/{label}" for label in trainings}
    inputs = {**parts.roles, **{roles[label]: task for label, task in trainings.items()}}
    inputs |= {f"search/{name}": search for name, search in searches.items()}
    record = Report(cells=parts.cells, trainings=roles, searches={name: f"search/{name}" for name in searches})
    return build.add("report", record, inputs)
