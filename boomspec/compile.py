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
from dataclasses import dataclass
from typing import Any

from boomspec import build as make
from boomspec.build import Answers, Builder
from boomspec.controls import Model, controls, members
from boomspec.errors import BoomspecError, redact
from boomspec.facts import ModelFacts
from boomspec.fit import plan_entries
from boomspec.graph import Experiment, TaskGraph
from boomspec.layers import patchable, prefixes
from boomspec.meaning import meaning
from boomspec.resolve import Family, check_causal, check_context, kept_layers, patched_sets, resolve_family
from boomspec.searches import KeepChoice, OrderSearch
from boomspec.sizes import Lineage
from boomspec.sources import check_paths, local_facts, model_sources, student_mapping, text_source
from boomspec.spec import SpecFile
from boomspec.store import Store
from boomspec.tasks import Cell, Evaluate, HeldOut, Report


@dataclass(frozen=True)
class Compiled:
    """A graph and the family that it builds; no family while its layers or order have to be searched for."""

    graph: TaskGraph
    family: Family | None
    pending: tuple[str, ...] = ()  # names of the searches that the rest waits for


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
        found: dict[str, Any] = json.loads((store.path("search", search) / "search.json").read_text(encoding="utf-8"))
        return found

    return answer


def check_spec(file: SpecFile) -> Family | None:
    """Check all that can be known without reading data or asking the hub.

    Returns the family, or None where the teacher's layers, a search's finding or a published student's
    mapping are not known yet. Raises SpecError.
    """
    if problems := check_paths(file):
        raise file.error(*problems)
    facts = local_facts(file)
    return None if facts is None else _check_against(file, facts)


def _check_against(file: SpecFile, facts: ModelFacts) -> Family | None:
    """Check a spec against its teacher. What a search will find is stood in for by the plainest choice."""
    check_context(file, facts)
    check_causal(file, facts)
    if file.spec.student.keep is None:
        return None
    kept = kept_layers(file, facts)
    sets = patched_sets(file, kept, facts.count)
    family = resolve_family(file, facts, kept, sets or prefixes(tuple(reversed(patchable(kept, facts.count)))))
    settled = sets is not None and not isinstance(file.spec.student.keep, KeepChoice)
    return family if settled and file.spec.student.model is None else None


def compile_spec(file: SpecFile, answers: Answers = lambda search: None) -> Compiled:
    """Compile a spec. Reads what it names (digests of files, headers) or asks the hub for pinned commits.

    `answers` gives what a search found. Raises SpecError or BoomspecError before anything is run.
    """
    check_spec(file)
    build = Builder(file, answers)
    start = _start(build)
    _check_against(file, start.facts)
    make.measures(file)  # an unknown task is an error now, not behind a search
    kept = _kept(build, start)
    if kept is None:
        return _pending(build)
    student, trainings, found = _student(build, start, kept)
    sets = patched_sets(file, kept, start.facts.count) or _searched_sets(build, start, student, kept)
    if sets is None:
        return _pending(build)
    family = resolve_family(file, start.facts, kept, sets, found=found)
    inner = members(build, family, start.teacher, student, "interpolated")
    models = [
        Model("teacher", "teacher", family.members[-1], start.teacher),
        Model("student", "student", family.student, student),
        *inner,
    ]
    more, more_trainings = controls(build, family, start.teacher, start.tokens)
    if build.pending:
        return _pending(build, family)
    report = _report(build, [*models, *more], start.tokens, {**trainings, **more_trainings})
    products = [model.task for model in inner if model.task in build.nodes]
    lineage = Lineage(start.teacher, student, kept, family.student, family.every)
    targets = tuple(dict.fromkeys([*products, report]))
    return Compiled(_graph(build, targets, family, lineage), family)


def _start(build: Builder) -> _Start:
    file, spec = build.file, build.file.spec
    if spec.teacher.pretrain is not None:
        facts = local_facts(file)
        assert facts is not None
        tokens = build.add("tokenize", make.tokenize(file, build.data), {"text": build.source(text_source(file))})
        record = make.pretrain(file, spec.teacher.pretrain, build.data)
        teacher = build.add("pretrain teacher", record, {"tokens": tokens})
        return _Start(facts, teacher, tokens, {"teacher": teacher})
    facts, model, tokenizer = model_sources(file, "teacher")
    if spec.data is None:
        return _Start(facts, build.source(model), None, {})
    inputs = {"text": build.source(text_source(file)), "tokenizer": build.source(tokenizer)}
    return _Start(facts, build.source(model), build.add("tokenize", make.tokenize(file, spec.data), inputs), {})


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
            plan_entries(start.facts, facts, [f"s{i}" for i in range(facts.count)], tied=facts.tied)
        except BoomspecError as error:
            raise build.file.error(build.file.problem(("student", "model"), error.message, error.hint)) from error
        return build.source(model), start.trainings, facts
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


def _pending(build: Builder, family: Family | None = None) -> Compiled:
    """The graph up to the searches that have not run."""
    names = tuple(build.nodes[search].name for search in build.pending)
    needed = set(build.pending)
    for node in reversed(list(build.nodes.values())):
        if node.id in needed:
            needed.update(node.task.inputs.values())
    build.nodes = {task: node for task, node in build.nodes.items() if task in needed}
    build.sources = {i: source for i, source in build.sources.items() if i in needed}
    return Compiled(_graph(build, tuple(build.pending), family, None), family, names)


def _graph(build: Builder, targets: tuple[str, ...], family: Family | None, lineage: Lineage | None) -> TaskGraph:
    tasks = {node.name: node.id for node in build.nodes.values()}
    said = meaning(build.file.spec, family, build.sources.values())
    return TaskGraph(
        name=build.file.spec.name,
        nodes=build.nodes,
        sources=build.sources,
        targets=targets,
        spec=redact(build.file.document.text),  # the graph is written into the store
        experiments=(Experiment("", {}, tasks, said, lineage),),
    )


def _report(build: Builder, models: list[Model], tokens: str | None, trainings: dict[str, str]) -> str:
    evaluate = build.file.spec.evaluate
    cells, inputs = [], {}
    measures = make.measures(build.file)
    for model in models:
        for measure, source in measures:
            assert evaluate is not None
            name = "held_out" if isinstance(measure, HeldOut) else measure.task
            reads = {"tasks": build.source(source)} if source is not None else {"tokens": tokens or ""}
            role = f"{model.label}/{name}"
            assert role not in inputs  # labels tell models apart
            evaluation = Evaluate(measure=measure, precision=evaluate.precision)
            inputs[role] = build.add(f"evaluate {model.label}: {name}", evaluation, {"model": model.task, **reads})
            cells.append(
                Cell(
                    series=model.series,
                    layers=model.member.layers,
                    parameters=model.member.parameters,
                    bytes=model.member.bytes,
                    measure=name,
                    input=role,
                )
            )
    searches = {node.name: node.id for node in build.nodes.values() if node.task.kind == "search"}
    roles = {label: f"training/{label}" for label in trainings}
    inputs |= {roles[label]: task for label, task in trainings.items()}
    inputs |= {f"search/{name}": search for name, search in searches.items()}
    record = Report(cells=tuple(cells), trainings=roles, searches={name: f"search/{name}" for name in searches})
    return build.add("report", record, inputs)
