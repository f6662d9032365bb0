"""Which field forces which task is found by compiling: every field that changes a task is named for it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from boomspec.compile.compiler import Compiled
from boomspec.core.losses import LOSSES
from boomspec.plan.changes import Changes, compare
from boomspec.plan.origins import side
from boomspec.spec.sections.asking import AskingSpec
from boomspec.spec.sections.baselines import BaselineItem
from boomspec.spec.sections.evaluation import TaskSpec
from boomspec.spec.spec_file import Spec
from tests.boomspec.conftest import Writer
from tests.boomspec.edits import TABLE, Edit, Folder

# Of the language and how a spec is composed, and of `boomspec verify`: no task has them.
NOWHERE = {
    ("boomspec",),
    ("extends",),
    ("variants",),
    ("sweep",),
    ("determinism", "tolerance"),
    ("interpolate", "choose"),
}
# Of specs with several texts: see test_blends.py.
OF_SOURCES = ("sources", "blend")
# Of models and data sets of the hub, and of rows; the edits of test_edits.py have the same fields of text files.
OF_THE_HUB = {
    ("evaluate", "backend"),  # for tasks that generate text, on GPUs: see tests/runners/test_vllm.py
    *(("teacher", name) for name in ("model", "revision", "trust_remote_code", "rest")),
    *(("student", name) for name in ("model", "revision", "trust_remote_code")),
    *(("student", "transfer", role, name) for role in ("from_", "base") for name in ("model", "revision")),
    *(("data", name) for name in ("dataset", "config", "split", "revision", "format", "corpus", "text_field")),
    # Of rows that are conversations: see test_chat_specs.py.
    *(("data", name) for name in ("messages", "tools", "prompt", "response", "chat_template", "loss_on")),
    ("interpolate", "singletons"),  # for blocks of one layer
    ("distill", "faithful", "kl_on_padding"),  # goes with padding
    # Goes with losses of logits alone: see below.
    *(("distill", "teacher_outputs", name) for name in ("top_k", "samples", "temperature")),
}
MORE = {  # fields that no edit of the table has
    "teacher.pretrain.batch_tokens": 512,
    "teacher.pretrain.optimizer.betas": [0.9, 0.99],
    "teacher.pretrain.optimizer.eps": 1e-7,
    "teacher.pretrain.optimizer.weight_decay": 0.3,
    "teacher.pretrain.optimizer.clip": 2.0,
    "teacher.pretrain.schedule.kind": "linear",
    "teacher.pretrain.schedule.warmup": "50%",
    "teacher.pretrain.schedule.final": 0.5,
    "teacher.pretrain.precision": "fp32",
    "teacher.pretrain.attention_heads": 4,
    "teacher.pretrain.key_value_heads": 1,
    "distill.optimizer.lr": 1e-3,
    "distill.optimizer.betas": [0.9, 0.99],
    "distill.optimizer.eps": 1e-7,
    "distill.optimizer.clip": 2.0,
    "distill.schedule.final": 0.5,
    "distill.faithful.summed_micro_batches": 2,
    "distill.losses.cross_entropy.weight": 2.0,
    "distill.losses.hidden_cosine.weight": 1.0,
    "distill.losses.hidden_cosine.embedding": False,
    "distill.losses.hidden_cosine.pairs": [0],
    **{f"distill.losses.{kind}": {"weight": 2.0} for kind, loss in LOSSES.items() if not loss.usual},
    "distill.assistants": [{"keep": 5, "tokens": 512}],
    "distill.generations": 2,
    "distill.on_policy": {"share": 0.5, "prompt_tokens": 4},
    "distill.teachers": {"others": [{"seed": 3, "weight": 0.5}]},
    "distill.generated": {"tokens": 1024, "prompt_tokens": 4},
    "determinism.algorithms": "strict",
}
ALONE = {name: edit for name, edit in TABLE.items() if edit.own and edit.fields and edit.files is None}
BESIDE = {"evaluate.precision": "fp32", "determinism": {"tf32": True}}  # another field that differs


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


def changes(old: Compiled, new: Compiled) -> Changes:
    return compare(*(side(compiled, compiled.graph.experiments[0]) for compiled in (old, new)))


def fields(found: Changes, task: str) -> set[str]:
    return set(next(change.fields for change in found.tasks if change.name == task))


@pytest.mark.parametrize("edit", ALONE.values(), ids=ALONE)
def test_a_field_is_named_for_the_tasks_that_it_changes_when_others_differ_too(tmp_path, edit: Edit) -> None:
    folder = Folder(tmp_path)
    beside = {path: value for path, value in BESIDE.items() if not any(path in place for place in edit.fields)}
    found = changes(folder.compiled(), folder.edited(edit, Edit(beside, {})))
    by_name = {field.name: field for field in found.fields}
    changing = [name for name, kind in edit.says.items() if kind == "results"]
    for task in edit.own:
        assert any(task in by_name[name].tasks for name in changing) or not changing, task
    assert not any(task.some_of for task in found.tasks)


@pytest.mark.parametrize(("field", "value"), MORE.items(), ids=MORE)
def test_a_field_is_named_for_some_training(tmp_path, field: str, value: object) -> None:
    folder = Folder(tmp_path)
    found = changes(folder.compiled(), folder.edited(Edit({field: value, "evaluate.precision": "fp32"}, {})))
    tasks = next(one.tasks for one in found.fields if one.name == field)
    assert {"pretrain teacher" if field.startswith("teacher") else "distill student"} <= set(tasks)


def test_these_are_all_fields_of_the_language() -> None:
    said = {tuple(name.split(".")) for edit in TABLE.values() for name in edit.says} | {
        tuple(name.split(".")) for name in MORE
    }
    outside = {path for path in leaves(Spec) if path[0] == "execution" or path in NOWHERE | OF_THE_HUB}
    outside |= {path for path in leaves(Spec) if path[0] == "data" and path[1] in OF_SOURCES}
    asked = {("evaluate", "tasks", name) for name in TaskSpec.model_fields}  # below the names of lm-eval tasks
    ways = [("evaluate", *above, name) for above in ((), ("tasks",)) for name in AskingSpec.model_fields]
    asked |= {path for path in leaves(Spec) for way in ways if path[: len(way)] == way}  # see test_asking.py
    lost = {
        path
        for path in set(leaves(Spec)) - outside - asked
        if path[0] != "baselines"
        and not any(path[: len(place)] == place or place[: len(path)] == path for place in said)
    }
    assert lost == set()
    kinds = {place[1] for place in said if place[0] == "baselines" and len(place) > 1}
    elsewhere = {"shortgpt", "standard_distillation", "contiguous_drop", "linear_patch", "cross_patching"}
    assert set(BaselineItem.model_fields) - kinds == elsewhere  # see test_searches.py and test_dropping.py


def test_what_is_stored_of_a_teacher_is_named_for_what_stores_it_and_for_who_reads_it(specs: Writer) -> None:
    alone, beside = ("distill.losses.hidden_cosine", None), ("evaluate.precision", "fp32")
    old = specs.edited(alone, ("distill.teacher_outputs", {"samples": 8}))
    found = changes(old, specs.edited(alone, beside, ("distill.teacher_outputs", {"samples": 8, "temperature": 1.2})))
    for task in ("teacher outputs", "distill student"):
        assert fields(found, task) == {"distill.teacher_outputs.temperature"}
    found = changes(old, specs.edited(alone, beside, ("distill.teacher_outputs", {"top_k": 8})))
    assert fields(found, "teacher outputs") >= {"distill.teacher_outputs.top_k"}
    found = changes(specs.edited(alone), specs.edited(alone, beside, ("distill.teacher_outputs", {"top_k": 8})))
    assert fields(found, "distill student") == {"distill.teacher_outputs"}
    assert {task.name for task in found.of("added")} == {"teacher outputs"}


def test_fields_that_make_one_parameter_are_each_named(specs: Writer) -> None:
    found = changes(specs.compiled(), specs.edited(("distill.tokens", 4096), ("distill.batch_tokens", 512)))
    assert fields(found, "distill student") == {"distill.tokens", "distill.batch_tokens"}


def test_a_field_that_a_default_is_taken_from_is_named_for_what_has_the_default(specs: Writer) -> None:
    found = changes(specs.compiled(), specs.edited(("distill.tokens", 4096), ("evaluate.precision", "fp32")))
    assert fields(found, "distill random_init") == {"distill.tokens"}


def test_fields_that_compile_only_together_are_changed_together(specs: Writer) -> None:
    old = specs.edited(("data.held_out", None), ("evaluate", None))
    found = changes(old, specs.edited(("distill.precision", "fp32")))
    assert fields(found, "tokenize") == {"data.held_out"}  # beside it `evaluate` is taken away, which changes no tokens
    assert fields(found, "evaluate student: held_out") >= {"evaluate"}
    assert fields(found, "distill student") == {"data.held_out", "distill.precision"}


def test_a_task_that_only_several_fields_change_together_names_the_set(specs: Writer) -> None:
    """Rows of the cells: a batch and tokens that make another number of steps only together."""
    old = specs.edited(("distill.tokens", 2047), ("distill.batch_tokens", 256))
    new = specs.edited(("distill.tokens", 2303), ("distill.batch_tokens", 287))
    for found in (changes(old, new), changes(new, old)):
        assert all(task.fields and not task.some_of for task in found.of("changed"))


def test_a_field_that_is_of_no_use_beside_others_hinders_nothing(specs: Writer) -> None:
    """A constant schedule has no final rate, and a meaning has one all the same."""
    constant = ("distill.schedule", {"kind": "constant"})
    old = specs.edited(constant)
    found = changes(old, specs.edited(constant, ("distill.losses.kl.weight", 0.2), ("evaluate.precision", "fp32")))
    assert fields(found, "distill student") == {"distill.losses.kl.weight"}
    linear = ("distill.schedule", {"kind": "linear", "final": 0.1})
    found = changes(old, specs.edited(linear, ("evaluate.precision", "fp32")))
    assert fields(found, "distill student") == {"distill.schedule.kind", "distill.schedule.final"}
    assert fields(found, "evaluate teacher: held_out") == {"evaluate.precision"}


def test_what_is_no_field_is_named_beside_fields(specs: Writer) -> None:
    old = specs.compiled()
    (specs.folder / "3.txt").write_text("other text")
    found = changes(old, specs.edited(("distill.losses.kl.weight", 0.2)))
    assert fields(found, "tokenize") == {"sources.data"}
    assert fields(found, "distill student") == {"distill.losses.kl.weight", "sources.data"}


def test_where_neither_side_can_be_compiled_some_of_the_fields_are_named(specs: Writer) -> None:
    old = specs.compiled()
    new = specs.edited(("distill.losses.kl.weight", 0.2), ("distill.batch_tokens", 512), ("seed", 3))
    read = [replace(compiled, files=()) for compiled in (old, new)]  # as a graph file is
    found = {task.name: task for task in changes(*read).tasks}
    assert found["distill student"].some_of
    assert set(found["distill student"].fields) >= {"distill.losses.kl.weight", "seed"}
    single = [replace(old, files=()), replace(specs.edited(("seed", 3)), files=())]
    assert not any(task.some_of for task in changes(*single).tasks)


def test_a_value_of_another_folder_or_format_is_compiled_as_the_other_side_has_it(specs: Writer) -> None:
    """Either side may be the one that is compiled again; the fields are the same."""
    edits = ("student.keep", {"every": 3}), ("interpolate", {"order": "first_to_last"}), ("evaluate.precision", "fp32")
    old, new = specs.compiled(), specs.edited(*edits)
    forwards, backwards = changes(old, replace(new, files=())), changes(replace(old, files=()), new)
    for found in (forwards, backwards):
        assert fields(found, "distill student") == {"student.keep"}
        assert "evaluate.precision" in fields(found, "evaluate teacher: held_out")


def test_another_version_of_a_kind_is_no_field(specs: Writer) -> None:
    compiled = specs.compiled()
    new = side(compiled, compiled.graph.experiments[0])

    def older(task_id: str) -> dict[str, Any]:
        entry = new.entry(task_id.removeprefix("old"))
        inputs = {role: f"old{i}" if i in new.by_id else i for role, i in entry["inputs"].items()}
        return {**entry, "version": 0, "inputs": inputs}

    old = replace(new, names={name: f"old{i}" for name, i in new.names.items()}, entry=older, compiled=None)
    for found in (compare(old, new), compare(new, old)):
        assert all([d.name for d in task.own] == ["version"] and not task.fields for task in found.of("changed"))
        assert len(found.of("changed")) == len(new.names)
