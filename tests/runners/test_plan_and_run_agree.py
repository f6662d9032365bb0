"""What a plan says is what the run then does, whatever the spec and whatever has happened to the store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from boomspec.core.graph import TaskGraph
from boomspec.plan.plan import plan_tasks
from boomspec.store import RECORD, FolderStore, Store
from tests.runners import small

pytestmark = pytest.mark.usefixtures("no_figures")

STATES = {"reuse": "reused", "run": "made", "unneeded": "unneeded", "blocked": "blocked"}
MET: set[str] = set()  # actions that a plan of an example has had
DAMAGES = ("delete", "truncate", "lose a file", "break the record", "change a byte")

SPECS = st.fixed_dictionaries(
    {
        "seed": st.sampled_from([0, 1]),
        "student": st.sampled_from([{"keep": [0, 2]}, {"keep": [0, 2], "train_embedding": False}]),
        "distill": st.sampled_from([{}, {"losses": {"kl": {"weight": 1.0}}}, {"tokens": 768}]),
        "interpolate": st.sampled_from(
            [{}, {"order": "first_to_last"}, {"order": {"search": "klpatch", "calibration": {"sequences": 2}}}]
        ),
        "baselines": st.lists(
            st.sampled_from(["naive_pruning", "random_init", "shortgpt", "laco"]), unique=True, max_size=2
        ),
        "evaluate": st.sampled_from([{}, {"held_out": {"max_tokens": 100}}, None]),
        "determinism": st.sampled_from([{}, {}, {"algorithms": "strict"}]),
        "variants": st.sampled_from([None, None, {"short": {"distill": {"tokens": 256}}}]),
        "sweep": st.sampled_from([None, None, {"distill.optimizer.lr": [1e-3, 1e-2]}]),
    }
)


@pytest.fixture(scope="module")
def folder(connected: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agree")
    small.write_texts(folder)
    return folder


# By kind: how one of its artifacts is damaged, and which one.
STATES_OF_THE_STORE = st.fixed_dictionaries(
    {
        "made": st.booleans(),
        "damages": st.dictionaries(
            st.sampled_from(["tokenize", "pretrain", "distill", "search", "interpolate", "evaluate", "report"]),
            st.tuples(st.sampled_from(DAMAGES), st.integers(0, 3)),
            max_size=4,
        ),
        "texts are gone": st.booleans(),
    }
)


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # every example changes the store: none can be repeated smaller
    suppress_health_check=list(HealthCheck),
)
@given(spec=SPECS, state=STATES_OF_THE_STORE)
@example(spec={}, state={"made": True, "damages": {}, "texts are gone": False})
@example(  # tokens that nothing needs are damaged and cannot be made again, while something runs
    spec={},
    state={"made": True, "damages": {"tokenize": ("truncate", 0), "report": ("delete", 0)}, "texts are gone": True},
)
@example(  # some of it can be made again, some cannot
    spec={},
    state={
        "made": True,
        "damages": {
            "tokenize": ("truncate", 0),
            "interpolate": ("lose a file", 0),
            "evaluate": ("delete", 0),
            "report": ("break the record", 0),
        },
        "texts are gone": True,
    },
)
@example(
    spec={"variants": {"short": {"distill": {"tokens": 256}}}},
    state={"made": False, "damages": {"distill": ("change a byte", 0)}, "texts are gone": False},
)
def test_plan_and_run_agree(folder: Path, spec: dict[str, Any], state: dict[str, Any]) -> None:
    """The examples share a store, so that each finds what others have left."""
    store = FolderStore(folder / "store")
    path = small.write_spec(folder, **spec)
    compiled = small.compiled(path, store)
    while compiled.pending:  # what a search finds leads to another graph: that of the search is run for itself
        agree(compiled.graph, store)
        compiled = small.compiled(path, store)
    graph = compiled.graph
    if state["made"]:
        agree(graph, store)
    for kind, (how, which) in state["damages"].items():
        there = [node for node in graph.nodes.values() if node.task.kind == kind and store.has(kind, node.id)]
        if there:
            damage(store.path(kind, there[which % len(there)].id), how)
    texts, elsewhere = folder / "texts", folder / "elsewhere"
    if state["texts are gone"]:
        texts.rename(elsewhere)
    try:
        agree(graph, store)
    finally:
        if elsewhere.exists():
            elsewhere.rename(texts)
    for node in graph.nodes.values():  # what was not needed may still be damaged
        if store.damage(node.task.kind, node.id, checksums=True) is not None:
            store.discard(node.task.kind, node.id)


def test_the_examples_have_met_everything_that_a_plan_can_say() -> None:
    """The examples are those of the test above."""
    assert set(STATES) == MET


def agree(graph: TaskGraph, store: Store) -> None:
    """Plan, run, and compare; then plan again."""
    plan = plan_tasks(graph, store, checksums=True)
    MET.update(action for action in STATES if plan.ids(action))
    before = small.artifacts(store)
    code = small.run(graph, store, "--verify")
    after = small.artifacts(store)

    assert code == (1 if plan.ids("blocked") else 0)
    tasks = small.status(graph, store)["tasks"]
    states = {i: task["state"] for i, task in tasks.items()}
    expected = {i: STATES[step.action] for i, step in plan.steps.items()}
    # A task whose inputs are made again may turn out to be made of the same as another one.
    same = {i for i in plan.work if tasks[i].get("same_as")}
    assert {i for i, step in plan.steps.items() if step.same_as} <= same
    assert states == expected | dict.fromkeys(same, "reused")
    happened = [(e["event"], e["task"]) for e in small.events(graph, store) if "task" in e and e["event"] != "note"]
    ends = [("task_reused" if i in same else "task_finished", i) for i in plan.work]
    assert sorted(happened) == sorted([("task_started", i) for i in plan.work] + ends)
    assert {i for i in after if after[i] != before.get(i)} == set(plan.work)
    assert before.keys() <= after.keys()

    again = plan_tasks(graph, store, checksums=True)
    assert again.work == []
    assert again.ids("blocked") == plan.ids("blocked")
    assert again.ids("unneeded") == plan.ids("unneeded")


def damage(folder: Path, how: str) -> None:
    """What may happen to an artifact."""
    largest = max((file for file in folder.rglob("*") if file.name != RECORD), key=lambda file: file.stat().st_size)
    match how:
        case "delete":
            shutil.rmtree(folder)
        case "truncate":
            largest.write_bytes(largest.read_bytes()[:-1])
        case "lose a file":
            largest.unlink()
        case "break the record":
            (folder / RECORD).write_text("{")
        case "change a byte":
            content = bytearray(largest.read_bytes())
            content[-1] ^= 1
            largest.write_bytes(bytes(content))
