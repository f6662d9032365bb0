"""Baselines that drop a run of layers, and that patch another student: their graphs, and what is refused."""

from typing import Any

import pytest

from boomspec.compile.compiler import Compiled
from boomspec.core.errors import SpecError
from boomspec.core.layers import layers_text
from boomspec.core.tasks import Baseline, Distill, Interpolate, RunDistances, Seam, Search
from tests.boomspec.conftest import Writer
from tests.messages import wording

LAYERS = 6


def distances(*best: int) -> list[list[float]]:
    """For runs of 1, 2, ... layers, of which the one that begins at best[0], best[1], ... is the smallest."""
    found = [[float(1 + start) for start in range(LAYERS - length + 1)] for length in range(1, LAYERS)]
    for length, start in enumerate(best):
        found[length][start] = 0.1
    return found


def answered(specs: Writer, *baselines: Any, angular: Any = (), influence: Any = (), edits: Any = ()) -> Compiled:
    wanted = ("baselines", list(baselines)), *edits
    found = {"angular_distance": distances(*angular), "block_influence": distances(*influence)}
    for node in specs.edited(*wanted).graph.nodes.values():
        if isinstance(node.task.record, Search):
            specs.found[node.id] = found
    return specs.edited(*wanted)


def records(compiled: Compiled) -> dict[str, Any]:
    return {node.name: node.task.record for node in compiled.graph.nodes.values()}


def series(compiled: Compiled) -> dict[str, list[int]]:
    """The numbers of layers of the models of each series."""
    found: dict[str, list[int]] = {}
    for cell in records(compiled)["report"].cells:
        found.setdefault(cell.series, []).append(cell.layers)
    return found


def test_the_run_that_changes_the_state_least_is_dropped_at_each_size(specs: Writer) -> None:
    compiled = answered(specs, "contiguous_drop", angular=(4, 2, 3))
    found = records(compiled)
    plans = {name: layers_text(r.build.plan) for name, r in found.items() if isinstance(r, Baseline)}
    assert plans == {
        "drop a run to 5 layers": "t0 t1 t2 t3 t5",
        "drop a run to 4 layers": "t0 t1 t4 t5",
        "drop a run to 3 layers": "t0 t1 t2",
    }
    distilled = [r for name, r in found.items() if name.startswith("distill contiguous_drop")]
    assert [record.kept for record in distilled] == [(0, 1, 2), (0, 1, 4, 5), (0, 1, 2, 3, 5)]
    student = found["distill student"]
    for record in distilled:
        assert set(record.losses.terms()) == {"kl"}
        assert (record.recipe, record.losses.kl.weight) == (student.recipe, 1.0)
    assert series(compiled)["contiguous_drop"] == series(compiled)["contiguous_distilled"] == [3, 4, 5]


def test_layer_0_is_never_dropped(specs: Writer) -> None:
    """Without an answer that prefers another run, the lowest one but the first is."""
    compiled = answered(specs, {"contiguous_drop": {"distilled": False}}, angular=(0, 0, 0))
    plans = [layers_text(r.build.plan) for r in records(compiled).values() if isinstance(r, Baseline)]
    assert plans == ["t0 t4 t5", "t0 t3 t4 t5", "t0 t2 t3 t4 t5"]
    assert not any(name.startswith("distill contiguous") for name in records(compiled))
    assert "contiguous_distilled" not in series(compiled)


def test_block_influence_and_the_last_positions_may_choose(specs: Writer) -> None:
    item = {"contiguous_drop": {"by": "block_influence", "positions": "last", "tokens": 4096}}
    found = records(answered(specs, item, angular=(1, 1, 1), influence=(5, 4, 3)))
    assert layers_text(found["drop a run to 5 layers"].build.plan) == "t0 t1 t2 t3 t4"
    assert found["measure runs of layers"].choice == RunDistances(positions="last")
    assert found["distill contiguous_drop 5 layers"].recipe.tokens == 4096


def test_until_runs_are_measured_the_graph_ends_at_the_search(specs: Writer) -> None:
    compiled = specs.edited(("baselines", ["contiguous_drop", "linear_patch"]))
    assert compiled.pending == ("measure runs of layers",)  # once for both


def test_a_gap_is_mended_in_front_of_it(specs: Writer) -> None:
    found = records(answered(specs, {"linear_patch": {"fit": "channels", "ridge": 0.1}}, angular=(4, 4, 2)))
    # The run that ends at the last layer leaves no gap: the next best is taken.
    assert layers_text(found["drop an inner run to 4 layers"].build.plan) == "t0 t3 t4 t5"
    assert layers_text(found["drop an inner run to 5 layers"].build.plan) == "t0 t1 t2 t3 t5"
    seam, size = found["fit seams: linear_patch 5 layers"], found["patch to 5 layers linear_patch"]
    assert isinstance(seam, Seam)
    assert isinstance(size, Interpolate)
    assert layers_text(seam.plan) == layers_text(size.plan) == "s0 s1 s2 s3 t5"
    assert (seam.kept, seam.places, seam.fit, seam.ridge) == ((0, 1, 2, 3, 5), (3,), "channels", 0.1)
    assert size.tied


def test_another_students_layers_stand_where_the_teachers_are(specs: Writer) -> None:
    compiled = specs.edited(("baselines", ["cross_patching"]))
    found = records(compiled)
    own, other = found["distill student"], found["distill cross_patching"]
    assert isinstance(other, Distill)
    assert (own.recipe.seed, other.recipe.seed) == (0, 1)
    assert other.model_copy(update={"recipe": own.recipe}) == own
    plans = {name: layers_text(r.plan) for name, r in found.items() if name.startswith("patch another")}
    assert plans == {  # last to first
        "patch another student as 4 layers": "s0 s1 t2",
        "patch another student as 5 layers": "s0 t1 t2",
    }
    nodes = {node.name: node for node in compiled.graph.nodes.values()}
    inputs = nodes["patch another student as 4 layers"].task.inputs
    assert inputs == {"teacher": nodes["distill cross_patching"].id, "student": nodes["distill student"].id}
    # Their embeddings differ, so they are untied, which is a matrix more.
    cells = [cell for cell in found["report"].cells if cell.series in ("cross_patching", "student")]
    assert [cell.layers for cell in cells] == [3, 3, 3, 3]
    assert [cell.parameters - cells[0].parameters for cell in cells] == [0, 300 * 16, 300 * 16, 0]
    assert "cross_patching" in found["report"].trainings


def test_the_other_student_has_a_seed_of_its_own(specs: Writer) -> None:
    named = {"cross_patching": {"seed": 7, "tokens": 4096}}
    other = records(specs.edited(("baselines", [named])))["distill cross_patching"]
    assert (other.recipe.seed, other.recipe.tokens) == (7, 4096)
    random = {"cross_patching": {"seed": 0, "initial": "random"}}
    assert records(specs.edited(("baselines", [random])))["distill cross_patching"].initial == "random"
    by_default = records(specs.edited(("baselines", ["cross_patching"]), ("seed", 4)))
    assert by_default["distill cross_patching"].recipe.seed == 5


def test_another_student_of_blocks_is_trained_in_blocks(specs: Writer) -> None:
    edits = ("distill.losses", {"hidden_nmse": {}}), ("distill.blockwise", {})
    found = records(specs.edited(("baselines", ["cross_patching"]), *edits))
    assert found["distill layers 0 to 1 of cross_patching"].recipe.seed == 1
    assert found["states before layer 2 of cross_patching"].seed == 1


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([("baselines", [{"cross_patching": {"seed": 0}}])], wording("dropping.seed_of_itself")),
        ([("baselines", [{"contiguous_drop": {"distilled": False, "tokens": 4096}}])], wording("dropping.tokens")),
        ([("baselines", [{"contiguous_drop": {"tokens": 64}}])], wording("dropping.less_than_one_step")),
        ([("baselines", [{"linear_patch": {"fit": "scale"}}])], wording("dropping.fit_scale")),
    ],
)
def test_what_makes_no_baseline_is_refused(specs: Writer, edits: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        specs.edited(*edits)
    assert message in str(caught.value)
