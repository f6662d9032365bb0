"""Weight-delta transfer: the student is made of the variant, and of a distilled student and its teacher.

Where these two are of another spec, what makes them there becomes part of this graph: one run does everything.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from boomspec.compile.builder import Builder
from boomspec.compile.model_sources import dequantization, model_folder, model_sources, read_mapping
from boomspec.compile.places import errors_at
from boomspec.compile.transfer_sources import BASE, DISTILLED, PLACES, other_spec, problems_of_another
from boomspec.core.graph import CODE
from boomspec.core.tasks import Transfer
from boomspec.models.facts import ModelFacts
from boomspec.models.folder import STUDENT_CONFIG
from boomspec.models.transfer import check_base, check_distilled
from boomspec.spec.spec_file import SpecFile

Compile = Callable[[SpecFile], Builder]


def other_experiment(build: Builder, compile_other: Compile) -> Builder | None:
    """The experiment whose student is transferred, where it is another spec's; its search for layers comes first."""
    file = build.file
    if (other := other_spec(file)) is None:
        return None
    with problems_of_another(file):
        found = compile_other(replace(other, once=file.once))
    for search in found.pending if found.kept is None else ():
        _adopt(build, found, search)
        build.pending += [search] if search not in build.pending else []
    return found


def transferred_layers(build: Builder, facts: ModelFacts, other: Builder | None) -> tuple[int, ...]:
    """The layers that the distilled student keeps, of a teacher of these facts; empty where only the spec says it."""
    file = build.file
    if other is not None:
        assert other.kept is not None
        return other.kept
    folder = model_folder(file, DISTILLED)
    if file.spec.student.keep is not None and (folder is None or not (folder / STUDENT_CONFIG).is_file()):
        return ()  # what it keeps is said in the spec alone
    return read_mapping(file, DISTILLED, facts.count)


def add_transfer(build: Builder, facts: ModelFacts, kept: tuple[int, ...], other: Builder | None) -> str:
    """Add the student. Raises SpecError where the three models do not fit together."""
    file = build.file
    if build.teacher not in build.facts:  # another task makes what is read
        message = "the teacher is quantised: what a variant is cannot be told from its rounded weights"
        raise file.error_at(("teacher", "model"), message, "give it in 16 or 32 bits")
    if other is not None:
        inputs, found = _of_spec(build, other)
    else:
        inputs, found = _of_models(build)
    with errors_at(file, PLACES[BASE if other is None else DISTILLED], "" if other is None else "its teacher: "):
        check_base(facts, found["base"])
    with errors_at(file, PLACES[DISTILLED]):
        check_distilled(found["base"], found["distilled"], kept, tied=facts.tied)
    return build.add("transfer student", Transfer(kept=kept), {"teacher": build.teacher, **inputs})


def _of_models(build: Builder) -> tuple[dict[str, str], dict[str, ModelFacts]]:
    inputs, found = {}, {}
    for role, name in ((BASE, "base"), (DISTILLED, "distilled")):
        if dequantization(build.file, role) is not None:
            message, hint = "is quantised: a delta of rounded weights is mostly rounding", "give it in 16 or 32 bits"
            raise build.file.error_at(PLACES[role], message, hint)
        found[name], source, _ = model_sources(build.file, role)
        inputs[name] = build.source(source)
        build.facts[source.id] = found[name]
    if inputs["base"] == inputs["distilled"]:
        raise build.file.error_at(PLACES[DISTILLED], "this is the base itself: nothing was distilled")
    return inputs, found


def _of_spec(build: Builder, other: Builder) -> tuple[dict[str, str], dict[str, ModelFacts]]:
    file, place = build.file, PLACES[DISTILLED]
    assert other.family is not None
    if CODE in getattr(other.sources.get(other.teacher), "identity", {}):
        raise file.error_at(place, "its teacher brings code of its own: nothing is transferred")
    if other.teacher in other.nodes and other.nodes[other.teacher].task.kind == "dequantize":
        raise file.error_at(place, "its teacher is quantised: a delta of rounded weights is mostly rounding")
    base = other.family.facts
    distilled = replace(base, layers=tuple(base.layers[i] for i in other.family.kept))
    for model in (other.student, other.teacher):
        _adopt(build, other, model)
    build.trainings |= {
        f"{other.file.spec.name}: {label}": task for label, task in other.trainings.items() if task in build.nodes
    }
    return {"base": other.teacher, "distilled": other.student}, {"base": base, "distilled": distilled}


def _adopt(build: Builder, other: Builder, wanted: str) -> None:
    """Add a task of another experiment with all that it needs, or a source of it, in the order in which they were."""
    needed = {wanted}
    for task_id, node in reversed(other.nodes.items()):
        if task_id in needed:
            needed.update(node.task.inputs.values())
            needed.update(other.check if task_id in other.checked else node.after)
    for source_id, source in other.sources.items():
        if source_id in needed and source_id not in build.sources:
            build.sources[source_id] = source
            build.adopted.add(source_id)
    build.facts = {**_needed(other.facts, needed), **build.facts}
    for task_id, node in other.nodes.items():
        if task_id in needed and task_id not in build.nodes:
            after = other.check if task_id in other.checked else node.after
            build.nodes[task_id] = replace(node, name=f"{other.file.spec.name}: {node.name}", after=after)
            build.adopted.add(task_id)


def _needed(facts: Mapping[str, ModelFacts], needed: set[str]) -> dict[str, ModelFacts]:
    return {model: found for model, found in facts.items() if model in needed}
