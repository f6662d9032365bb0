"""A table of edits: which tasks each of them invalidates, none falsely and none missed, and what `diff` says of it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from boomspec.compile.compiler import Compiled
from boomspec.plan.changes import compare, differences
from boomspec.spec.sections.training import DistillSpec, Training
from tests.boomspec.edits import COSMETIC, EXECUTION, NONE, RESULTS, TABLE, Edit, Folder

_SHOWS = {"report", "comparison"}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def ids(compiled: Compiled) -> dict[str, str]:
    return {node.name: node.id for node in compiled.graph.nodes.values()}


def behind(compiled: Compiled, names: set[str]) -> set[str]:
    """The named tasks and everything that needs them."""
    graph, dirty = compiled.graph, set()
    for node in graph.nodes.values():
        if node.name in names or any(i in dirty for i in graph.task_inputs(node.id)):
            dirty.add(node.id)
    return {graph.nodes[i].name for i in dirty}


@pytest.mark.parametrize("edit", TABLE.values(), ids=TABLE)
def test_an_edit_invalidates_exactly_its_tasks_and_diff_says_which_and_why(folder: Folder, edit: Edit) -> None:
    old = folder.compiled()
    new = folder.edited(edit)
    before, after = ids(old), ids(new)
    common = before.keys() & after.keys()
    assert {name for name in common if before[name] != after[name]} == behind(
        new, set(edit.own) | set(edit.added)
    ) - set(edit.added)
    assert after.keys() - before.keys() == set(edit.added)
    assert before.keys() - after.keys() == set(edit.removed)

    changes = compare(folder.side(old), folder.side(new))
    assert {field.name: field.kind for field in changes.fields} == edit.says
    assert all(field.exact for field in changes.fields)
    for state, names in (("added", edit.added), ("removed", edit.removed)):
        assert {task.name for task in changes.of(state)} == set(names)
    assert {task.name for task in changes.of("changed")} == {name for name in common if before[name] != after[name]}
    assert {task.name for task in changes.of("changed") if task.own} == set(edit.own)
    for task in changes.of("changed", "added", "removed"):
        assert set(task.fields) <= edit.says.keys()
        assert task.fields
    assert {name for field in changes.fields for name in field.tasks} >= set(edit.own)


def test_the_table_is_what_it_says() -> None:
    assert len(TABLE) == len(NONE) + len(COSMETIC) + len(EXECUTION) + len(RESULTS) >= 30
    assert all(not edit.says for edit in NONE.values())
    for edits, kind in ((COSMETIC, "cosmetic"), (EXECUTION, "execution"), (RESULTS, "results")):
        assert all(set(edit.says.values()) == {kind} for edit in edits.values())


# Two that no spec can have together: an order names the blocks of its mapping, and the other one has other blocks.
_AGAINST = {"the order written out", "another mapping"}
# What comes to the same with the layers that the teacher has, and not with others.
_AS_DEEP = {
    "a list as a rule", "a list as a count", "all sizes by name", "a way to choose that comes to the same",
    "the published rule where there are no singletons",
}  # fmt: skip
# Ways to train a student that exclude others.
_OF_A_WHOLE = DistillSpec.model_fields.keys() - Training.model_fields.keys() - {"blockwise", "losses"}
_WITHOUT = {
    "blockwise": {("distill", name) for name in _OF_A_WHOLE},
    "on_policy": {("distill", "balance")},
    "patch_aware": {("distill", name) for name in ("assistants", "generations", "on_policy", "teacher_outputs")},
    "phases": {("distill", "balance"), ("distill", "losses"), ("baselines",)},
}
_FIELDS_ALONE = [name for name, edit in TABLE.items() if not edit.text and edit.files is None]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(chosen=st.lists(st.sampled_from(_FIELDS_ALONE), min_size=2, max_size=5, unique=True))
def test_several_edits_at_once_leave_nothing_unexplained(tmp_path_factory, chosen: list[str]) -> None:
    edits = [TABLE[name] for name in chosen]
    places = [place for edit in edits for place in edit.fields]
    assume(len(set(places)) == len(places))  # else one edit would undo another
    assume(not any(a.startswith(f"{b}.") for a in places for b in places))
    assume(not set(chosen) >= _AGAINST)
    during = "the student measured while it is trained"  # blocks that are trained alone have no student before the end
    assume(not (during in chosen and any("trained alone" in one for one in chosen)))
    sections = {tuple(place.split(".")[:2]) for place in places}
    assume(not any(("distill", one) in sections and sections & others for one, others in _WITHOUT.items()))
    assume(not (_AS_DEEP & set(chosen) and {"a deeper teacher", "another mapping"} & set(chosen)))
    folder = Folder(tmp_path_factory.mktemp("edits"))
    old, new = folder.compiled(), folder.edited(*edits)
    before, after = ids(old), ids(new)
    changes = compare(folder.side(old), folder.side(new))
    assert {t.name for t in changes.of("changed")} == {n for n in before.keys() & after.keys() if before[n] != after[n]}
    assert {t.name for t in changes.of("added")} == after.keys() - before.keys()
    assert {t.name for t in changes.of("removed")} == before.keys() - after.keys()
    for task in changes.of("changed", "added", "removed"):
        assert task.fields, task
    numbers = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - {"report"}
    assert changes.changes_results == bool(numbers)
    said = {name for edit in edits for name in edit.says}
    assert {field.name for field in changes.fields} <= said


def test_a_comparison_backwards_swaps_old_and_new(folder: Folder) -> None:
    old, new = folder.compiled(), folder.edited(RESULTS["one task more"])
    forwards, backwards = (compare(folder.side(a), folder.side(b)) for a, b in ((old, new), (new, old)))
    assert {t.name for t in forwards.of("added")} == {t.name for t in backwards.of("removed")}
    assert [(d.old, d.new) for d in forwards.fields] == [(d.new, d.old) for d in backwards.fields]


def test_a_meaning_does_not_differ_from_itself(folder: Folder) -> None:
    said = folder.compiled().graph.experiments[0].meaning
    assert differences(said, said) == []
