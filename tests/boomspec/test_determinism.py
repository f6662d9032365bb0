"""The `determinism` section: what of it is part of which identities, and what is refused."""

import pytest

from boomspec.core.errors import SpecError
from boomspec.core.tasks import Baseline, LaCo
from boomspec.spec.experiments import load_spec

SEARCHED = [
    ("baselines", ["laco", "naive_pruning", "random_init", "standard_distillation"]),
    ("interpolate", {"order": {"search": "klpatch"}}),
]


def tasks(compiled) -> dict:
    return {node.name: node.task for node in compiled.graph.nodes.values()}


@pytest.mark.parametrize("section", [{}, {"algorithms": "deterministic", "tf32": False}, {"tolerance": 1e-3}])
def test_the_defaults_and_the_tolerance_are_in_no_identity(specs, section):
    assert specs.edited(("determinism", section)).graph.nodes.keys() == specs.edited().graph.nodes.keys()


@pytest.mark.parametrize("section", [{"algorithms": "any"}, {"algorithms": "strict"}, {"tf32": True}])
def test_kernels_are_in_the_identity_of_what_computes_with_them_and_of_what_is_made_from_it(specs, section):
    before, after = tasks(specs.edited(SEARCHED[0])), tasks(specs.edited(SEARCHED[0], ("determinism", section)))
    assert before.keys() == after.keys()
    assert {name for name in before if before[name].id == after[name].id} == {"tokenize"}
    written = {"algorithms": "deterministic", "tf32": False} | section
    for name, task in after.items():
        record = task.record.build if isinstance(task.record, Baseline) else task.record
        computes = task.kind in ("pretrain", "distill", "evaluate") or isinstance(record, LaCo)
        found = getattr(record, "determinism", None)
        assert (None if found is None else found.model_dump()) == (written if computes else None), name


def test_searches_compute_with_the_same_kernels(specs):
    before, after = tasks(specs.edited(SEARCHED[1])), tasks(specs.edited(SEARCHED[1], ("determinism.tf32", True)))
    (search,) = (name for name, task in after.items() if task.kind == "search")
    assert before[search].record.determinism is None
    assert after[search].record.determinism.tf32


def test_what_the_section_says_is_part_of_what_the_spec_means(specs):
    said = specs.edited(("determinism", {"tolerance": "1e-5"})).graph.experiments[0].meaning
    assert said["determinism"] == {"algorithms": "deterministic", "tf32": False, "tolerance": 1e-5}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{algorithms: fast}", "determinism.algorithms"),
        ("{tolerance: -1}", "determinism.tolerance"),
        ("{tf32: maybe}", "determinism.tf32"),
        ("{seed: 1}", "unknown key 'seed'"),
    ],
)
def test_what_is_not_a_setting_is_refused_with_its_place(specs, section, message):
    path = specs.text(f"{specs.SPEC}determinism: {section}\n")
    with pytest.raises(SpecError, match=message):
        load_spec(path)
