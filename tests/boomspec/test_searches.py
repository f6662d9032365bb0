"""Choices that need data: what depends on them comes into the graph, with integers, when the search has an answer."""

import pytest

from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import SpecError
from boomspec.core.layers import read_layers
from boomspec.core.tasks import Baseline, Distill, LayerChoice, PatchOrder, Search, Subset
from tests.messages import wording


def names(compiled) -> list[str]:
    return [node.name for node in compiled.graph.nodes.values()]


def only_search(compiled):
    (node,) = [node for node in compiled.graph.nodes.values() if isinstance(node.task.record, Search)]
    assert node.id in compiled.graph.targets
    assert compiled.pending == (node.name,)
    return node


BY_INFLUENCE = ("student.keep", {"block_influence": 3, "calibration": {"sequences": 4}})


def test_until_layers_are_found_the_graph_ends_at_the_search(specs):
    compiled = specs.edited(BY_INFLUENCE)
    assert compiled.pending == ("search layers by block_influence",)
    assert compiled.family is None
    choice = only_search(compiled).task.record.choice
    assert choice == LayerChoice(method="block_influence", count=3)
    assert names(compiled) == ["tokenize", "pretrain teacher", "search layers by block_influence"]


def test_found_layers_give_the_ids_that_the_list_itself_would_give(specs):
    search = only_search(specs.edited(BY_INFLUENCE)).id
    specs.found[search] = {"kept": [0, 2, 4], "scores": [0.0] * 6}
    found, written = specs.edited(BY_INFLUENCE), specs.edited(("student.keep", [0, 2, 4]))
    assert found.family.kept == (0, 2, 4)
    kinds = {node.id: node.task.kind for node in found.graph.nodes.values()}
    assert {i for i, kind in kinds.items() if kind not in ("search", "report")} == {
        node.id for node in written.graph.nodes.values() if node.task.kind != "report"
    }


def test_a_patch_order_is_searched_behind_the_distillation_and_before_the_sizes(specs):
    order = ("interpolate", {"order": {"search": "beam", "width": 2}})
    compiled = specs.edited(order)
    node = only_search(compiled)
    choice = node.task.record.choice
    assert isinstance(choice, PatchOrder)
    assert (choice.method, choice.width, choice.kept) == ("beam", 2, (0, 2, 4))
    assert "distill student" in names(compiled)
    assert not any(name.startswith("interpolate") for name in names(compiled))
    specs.found[node.id] = {"sets": [[], [1], [0, 2], [0, 1, 2]]}  # best sets need not be nested
    family = specs.edited(order).family
    assert [member.plan for member in family.members] == [
        read_layers("s0 s1 s2"),
        read_layers("s0 t2 t3 s2"),
        read_layers("t0 t1 s1 t4 t5"),
        read_layers("t0 t1 t2 t3 t4 t5"),
    ]


def test_shortgpt_drops_the_layers_of_least_influence(specs):
    compiled = specs.edited(("baselines", ["shortgpt"]))
    node = only_search(compiled)
    assert "distill student" in names(compiled)  # which does not wait for it
    assert not any("shortgpt to" in name for name in names(compiled))
    specs.found[node.id] = {"kept": [0, 3, 5], "scores": [0.9, 0.1, 0.1, 0.8, 0.3, 0.7]}
    compiled = specs.edited(("baselines", ["shortgpt"]))
    plans = [
        node.task.record.build.plan
        for node in compiled.graph.nodes.values()
        if isinstance(node.task.record, Baseline) and isinstance(node.task.record.build, Subset)
    ]
    assert plans == [read_layers("t0 t3 t5"), read_layers("t0 t3 t4 t5"), read_layers("t0 t1 t3 t4 t5")]


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (("baselines", ["shortgpt"]), {"kept": [0, 3, 5], "scores": [0.9, 0.1, 0.1, 0.8, 0.3, 0.7]}),
        (BY_INFLUENCE, {"kept": [0, 2, 4], "scores": [0.0] * 6}),
        (("interpolate", {"order": {"search": "klpatch"}}), {"sets": [[], [2], [2, 0], [0, 1, 2]]}),
    ],
)
def test_what_follows_a_search_is_forecast_with_what_it_might_find(specs, edit, found):
    before = specs.edited(edit)
    guessed = compile_experiments(before.files, before.answers, guess=True).graph
    specs.found[only_search(before).id] = found
    after = specs.edited(edit).graph
    assert len(before.graph.nodes) < len(guessed.nodes)
    assert [node.name for node in guessed.nodes.values()] == [node.name for node in after.nodes.values()]
    flops = [sum(node.cost.flops for node in graph.nodes.values()) for graph in (guessed, after)]
    assert flops[0] == pytest.approx(flops[1], rel=0.02)


def test_standard_distillation_starts_each_size_from_the_layers_of_naive_pruning(specs):
    compiled = specs.edited(("baselines", ["naive_pruning", "standard_distillation"]))
    kept = [node.task.record.kept for node in compiled.graph.nodes.values() if isinstance(node.task.record, Distill)]
    assert kept == [(0, 2, 4), (0, 2, 4, 5), (0, 2, 3, 4, 5)]
    series = {
        cell.series
        for node in compiled.graph.nodes.values()
        if node.name == "report"
        for cell in node.task.record.cells
    }
    assert series == {"teacher", "student", "interpolated", "naive_pruning", "standard_distillation"}


def test_laco_is_asked_for_the_sizes_of_the_family(specs):
    compiled = specs.edited(("baselines", [{"laco": {"merge": 2, "threshold": 0.1}}]))
    layers = [n.task.record.build.layers for n in compiled.graph.nodes.values() if isinstance(n.task.record, Baseline)]
    assert layers == [3, 4, 5]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("student.keep", {"block_influence": 6}), wording("searches.layers_teacher_so_allowed")),
        (("student.keep", {"block_influence": 2, "cosine_greedy": 2}), wording("searches.exactly_one_block_influence")),
        (("interpolate", {"order": {"search": "exact", "width": 3}}), wording("searches.width_goes_search_beam")),
        (("interpolate", {"order": {"search": "greedy"}}), wording("searches.not_allowed", name="greedy")),
        (("student", {"keep": [0, 2], "model": "x/y", "train_embedding": True}), "train_embedding goes with"),
        (("student", {"model": "x/y"}), wording("searches.student_exists_not_distilled")),
    ],
)
def test_choices_that_cannot_be_are_errors_with_a_place(specs, edit, message):
    with pytest.raises(SpecError, match=message) as caught:
        specs.edited(edit)
    assert all(problem.line > 0 for problem in caught.value.problems)


def test_two_members_of_one_size_have_names_of_their_own(specs):
    order = ("interpolate", {"order": {"search": "exact"}})
    node = only_search(specs.edited(("teacher.pretrain.layers", 7), ("student.keep", [0, 3, 5]), order))
    specs.found[node.id] = {"sets": [[], [0], [1, 2], [0, 1, 2]]}  # 3 + 1 + 1 and 1 + 2 + 2 layers
    compiled = specs.edited(("teacher.pretrain.layers", 7), ("student.keep", [0, 3, 5]), order)
    assert [member.layers for member in compiled.family.members] == [3, 5, 5, 7]
    assert {"interpolate 5 layers, 1 patched", "interpolate 5 layers, 2 patched"} <= set(names(compiled))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            ("interpolate", {"order": {"search": "klpatch"}, "sizes": ["500 layers"]}),
            wording("searches.no_model_size_layers"),
        ),
        (("evaluate", {"tasks": ["arc_eazy"]}), wording("searches.lm_eval_knows_no", name="arc_eazy")),
        (("baselines", ["random_init", "random_init"]), "listed twice"),
    ],
)
def test_what_stands_behind_a_search_is_checked_before_it(specs, edit, message):
    with pytest.raises(SpecError, match=message):
        specs.edited(("interpolate", {"order": {"search": "klpatch"}}), edit)
