"""The compiler: the experiments of a spec become one task graph, in which a task that they share is there once.

    SpecFiles --resolve--> ResolvedSpecs, families --records--> tasks --compile_experiments--> Compiled (one TaskGraph)

Two specs that mean the same give the same task ids, and an experiment has the ids that it would have alone: names,
paths, the store and the execution section go into nodes and locations, never into records.

A choice that needs data (which layers, which patch order) is made by a `search` task. The compiler reads what it found
and goes on with integers. As long as it has not run, the graph is `pending`: it ends at its searches, `boomspec run`
runs them and compiles again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from boomspec.compile import records
from boomspec.compile.baselines import EvaluatedModel, add_interpolated_models, baselines
from boomspec.compile.builder import Answers, Builder
from boomspec.compile.check import check, check_against, together
from boomspec.compile.cost.pricing import priced
from boomspec.compile.family import ResolvedFamily, Sets, kept_layers, patched_sets, resolve_family
from boomspec.compile.family_check import add_check
from boomspec.compile.lm_eval.checks import check_tasks
from boomspec.compile.model_sources import Role, dequantization, local_facts, model_sources, student_mapping
from boomspec.compile.places import errors_at, tracking_of
from boomspec.compile.resolved import resolve
from boomspec.compile.text_sources import held_out_source, text_source
from boomspec.core.errors import BoomspecError, redact
from boomspec.core.graph import Experiment, Node, Source, Task, TaskGraph
from boomspec.core.identity import canonical_plain
from boomspec.core.layers import student_layers
from boomspec.core.sizes import Lineage
from boomspec.core.tasks import Cell, Compared, Comparison, Evaluate, LmEval, Report
from boomspec.models.facts import ModelFacts
from boomspec.models.fit import plan_entries
from boomspec.spec.problems import for_each
from boomspec.spec.sections.interpolate import OrderSearch
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.spec_file import ById, SpecFile
from boomspec.store import Store


def no_search_results(search: str) -> dict[str, Any] | None:
    """No search has run."""
    return None


@dataclass(frozen=True)
class Compiled:
    """A graph and the families that it builds, by the experiment's label; none while layers have to be searched for.

    `family` is the only experiment's. files, answers: what was compiled; none of a graph that was read from a file.
    """

    graph: TaskGraph
    families: dict[str, ResolvedFamily]
    pending: tuple[str, ...] = ()  # names of the searches that the rest waits for
    files: tuple[SpecFile, ...] = ()
    answers: Answers = no_search_results

    @property
    def family(self) -> ResolvedFamily | None:
        return next(iter(self.families.values()), None) if len(self.graph.experiments) == 1 else None


@dataclass(frozen=True)
class _Part:
    """One compiled experiment. `cells` are its numbers, `roles` the tasks that they come from."""

    build: Builder
    family: ResolvedFamily | None = None
    lineage: Lineage | None = None
    products: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
    trainings: dict[str, str] = field(default_factory=dict)

    def experiment(self) -> Experiment:
        file, resolved = self.build.file, self.build.resolved
        tasks = {node.name: node.id for node in self.build.nodes.values()}
        resolved = replace(resolved, family=self.family, sources=tuple(self.build.sources.values()))
        return Experiment(file.label, file.axes, tasks, resolved.to_json(), self.lineage)


@dataclass(frozen=True)
class _Start:
    """What every experiment begins with; ids of sources or tasks."""

    facts: ModelFacts
    teacher: str
    tokens: str | None
    trainings: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, str]:
        assert self.tokens is not None  # the language demands text for what reads it
        return {"teacher": self.teacher, "tokens": self.tokens}


def search_results_from(store: Store) -> Answers:
    """What the searches in a store have found. One that is damaged counts as not run."""

    def answer(search: str) -> dict[str, Any] | None:
        if not store.has("search", search) or store.damage("search", search) is not None:
            return None
        found: dict[str, Any] = json.loads(store.read("search", search, "search.json"))
        return found

    return answer


def compile_spec(file: SpecFile, answers: Answers = no_search_results) -> Compiled:
    """Compile one experiment."""
    return compile_experiments([file], answers)


def compile_experiments(
    files: Sequence[SpecFile], answers: Answers = no_search_results, *, failed: Collection[str] = ()
) -> Compiled:
    """Compile the experiments of one spec file. Reads what they name, or asks the hub for pinned commits.

    answers: what a search found. failed: searches; experiments that wait for one of them are left out, where others
    remain. Raises SpecError with the problems of all experiments, or BoomspecError, before anything is run.
    """
    parts = for_each(together(files), lambda file: _compile(file, answers))
    parts = [part for part in parts if not set(failed) & set(part.build.pending)] or parts
    nodes: dict[str, Node] = {}
    sources: dict[str, Source] = {}
    facts: dict[str, ModelFacts] = {}
    pending = [search for part in parts for search in part.build.pending]
    targets = [*pending, *(task for part in parts for task in part.products)]
    if len(files) == 1 and not pending:
        targets.append(_report(parts[0]))
    for i, part in enumerate(parts):
        sources |= part.build.sources
        facts |= part.build.facts
        for node in part.build.nodes.values():
            if node.id not in nodes:
                nodes[node.id] = replace(node, name=f"{part.build.file.label}: {node.name}") if i else node
            elif nodes[node.id].after != node.after:  # one experiment's check must not hold up what another needs, too
                both = tuple(first for first in nodes[node.id].after if first in node.after)
                nodes[node.id] = replace(nodes[node.id], after=both)
    if pending:
        targets += [task for part in parts for task in part.roles.values()]
    elif len(files) > 1:
        comparison = _comparison(parts)
        nodes[comparison.id] = comparison
        targets.append(comparison.id)
    graph = TaskGraph(
        name=files[0].spec.name,
        nodes=priced(nodes, sources, facts),
        sources=sources,
        targets=tuple(dict.fromkeys(targets)),
        spec=_spec_text(files[0]),
        experiments=tuple(part.experiment() for part in parts),
        tracking=tracking_of(files[0]),
    )
    families = {part.build.file.label: part.family for part in parts if part.family is not None}
    searches = tuple(nodes[search].name for search in dict.fromkeys(pending))
    return Compiled(graph, families, searches, tuple(part.build.file for part in parts), answers)


def tasks_of(file: SpecFile, answers: Answers) -> tuple[dict[str, Task], bool]:
    """The tasks of one experiment by their names, without costs, and whether it waits for a search.

    What was read for experiments with the same memo is not read again. Raises SpecError or BoomspecError.
    """
    part = _compile(file, answers)
    if not part.build.pending:
        _report(part)
    return {node.name: node.task for node in part.build.nodes.values()}, bool(part.build.pending)


def _spec_text(file: SpecFile) -> str:
    """The text that was compiled, with those of its bases; a graph is written into the store, so it holds no secret."""
    others = [f"# ---- {name} ----\n{text}" for name, text in file.document.others.items()]
    return redact("\n".join([file.document.text, *others]))


def _compile(file: SpecFile, answers: Answers) -> _Part:
    """One experiment up to its numbers, or to the searches that come first."""
    resolved = resolve(file.spec)
    file = replace(file, spec=resolved.spec)
    check(file)
    build = Builder(file, resolved, answers)
    start = _start(build)
    check_against(file, start.facts)
    records.evaluations(file)  # an unknown task is an error now, not after a search
    check_tasks(file, start.facts)
    kept = _kept(build, start)
    if kept is None:
        return _pending(build, start)
    student, trainings, existing = _student(build, start, kept)
    sets = patched_sets(file, kept, start.facts.count) or _searched_sets(build, start, student, kept)
    if sets is None:
        return _pending(build, start, kept, student)
    family = resolve_family(file, start.facts, kept, sets, existing)
    inner = add_interpolated_models(build, family, start.teacher, student, "interpolated")
    models = [
        EvaluatedModel("teacher", "teacher", family.members[-1], start.teacher),
        EvaluatedModel("student", "student", family.student, student),
        *inner,
    ]
    more, more_trainings = baselines(build, family, start.teacher, start.tokens)
    if build.pending:
        return _pending(build, start, kept, student, family)
    cells, roles = _cells(build, [*models, *more], start.tokens)
    add_check(build, start.teacher, kept, student)
    products = tuple(model.task for model in inner if model.task in build.nodes)
    lineage = Lineage(start.teacher, student, kept, family.student, family.every, family.rest)
    return _Part(build, family, lineage, products, cells, roles, {**trainings, **more_trainings})


def _start(build: Builder) -> _Start:
    file, resolved = build.file, build.resolved
    if resolved.spec.teacher.pretrain is not None:
        facts = local_facts(file)
        assert facts is not None
        tokens = build.add("tokenize", records.tokenize(resolved), _texts(build))
        teacher = build.add("pretrain teacher", records.pretrain(resolved), {"tokens": tokens})
        return _Start(facts, teacher, tokens, {"teacher": teacher})
    facts, model, tokenizer = model_sources(file, "teacher")
    inputs = {} if resolved.spec.data is None else {**_texts(build), "tokenizer": build.source(tokenizer)}
    teacher = _model(build, "teacher", facts, model)
    return _Start(facts, teacher, build.add("tokenize", records.tokenize(resolved), inputs) if inputs else None)


def _model(build: Builder, role: Role, facts: ModelFacts, source: Source) -> str:
    """The id of a model that exists; of the task that dequantises it, where it is quantised."""
    model, record = build.model(facts, source), dequantization(build.file, role)
    return model if record is None else build.add(f"dequantize {role}", record, {"model": model})


def _texts(build: Builder) -> dict[str, str]:
    """The sources of the text, by their roles; held-out text where it has files of its own."""
    held_out = held_out_source(build.file)
    own = {} if held_out is None else {"held_out": build.source(held_out)}
    return {"text": build.source(text_source(build.file)), **own}


def _kept(build: Builder, start: _Start) -> tuple[int, ...] | None:
    keep = build.resolved.spec.student.keep
    if keep is None:
        return kept_layers(build.file, start.facts, student_mapping(build.file, start.facts.count))
    if not isinstance(keep, KeepChoice):
        return kept_layers(build.file, start.facts)
    search = build.add(f"search layers by {keep.method}", records.layer_search(build.resolved, keep), start.inputs)
    found = build.answer(search)
    return None if found is None else kept_layers(build.file, start.facts, tuple(found["kept"]))


def _student(build: Builder, start: _Start, kept: tuple[int, ...]) -> tuple[str, dict[str, str], ModelFacts | None]:
    """The student's id, the trainings that have curves, and the facts of a student that exists."""
    if build.resolved.spec.distill is not None:
        student = build.add("distill student", records.distill(build.resolved, kept), start.inputs)
        return student, {**start.trainings, "student": student}, None
    facts, model, _ = model_sources(build.file, "student")
    with errors_at(build.file, ("student", "model")):
        if facts.count != len(kept):
            raise BoomspecError(f"the student has {facts.count} layers, its mapping names {len(kept)}")
        plan_entries(start.facts, facts, student_layers(facts.count), tied=facts.tied)
    return _model(build, "student", facts, model), start.trainings, facts


def _searched_sets(build: Builder, start: _Start, student: str, kept: tuple[int, ...]) -> Sets | None:
    order = build.resolved.spec.interpolate.order
    assert isinstance(order, OrderSearch)
    inputs = {"teacher": start.teacher, "student": student, "tokens": start.inputs["tokens"]}
    record = records.order_search(build.resolved, order, kept)
    found = build.answer(build.add(f"search patch order by {order.search}", record, inputs))
    return None if found is None else tuple(map(tuple, found["sets"]))


def _pending(
    build: Builder,
    start: _Start,
    kept: tuple[int, ...] | None = None,
    student: str | None = None,
    family: ResolvedFamily | None = None,
) -> _Part:
    """The experiment up to the searches that have not run."""
    needed = set(build.pending)
    for node in reversed(build.nodes.values()):
        needed.update(node.task.inputs.values() if node.id in needed else ())
    build.nodes = {i: node for i, node in build.nodes.items() if i in needed}
    build.sources = {i: source for i, source in build.sources.items() if i in needed}
    add_check(build, start.teacher, kept, student if student in build.sources else None)
    return _Part(build, family)


def _cells(build: Builder, models: list[EvaluatedModel], tokens: str | None) -> tuple[tuple[Cell, ...], dict[str, str]]:
    """Every number of the report, and the evaluations by their roles."""
    file = build.file
    evaluations = records.evaluations(file)
    reads = [{"tasks": build.source(source)} if source else {"tokens": tokens or ""} for _, _, source in evaluations]
    inputs: dict[str, str] = {}
    for model in models:
        for (name, record, _), read in zip(evaluations, reads, strict=True):
            role = f"{model.label}/{name}"
            assert role not in inputs  # labels differ
            inputs[role] = build.add(f"evaluate {model.label}: {name}", record, {"model": model.task, **read})
    same = tuple((model.series, model.label, ById(model.member)) for model in models)
    cells = file.once(
        ("cells", ById(evaluations), same),
        lambda: tuple(_cell(model, name, record) for model in models for name, record, _ in evaluations),
    )
    return cells, inputs


def _cell(model: EvaluatedModel, measure: str, record: Evaluate) -> Cell:
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


def _report(part: _Part) -> str:
    trainings = {f"training/{label}": task for label, task in part.trainings.items()}
    searches = {node.name: node.id for node in part.build.nodes.values() if node.task.kind == "search"}
    record = Report(
        cells=part.cells,
        trainings={label: f"training/{label}" for label in part.trainings},
        searches={name: f"search/{name}" for name in searches},
    )
    inputs = {**part.roles, **trainings, **{f"search/{name}": search for name, search in searches.items()}}
    return part.build.add("report", record, inputs)


def _comparison(parts: Sequence[_Part]) -> Node:
    """The experiments on one page, in the place of their reports."""
    files = [part.build.file for part in parts]
    compared = tuple(
        Compared(label=file.label, axes=file.axes, cells=part.cells) for file, part in zip(files, parts, strict=True)
    )
    inputs = {
        f"{file.label}/{role}": t for file, part in zip(files, parts, strict=True) for role, t in part.roles.items()
    }
    # The record's canonical JSON: experiments of one family have the same cells, which are encoded once.
    cells = {id(part.cells): part.cells for part in parts}
    texts = {
        i: canonical_plain([cell.model_dump(mode="json", exclude_none=True) for cell in found])
        for i, found in cells.items()
    }
    rows = [
        f'{{"axes":{canonical_plain(file.axes)},"cells":{texts[id(part.cells)]},"label":{canonical_plain(file.label)}}}'
        for file, part in zip(files, parts, strict=True)
    ]
    params = f'{{"experiments":[{",".join(rows)}]}}'
    return Node(Task(Comparison(experiments=compared), inputs, params), "comparison")
