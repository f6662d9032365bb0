"""Add a quick check on tiny random weights that every long task waits for.

A teacher that the spec trains itself needs none: it is a Llama, of which every size is right.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata

from boomspec.compile.builder import Builder
from boomspec.core.graph import CODE
from boomspec.core.layers import evenly_spaced, plan_of
from boomspec.core.tasks import BuiltSize, Check, Outline
from boomspec.core.tasks.record import LayerPlanShape, SameShape
from boomspec.models.facts import ModelFacts
from boomspec.models.outline import config_text, outline
from boomspec.spec.spec_file import ById

NAME = "check the family"


def add_check(build: Builder, teacher: str, kept: tuple[int, ...] | None, student: str | None = None) -> None:
    """Add the check of what an experiment builds, and let its other tasks come after it.

    `kept`: None where the layers are still searched for. `student`: the source of one that exists.
    """
    teacher, student = _source(build, teacher), None if student is None else _source(build, student)
    waiting = [node for node in build.nodes.values() if node.task.record.reads_models]
    if teacher not in build.facts or not waiting:
        return
    facts, given = build.facts[teacher], build.facts.get(student or "")
    kept = kept or evenly_spaced(max(1, facts.count // 2), facts.count)
    models = [model for node in waiting if isinstance(model := node.task.record.model(), LayerPlanShape)]
    # A student that is trained begins as layers of its teacher.
    plans = [(m.plan, facts.tied if m.tied is None else m.tied) for m in models if not m.merged]
    half = plan_of(kept, facts.count, [i >= len(kept) // 2 for i in range(len(kept))])
    sizes = tuple(dict.fromkeys(plans or [(half, False)]))  # where no size is known a plan of both models
    merged = any(model.merged for model in models)
    record = build.file.once(
        ("check", ById(facts), ById(given), kept, sizes, merged),
        lambda: Check(
            teacher=_outline(facts),
            student=None if given is None else _outline(given),
            kept=kept,
            sizes=tuple(BuiltSize(plan=plan, tied=tied) for plan, tied in sizes),
            merged=True if merged else None,
            transformers=_version(),
        ),
    )
    sources = {"teacher": teacher, "student": student}
    inputs = {role: i for role, i in sources.items() if i in build.facts and CODE in build.sources[i].identity}
    check = build.add(NAME, record, inputs)
    nodes = {check: build.nodes.pop(check), **build.nodes}  # what comes first stands first
    nodes.update({node.id: replace(node, after=(check,)) for node in waiting})
    build.nodes = nodes


def _source(build: Builder, model: str) -> str:
    """The source of a model that is dequantised first."""
    node = build.nodes.get(model)
    copied = node.task.record.model() if node is not None else None
    return node.task.inputs[copied.role] if node is not None and isinstance(copied, SameShape) else model


def _outline(facts: ModelFacts) -> Outline:
    return Outline(config=config_text(facts.written), tensors=outline(facts.stored), tied=facts.tied)


def _version() -> str:
    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return "not installed"
