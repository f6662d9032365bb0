"""The compiler: the experiments of a spec become one task graph, in which a task that they share is there once.

    SpecFiles --resolve--> ResolvedSpecs, families --records--> tasks --compile_experiments--> Compiled (one TaskGraph)

Two specs that mean the same give the same task ids, and an experiment has the ids that it would have alone: names,
paths, the store and the execution section go into nodes and locations, never into records.

A choice that needs data (which layers, which patch order) is made by a `search` task. The compiler reads what it found
and goes on with integers. As long as it has not run, the graph is `pending`: it has what does not wait for a choice;
where layers or order wait, it ends at their searches. `boomspec run` runs it and compiles again. For a forecast of all
that follows the choices can be made up (`guess`).
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from boomspec.compile import records
from boomspec.compile.baselines import add_interpolated, baselines
from boomspec.compile.builder import Answers, Builder
from boomspec.compile.check import check_against, check_complete, together
from boomspec.compile.cost.pricing import priced
from boomspec.compile.deployment import add_deployed, check_texts
from boomspec.compile.family import EvaluatedModel, ResolvedFamily, caches_of, kept_layers, patched_sets, resolve_family
from boomspec.compile.lm_eval.checks import check_tasks
from boomspec.compile.lm_eval.sources import generates
from boomspec.compile.model_sources import Role, dequantization, local_facts, model_sources, student_mapping
from boomspec.compile.places import errors_at, tracking_of
from boomspec.compile.prompts import with_prompts
from boomspec.compile.resolved import resolve
from boomspec.compile.schemes import add_student
from boomspec.compile.teachers import add_other_teachers
from boomspec.compile.texts import default_text
from boomspec.compile.transfers import add_transfer, other_experiment, transferred_layers
from boomspec.core.errors import BoomspecError, redact
from boomspec.core.graph import Node, Source, Task, TaskGraph
from boomspec.core.identity import canonical_plain
from boomspec.core.layers import student_layers
from boomspec.core.sizes import Lineage
from boomspec.core.tasks import Cell, Compared, Comparison, Distill, Evaluate, LmEval, Report, Transfer
from boomspec.core.tasks.report import Begun
from boomspec.models.facts import ModelFacts
from boomspec.models.fit import plan_entries
from boomspec.models.hub import has_tokenizer
from boomspec.spec.problems import for_each
from boomspec.spec.sections.interpolate import OrderSearch
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.spec_file import SpecFile
from boomspec.store import Store


@dataclass(frozen=True)
class Compiled:
    """A graph and the families that it builds, by the experiment's label; none while layers have to be searched for.

    `family` is the only experiment's. files, answers: what was compiled; none of a graph that was read from a file.
    """

    graph: TaskGraph
    families: dict[str, ResolvedFamily]
    pending: tuple[str, ...] = ()  # names of the searches that the rest waits for
    files: tuple[SpecFile, ...] = ()
    answers: Answers = lambda search: None

    @property
    def family(self) -> ResolvedFamily | None:
        return next(iter(self.families.values()), None) if len(self.graph.experiments) == 1 else None


def search_results_from(store: Store) -> Answers:
    """What the searches in a store have found. One that is damaged counts as not run."""

    def answer(search: str) -> dict[str, Any] | None:
        if not store.is_whole("search", search):
            return None
        found: dict[str, Any] = json.loads(store.read("search", search, "search.json"))
        return found

    return answer


def compile_experiments(
    files: Sequence[SpecFile],
    answers: Answers = lambda search: None,
    *,
    failed: Collection[str] = (),
    guess: bool = False,
) -> Compiled:
    """Compile the experiments of one spec file. Reads what they name, or asks the hub for pinned commits.

    answers: what a search found. failed: searches; experiments that wait for one of them are left out, where others
    remain. guess: what has not been searched for is made up. Raises SpecError with the problems of all experiments, or
    BoomspecError, before anything is run.
    """
    builds = for_each(together(files), lambda file: _compile(file, answers, guess=guess))
    builds = [build for build in builds if not set(failed) & set(build.pending)] or builds
    nodes: dict[str, Node] = {}
    sources: dict[str, Source] = {}
    facts: dict[str, ModelFacts] = {}
    pending = [search for build in builds for search in build.pending]
    targets = [*pending, *(task for build in builds for task in build.products)]
    if len(files) == 1 and not pending:
        targets.append(_report(builds[0]))
    for i, build in enumerate(builds):
        sources |= build.sources
        facts |= build.facts
        for task, node in build.nodes.items():
            after = build.check if task in build.checked else node.after
            if (known := nodes.get(task)) is None:
                name = f"{build.file.label}: {node.name}" if i else node.name
                nodes[task] = replace(node, name=name, after=after)
            elif known.after != after:  # one experiment's check must not hold up what another needs, too
                nodes[task] = replace(known, after=tuple(first for first in known.after if first in after))
    if pending:
        targets += [task for build in builds for task in build.roles.values()]
    elif len(files) > 1:
        comparison = _comparison(builds)
        nodes[comparison.id] = comparison
        targets.append(comparison.id)
    # The graph is written into the store, so its text holds no secret.
    others = [f"# ---- {name} ----\n{text}" for name, text in files[0].document.others.items()]
    graph = TaskGraph(
        name=files[0].spec.name,
        nodes=priced(nodes, sources, facts),
        sources=sources,
        targets=tuple(dict.fromkeys(targets)),
        spec=redact("\n".join([files[0].document.text, *others])),
        experiments=tuple(build.experiment() for build in builds),
        tracking=tracking_of(files[0]),
    )
    families = {build.file.label: build.family for build in builds if build.family is not None}
    searches = tuple(nodes[search].name for search in dict.fromkeys(pending))
    return Compiled(graph, families, searches, tuple(build.file for build in builds), answers)


def tasks_of(file: SpecFile, answers: Answers) -> tuple[dict[str, Task], bool]:
    """The tasks of one experiment by their names, without costs, and whether it waits for a search."""
    build = _compile(file, answers)
    if not build.pending:
        _report(build)
    return {node.name: node.task for node in build.nodes.values()}, bool(build.pending)


def _compile(file: SpecFile, answers: Answers, *, guess: bool = False) -> Builder:
    """One experiment up to its numbers, or to the searches that come first."""
    resolved = resolve(with_prompts(file).spec)
    file = replace(file, spec=resolved.spec)
    check_complete(file)
    build = Builder(file, resolved, answers, guesses=guess)
    facts = _add_teacher(build)
    build.layers = facts.count
    check_against(file, facts)
    records.evaluations(file)  # an unknown task is an error now, not after a search
    check_tasks(file, facts)
    check_texts(file)
    other = other_experiment(build, partial(_compile, answers=answers, guess=guess))
    build.kept = kept = _kept(build, facts, other)
    if kept is not None:
        existing = _add_student(build, facts, kept, other)
        sets, order = patched_sets(file, kept, facts.count), file.spec.interpolate.order
        if isinstance(order, OrderSearch):
            inputs = {"teacher": build.teacher, "student": build.student, "tokens": build.tokens}
            record = records.search(resolved, order, kept)
            found = build.answer(build.add(f"search patch order by {order.search}", record, inputs))
            sets = None if found is None else tuple(map(tuple, found["sets"]))
        if sets is not None:
            build.family = family = resolve_family(file, facts, kept, sets, existing)
            inner = add_interpolated(build, family, build.student, "interpolated")
            teacher = EvaluatedModel("teacher", "teacher", family.members[-1], build.teacher)
            student = EvaluatedModel("student", "student", family.student, build.student)
            models = [teacher, student, *_after_phases(build, family), *inner, *baselines(build, family)]
            _add_numbers(build, models)
            add_deployed(build, [model for model in models if model.phase is None])  # of the student's shape
            build.products = tuple(model.task for model in inner if model.task in build.nodes)
            fitted = file.spec.interpolate.seam is not None
            trained = (family.student, family.every, family.rest, fitted, caches_of(facts))
            build.lineage = Lineage(build.teacher, build.student, kept, *trained)
    if build.family is None:  # no task or source is left but those that the searches need
        needed = set(build.pending)
        for node in reversed(build.nodes.values()):
            needed.update((*node.task.inputs.values(), *node.after) if node.id in needed else ())
        build.nodes = {i: node for i, node in build.nodes.items() if i in needed}
        build.sources = {i: source for i, source in build.sources.items() if i in needed}
        build.student = build.student if build.student in build.sources else ""
    build.add_check()
    return build


def _add_teacher(build: Builder) -> ModelFacts:
    """Add the teacher and the text, where there is any; the teacher's facts."""
    file, resolved = build.file, build.resolved
    found = None if resolved.spec.teacher.pretrain is not None else model_sources(file, "teacher")
    facts = local_facts(file) if found is None else found[0]
    assert facts is not None
    if found is not None:
        build.tokenizer = found[2]
        build.teacher = _existing(build, "teacher", facts, found[1])
    if default_text(resolved.spec) is not None:
        build.tokens = build.tokens_of()
    if found is None:
        build.teacher = build.add("pretrain teacher", records.pretrain(resolved), {"tokens": build.tokens})
        build.trainings["teacher"] = build.teacher
    return facts


def _existing(build: Builder, role: Role, facts: ModelFacts, source: Source) -> str:
    """The id of a model that exists; of the task that dequantises it, where it is quantised."""
    model, record = build.source(source), dequantization(build.file, role)
    build.facts[model] = facts
    return model if record is None else build.add(f"dequantize {role}", record, {"model": model})


def _kept(build: Builder, facts: ModelFacts, other: Builder | None) -> tuple[int, ...] | None:
    """The kept layers; None where a search has to find them. `other`: whose student is transferred."""
    keep = build.resolved.spec.student.keep
    if build.resolved.spec.student.transfer is not None:
        if other is not None and other.kept is None:
            return None
        mapping = transferred_layers(build, facts, other)
        own = kept_layers(build.file, facts, None if keep is not None else mapping)
        if mapping and own != mapping:
            named, its = (", ".join(map(str, layers)) for layers in (own, mapping))
            hint = "leave it out: the layers are those of the distilled student"
            raise build.file.error_at(("student", "keep"), f"keeps {named}, the distilled student {its}", hint)
        return own
    if keep is None:
        return kept_layers(build.file, facts, student_mapping(build.file, facts.count))
    if not isinstance(keep, KeepChoice):
        return kept_layers(build.file, facts)
    inputs = {"teacher": build.teacher, "tokens": build.tokens}
    found = build.answer(build.add(f"search layers by {keep.method}", records.search(build.resolved, keep), inputs))
    return None if found is None else kept_layers(build.file, facts, tuple(found["kept"]))


def _add_student(
    build: Builder, teacher: ModelFacts, kept: tuple[int, ...], other: Builder | None
) -> ModelFacts | None:
    """Add the student; its facts where it exists, None where it is made. `other`: whose student is transferred."""
    if build.resolved.spec.student.transfer is not None:
        build.student = add_transfer(build, teacher, kept, other)
        return None
    if build.resolved.spec.distill is not None:
        add_other_teachers(build, teacher, partial(_existing, build))
        build.student = add_student(build, teacher, kept)
        return None
    facts, model, tokenizer = model_sources(build.file, "student")
    build.own_tokenizer = _compared(build, tokenizer)
    with errors_at(build.file, ("student", "model")):
        if facts.count != len(kept):
            raise BoomspecError(f"the student has {facts.count} layers, its mapping names {len(kept)}")
        plan_entries(teacher, facts, student_layers(facts.count), tied=facts.tied)
    build.student = _existing(build, "student", facts, model)
    return facts


def _after_phases(build: Builder, family: ResolvedFamily) -> list[EvaluatedModel]:
    """The student after each phase but the last, which leaves the student itself."""
    made = build.phases.get("student", [])[:-1]
    return [EvaluatedModel("phase", f"student after phase {name}", family.student, task, name) for name, task in made]


def _compared(build: Builder, tokenizer: Source) -> Literal["same", "other", "unknown"]:
    """The tokenizer of a student that exists, against the teacher's. Of two on the hub it is not known."""
    if "sha256" in tokenizer.identity:
        has = bool(tokenizer.identity["sha256"])
    else:
        name, commit = tokenizer.identity["hub"], tokenizer.identity["revision"]
        has = build.file.once(("has tokenizer", name, commit), partial(has_tokenizer, name, commit))
    theirs = build.tokenizer
    if not has or theirs is None:
        return "other"
    if "sha256" not in tokenizer.identity or "sha256" not in theirs.identity:
        return "unknown"
    return "same" if tokenizer.identity == theirs.identity else "other"


def _add_numbers(build: Builder, models: list[EvaluatedModel]) -> None:
    evaluations = records.evaluations(build.file)
    reads = [{"tasks": build.source(source)} if source else {"tokens": build.tokens} for _, _, source in evaluations]
    measures = [record.measure for _, record, _ in evaluations]
    writes = [isinstance(measure, LmEval) and generates(build.file, measure.task) for measure in measures]
    for model in models:
        for (name, record, _), read, wrote in zip(evaluations, reads, writes, strict=True):
            role = f"{model.label}/{name}"
            assert role not in build.roles  # labels differ
            called, inputs = f"evaluate {model.label}: {name}", {"model": model.task, **read}
            if isinstance(record.measure, LmEval):
                inputs |= build.tokenizer_of(model.task, asked_anew=record.measure.chat is not None)
            build.roles[role] = build.add(called, record, inputs, generates=wrote)

    def cell(model: EvaluatedModel, measure: str, record: Evaluate) -> Cell:
        task = record.measure.task if isinstance(record.measure, LmEval) else measure
        return Cell(
            series=model.series,
            layers=model.member.layers,
            parameters=model.member.parameters,
            bytes=model.member.bytes,
            measure=measure,
            input=f"{model.label}/{measure}",
            task=task if task != measure else None,
            phase=model.phase,
        )

    build.cells = build.file.once(
        ("cells", *((model.series, model.label) for model in models)),
        lambda: tuple(cell(model, name, record) for model in models for name, record, _ in evaluations),
        evaluations,
        *(model.member for model in models),
    )


def _report(build: Builder) -> str:
    searches = {node.name: node.id for node in build.nodes.values() if node.task.kind == "search"}
    trained = {label: f"training/{label}" for label in build.trainings}
    searched = {name: f"search/{name}" for name in searches}
    inputs = build.roles | {trained[label]: task for label, task in build.trainings.items()}
    inputs |= {searched[name]: task for name, task in searches.items()}
    shown: dict[str, Any] = {"trainings": trained, "searches": searched, "deployed": build.deployed or None}
    student = build.nodes.get(build.student)
    if student is not None and isinstance(student.task.record, Transfer):
        shown["transfer"], inputs["transfer"] = "transfer", build.student
    if marks := {label: begun for label in build.trainings if (begun := _begun(build, label))}:
        shown["phases"] = marks
    return build.add("report", Report(cells=build.cells, **shown), inputs)


def _begun(build: Builder, label: str) -> tuple[Begun, ...]:
    """Where each phase of a training has begun; nothing of one without phases."""
    records_of = [(name, build.nodes[task].task.record) for name, task in build.phases.get(label, ())]
    return tuple(Begun(name=name, step=of.steps.start) for name, of in records_of if isinstance(of, Distill))


def _comparison(builds: Sequence[Builder]) -> Node:
    """The experiments on one page, in the place of their reports."""
    compared = tuple(
        Compared(label=b.file.label, axes=b.file.axes, cells=b.cells, deployed=b.deployed or None) for b in builds
    )
    inputs = {f"{build.file.label}/{role}": task for build in builds for role, task in build.roles.items()}
    # The record's canonical JSON: experiments of one family have the same cells, which are encoded once.
    encoded = {
        i: canonical_plain([cell.model_dump(mode="json", exclude_none=True) for cell in cells])
        for i, cells in {id(cells): cells for build in builds for cells in (build.cells, build.deployed)}.items()
    }

    def row(build: Builder) -> str:
        deployed = f'"deployed":{encoded[id(build.deployed)]},' if build.deployed else ""
        axes, label = canonical_plain(build.file.axes), canonical_plain(build.file.label)
        return f'{{"axes":{axes},"cells":{encoded[id(build.cells)]},{deployed}"label":{label}}}'

    rows = [row(build) for build in builds]
    return Node(Task(Comparison(experiments=compared), inputs, f'{{"experiments":[{",".join(rows)}]}}'), "comparison")
