"""The compiler: a spec file becomes a task graph.

    spec file --resolve--> family --compile--> TaskGraph

Two specs that mean the same give the same task ids: names, paths, the store and the execution section go
into nodes and locations, never into records.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from boomspec.errors import redact
from boomspec.fields import Strict
from boomspec.graph import Execution, Node, Source, Task, TaskGraph
from boomspec.language import Resources
from boomspec.layers import blocks, untrained
from boomspec.losses import Losses
from boomspec.resolve import Family, Member, recipe, resolve_family
from boomspec.sources import architecture, check_paths, local_facts, task_source, teacher_sources, text_source
from boomspec.spec import SpecFile
from boomspec.tasks import (
    Baseline,
    Cell,
    Distill,
    Evaluate,
    HeldOut,
    Interpolate,
    LmEval,
    Pretrain,
    Record,
    Report,
    Subset,
    Tokenize,
    TrainTokenizer,
)

Series = Literal["teacher", "student", "interpolated", "naive_pruning", "random_init"]


@dataclass
class _Builder:
    """Nodes and sources in the making; `add` returns the id."""

    file: SpecFile
    nodes: dict[str, Node] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)

    def source(self, source: Source) -> str:
        return self.sources.setdefault(source.id, source).id

    def add(self, name: str, record: Record, inputs: dict[str, str]) -> str:
        node = Node(Task(record, inputs), name, _execution(self.file, record.kind))
        return self.nodes.setdefault(node.id, node).id


@dataclass(frozen=True)
class Compiled:
    """A graph and the family that it builds."""

    graph: TaskGraph
    family: Family


def check_spec(file: SpecFile) -> Family | None:
    """Check all that can be known without reading data or asking the hub.

    Returns the family, or None where the teacher's layers are not known on this machine. Raises SpecError.
    """
    if problems := check_paths(file):
        raise file.error(*problems)
    facts = local_facts(file)
    return None if facts is None else resolve_family(file, facts)


def compile_spec(file: SpecFile) -> Compiled:
    """Compile a spec. Reads what it names (digests of files, headers) or asks the hub for pinned commits.

    Raises SpecError or BoomspecError before anything is run.
    """
    check_spec(file)
    build = _Builder(file)
    spec = file.spec
    text = build.source(text_source(file))
    if spec.teacher.pretrain is not None:
        facts = local_facts(file)
        assert facts is not None
        tokens = build.add("tokenize", _tokenize(file), {"text": text})
        teacher = build.add("pretrain teacher", _pretrain(file), {"tokens": tokens})
        trainings = {"teacher": teacher}
    else:
        facts, model, tokenizer = teacher_sources(file)
        teacher = build.source(model)
        tokens = build.add("tokenize", _tokenize(file), {"text": text, "tokenizer": build.source(tokenizer)})
        trainings = {}
    family = resolve_family(file, facts)
    student = build.add("distill student", _distill(file, family), {"teacher": teacher, "tokens": tokens})
    trainings["student"] = student
    models = _members(build, family, teacher, student, "interpolated")
    products = [model for _, _, model in models if model in build.nodes]
    models = [("teacher", family.members[-1], teacher), ("student", family.members[0], student), *models]
    if spec.baseline("naive_pruning") is not None:
        models += _naive_pruning(build, family, teacher)
    if (random_init := spec.baseline("random_init")) is not None:
        record = _distill(file, family, initial="random", tokens=random_init.tokens)
        control = build.add("distill random_init", record, {"teacher": teacher, "tokens": tokens})
        trainings["random_init"] = control
        models += [("random_init", family.members[0], control)]
        models += _members(build, family, teacher, control, "random_init")
    report = _report(build, models, tokens, trainings)
    targets = tuple(dict.fromkeys([*products, report]))
    return Compiled(
        TaskGraph(
            name=spec.name,
            nodes=build.nodes,
            sources=build.sources,
            targets=targets,
            spec=redact(file.document.text),  # the graph is written into the store
            resolved=_resolved(file, family, build),
        ),
        family,
    )


def _execution(file: SpecFile, kind: str) -> Execution:
    execution = file.spec.execution
    section = "interpolate" if kind == "baseline" else kind
    resources: Resources = getattr(execution, section, Resources())
    options = resources.model_dump(exclude={"cpus", "gpus"})
    return Execution(resources.cpus, resources.gpus, execution.retries, options)


def _tokenize(file: SpecFile) -> Tokenize:
    data, pretrain = file.spec.data, file.spec.teacher.pretrain
    max_tokens = data.max_tokens
    if max_tokens is None and data.dataset is not None:
        recipes = [recipe(t, seed=0, sequence_length=data.sequence_length) for t in (pretrain, file.spec.distill) if t]
        max_tokens = max(r.tokens for r in recipes) + 1  # the last label
    trained = None
    if pretrain is not None:
        trained = TrainTokenizer(vocabulary=pretrain.tokenizer.vocabulary, bytes=pretrain.tokenizer.train_on)
    return Tokenize(
        text_field=data.text_field,
        train_tokenizer=trained,
        skip=data.skip,
        max_tokens=max_tokens,
        held_out_every=data.held_out.every if data.held_out else 0,
        held_out_offset=data.held_out.offset if data.held_out else 0,
    )


def _pretrain(file: SpecFile) -> Pretrain:
    pretrain, length = file.spec.teacher.pretrain, file.spec.data.sequence_length
    assert pretrain is not None
    return Pretrain(
        architecture=architecture(pretrain, length),
        recipe=recipe(pretrain, seed=file.spec.seed, sequence_length=length),
    )


def _distill(
    file: SpecFile, family: Family, *, initial: Literal["teacher", "random"] = "teacher", tokens: int | None = None
) -> Distill:
    spec = file.spec
    return Distill(
        kept=family.kept,
        initial=initial,
        train_embedding=spec.student.train_embedding,
        losses=Losses(**spec.distill.losses.terms()),
        recipe=recipe(spec.distill, seed=spec.seed, sequence_length=spec.data.sequence_length, tokens=tokens),
    )


_Model = tuple[Series, Member, str]


def _members(build: _Builder, family: Family, teacher: str, student: str, series: Series) -> list[_Model]:
    """The members between student and teacher, which are not made again."""
    models: list[_Model] = []
    for member in family.members:
        if member.is_student or member.is_teacher:
            continue
        record = Interpolate(plan=member.plan, tied=member.tied)
        name = f"interpolate {_size(member)}" + ("" if series == "interpolated" else f" {series}")
        models.append((series, member, build.add(name, record, {"teacher": teacher, "student": student})))
    return models


def _naive_pruning(build: _Builder, family: Family, teacher: str) -> list[_Model]:
    models: list[_Model] = []
    for member in family.members:
        if not member.is_teacher:
            record = Baseline(build=Subset(plan=untrained(member.plan, family.kept)))
            model = build.add(f"prune to {_size(member)}", record, {"teacher": teacher})
            models.append(("naive_pruning", member, model))
    return models


def _size(member: Member) -> str:
    return f"{member.layers} layers"


def _report(build: _Builder, models: list[_Model], tokens: str, trainings: dict[str, str]) -> str:
    cells, inputs = [], {}
    for series, member, model in models:
        for measure, source in _measures(build.file):
            record = Evaluate(measure=measure, precision=build.file.spec.evaluate.precision)  # type: ignore[union-attr]
            name = "held_out" if isinstance(measure, HeldOut) else measure.task
            extra = {"tokens": tokens} if source is None else {"tasks": build.source(source)}
            label = f"{series} {_size(member)}" if series not in ("teacher", "student") else series
            role = f"{series}/{member.patched}/{name}"
            inputs[role] = build.add(f"evaluate {label}: {name}", record, {"model": model, **extra})
            cells.append(
                Cell(
                    series=series,
                    layers=member.layers,
                    parameters=member.parameters,
                    bytes=member.bytes,
                    measure=name,
                    input=role,
                )
            )
    roles = {label: f"training/{label}" for label in trainings}
    inputs |= {roles[label]: task for label, task in trainings.items()}
    return build.add("report", Report(cells=tuple(cells), trainings=roles), inputs)


def _measures(file: SpecFile) -> list[tuple[HeldOut | LmEval, Source | None]]:
    evaluate = file.spec.evaluate
    if evaluate is None:
        return []
    measures: list[tuple[HeldOut | LmEval, Source | None]] = []
    if evaluate.held_out is not None:
        length = file.spec.data.sequence_length
        measures.append((HeldOut(sequence_length=length, max_tokens=evaluate.held_out.max_tokens), None))
    for i, task in enumerate(evaluate.tasks):
        record = LmEval(task=task.task, num_fewshot=task.num_fewshot, limit=task.limit, seed=file.spec.seed)
        measures.append((record, task_source(file, task.task, i)))
    return measures


def _resolved(file: SpecFile, family: Family, build: _Builder) -> dict[str, Any]:
    """What the spec means, for people: every default explicit, layers and sizes as integers."""
    spec = file.spec

    def plain(value: Strict | None) -> Any:
        return None if value is None else value.model_dump(mode="json", exclude_none=True)

    records = {node.name: plain(node.task.record) for node in build.nodes.values()}
    return {
        "seed": spec.seed,
        "teacher": {
            "model_type": family.facts.model_type,
            "layers": family.facts.count,
            "parameters": family.members[-1].parameters,
            "dtype": family.facts.dtype,
            "tied": family.facts.tied,
            **({"pretrain": records["pretrain teacher"]} if "pretrain teacher" in records else {}),
        },
        "sources": [{"kind": source.kind, **_short(source.identity)} for source in build.sources.values()],
        "student": {
            "kept": list(family.kept),
            "blocks": [list(block) for block in blocks(family.kept, family.facts.count)],
            "parameters": family.members[0].parameters,
        },
        "tokenize": records["tokenize"],
        "distill": records["distill student"],
        "interpolate": {
            "order": list(family.order),
            "sizes": [
                {"layers": m.layers, "parameters": m.parameters, "tied": m.tied, "plan": " ".join(m.plan)}
                for m in family.members
            ],
        },
        "evaluate": plain(spec.evaluate),
        "baselines": [plain(item) for item in spec.baselines],
    }


def _short(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity that fits a page: long file lists become a count."""
    files = identity.get("files")
    return {**identity, "files": f"{len(files)} files"} if isinstance(files, list) else identity
