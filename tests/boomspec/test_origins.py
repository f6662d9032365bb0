"""Every parameter of a task comes from fields of the spec, and every field of the spec goes somewhere."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from boomspec.core.tasks import KINDS
from boomspec.plan.origins import known_fields, origins, presence, touches
from boomspec.spec.sections.baselines import BaselineItem
from boomspec.spec.sections.evaluation import TaskSpec
from boomspec.spec.spec_file import Spec

NAMES = {  # of tasks of each kind, as the compiler gives them
    "dequantize": ["dequantize teacher", "dequantize student"],
    "tokenize": ["tokenize"],
    "pretrain": ["pretrain teacher"],
    "check": ["check the family"],
    "distill": ["distill student", "distill random_init", "distill standard_distillation 5 layers"],
    "search": ["search layers by block_influence", "search patch order by beam", "score layers for shortgpt"],
    "interpolate": ["interpolate 5 layers", "interpolate 5 layers random_init"],
    "baseline": ["prune to 5 layers", "shortgpt to 5 layers", "laco to 5 layers"],
    "evaluate": ["evaluate student: held_out", "evaluate naive_pruning 5 layers: arc_easy"],
    "report": ["report"],
    "comparison": ["comparison"],
}
INPUTS = {
    "dequantize": ["model"],
    "tokenize": ["text", "held_out", "tokenizer"],
    "distill": ["teacher"],
    "search": ["teacher", "student"],
    "interpolate": ["teacher", "student"],
    "baseline": ["teacher"],
    "evaluate": ["model", "tasks"],
}
# Of the language and how a spec is composed, of the artifacts' names, of `boomspec verify`: no task knows them.
NOWHERE = {("boomspec",), ("extends",), ("variants",), ("sweep",), ("name",), ("determinism", "tolerance")}


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type, through unions and containers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models(argument)


def leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all fields of a model that have no fields of their own."""
    for name, field in model.model_fields.items():
        inner = list(models(field.annotation))
        for one in inner:
            yield from leaves(one, (*path, name))
        if not inner:
            yield (*path, name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_an_origin(kind: str) -> None:
    fixed = {("choice", "type"), ("measure", "type"), ("build", "type")}  # they follow from the task's name
    # A list of models is one parameter.
    wanted = {path for path in leaves(KINDS[kind]) if path[0] not in ("cells", "experiments")} - fixed
    wanted |= {("inputs", role) for role in INPUTS.get(kind, ())}
    found = {path: set().union(*(origins(kind, name, path) for name in NAMES[kind])) for path in wanted}
    assert [path for path, fields in found.items() if not fields] == []


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_what_a_page_shows_has_an_origin(kind: str) -> None:
    assert all(origins(kind, kind, (field,)) for field in KINDS[kind].model_fields)


def test_every_origin_is_a_field_of_the_language_or_something_that_is_read() -> None:
    named = {path for path in leaves(Spec) if path[0] != "baselines"}
    named |= {("baselines", *path) for path in leaves(BaselineItem)} | {
        ("baselines", k) for k in BaselineItem.model_fields
    }
    named |= {("evaluate", "tasks", *path) for path in leaves(TaskSpec)}
    unknown = {
        field for field in known_fields() if field[0] != "sources" and not any(touches(field, path) for path in named)
    }
    assert unknown == set()


def test_every_field_of_the_language_goes_into_a_task_or_is_known_to_go_nowhere() -> None:
    lost = {
        path
        for path in leaves(Spec)
        if path[0] != "execution" and path not in NOWHERE and not any(touches(path, field) for field in known_fields())
    }
    assert lost == set()


def test_an_origin_keeps_the_rest_of_the_path() -> None:
    distill = "distill", "distill student"
    assert origins(*distill, ("losses", "kl", "temperature")) == {("distill", "losses", "kl", "temperature")}
    assert origins(*distill, ("recipe", "optimizer", "lr")) == {("distill", "optimizer", "lr")}
    pretrain = "pretrain", "pretrain teacher"
    assert origins(*pretrain, ("recipe", "optimizer", "lr")) == {("teacher", "pretrain", "optimizer", "lr")}
    assert origins(*pretrain, ("architecture", "vocabulary")) == {("teacher", "pretrain", "tokenizer", "vocabulary")}
    measure = origins("evaluate", "evaluate student: some.task", ("measure", "limit"))
    assert measure == {("evaluate", "tasks", "some.task", "limit")}


def test_a_control_is_there_because_of_its_own_baseline() -> None:
    assert ("baselines", "random_init") in presence("evaluate", "evaluate random_init 5 layers: held_out")
    assert ("baselines", "laco") not in presence("evaluate", "evaluate student: laco")
    assert presence("search", "score layers for shortgpt") == {("baselines", "shortgpt")}
