"""Layer mappings, orders and plans against tables written by hand from the papers' facts."""

import pytest

from boomspec.core.layers import (
    ORDERS,
    KeepRule,
    Layer,
    blocks,
    check_kept,
    evenly_spaced,
    family_of_sets,
    layers_text,
    patchable,
    prefixes,
    read_layers,
    student_layers,
    teacher_indices,
)
from boomspec.core.tasks import Interpolate
from tests.messages import wording

QWEN3_4B = (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 35)


@pytest.mark.parametrize(
    ("rule", "layers", "kept_count", "patchable_count"),
    [
        (KeepRule(every=2, first=1, last=2), 36, 19, 17),  # Qwen3-4B: 17 patchable blocks
        (KeepRule(every=2, first=1, last=2), 32, 17, 15),  # Pythia-2.8B
        (KeepRule(every=2, first=2, last=1), 28, 15, 13),  # Llama-3.2-3B: the first two layers are kept
    ],
)
def test_the_published_rules_keep_as_many_layers_as_published(rule, layers, kept_count, patchable_count):
    kept = rule.kept(layers)
    assert len(kept) == kept_count
    assert len(patchable(kept, layers)) == patchable_count


def test_qwen3_4b_cuts_every_odd_layer_up_to_33():
    kept = KeepRule(every=2, first=1, last=2).kept(36)
    assert kept == QWEN3_4B
    assert [i for i in range(36) if i not in kept] == list(range(1, 34, 2))


def test_keeping_every_third_layer_makes_blocks_of_three():
    kept = KeepRule(every=3, first=1, last=1).kept(13)
    assert kept == (0, 3, 6, 9, 12)
    assert [len(block) for block in blocks(kept, 13)] == [3, 3, 3, 3, 1]


def test_a_count_spaces_layers_evenly():
    assert evenly_spaced(4, 8) == (0, 2, 4, 6)
    assert evenly_spaced(3, 8) == (0, 2, 5)
    assert evenly_spaced(1, 8) == (0,)


@pytest.mark.parametrize(
    ("kept", "complaint"),
    [
        ((0, 2, 2), "strictly increasing"),
        ((1, 2), wording("layers.layer_must_kept")),
        ((), wording("layers.layer_must_kept")),
        ((0, 8), wording("layers.layer_does_not_exist")),
        (tuple(range(8)), wording("layers.student_would_teacher")),
    ],
)
def test_impossible_mappings_are_named(kept, complaint):
    wrong = check_kept(kept, 8)
    assert wrong is not None
    assert complaint in wrong[0]


@pytest.mark.parametrize(
    ("kept", "item"),
    [((0, 2, 9), 2), ((0, -1, 9), 1), ((0, 2, 2), 2), ((2, 0), 1), ((1, 2), None), ((0, 2, 4), None), ((), None)],
)
def test_the_item_that_is_wrong_is_known(kept, item):
    assert (check_kept(kept, 8) or ("", None))[1] == item


def test_last_to_first_patches_the_last_block_first():
    kept = (0, 2, 4, 6)
    order = ORDERS["last_to_first"](patchable(kept, 8))
    assert order == (3, 2, 1, 0)
    assert family_of_sets(kept, 8, prefixes(order)) == [
        read_layers("s0 s1 s2 s3"),
        read_layers("s0 s1 s2 t6 t7"),
        read_layers("s0 s1 t4 t5 t6 t7"),
        read_layers("s0 t2 t3 t4 t5 t6 t7"),
        read_layers("t0 t1 t2 t3 t4 t5 t6 t7"),
    ]


def test_first_to_last_patches_the_first_block_first():
    kept = (0, 2, 4, 6)
    order = ORDERS["first_to_last"](patchable(kept, 8))
    assert family_of_sets(kept, 8, prefixes(order))[1] == read_layers("t0 t1 s1 s2 s3")


def test_singletons_stay_the_students_until_all_is_patched():
    kept = (0, 1, 3, 5)  # blocks 0 | 1 2 | 3 4 | 5
    plans = family_of_sets(kept, 6, prefixes((2, 1)))
    assert plans[0] == read_layers("s0 s1 s2 s3")
    assert plans[1] == read_layers("s0 s1 t3 t4 s3")
    assert plans[2] == read_layers("t0 t1 t2 t3 t4 t5")


def test_by_the_reference_rule_singletons_at_the_growing_end_are_the_teachers_even_unpatched():
    kept = (0, 1, 3, 5)
    assert family_of_sets(kept, 6, prefixes((2, 1)), reference="last") == [
        read_layers("s0 s1 s2 t5"),
        read_layers("s0 s1 t3 t4 t5"),
        read_layers("t0 t1 t2 t3 t4 t5"),
    ]
    assert family_of_sets(kept, 6, prefixes((1, 2)), reference="first") == [
        read_layers("t0 s1 s2 s3"),
        read_layers("t0 t1 t2 s2 s3"),
        read_layers("t0 t1 t2 t3 t4 t5"),
    ]


def test_qwen3_4b_by_the_reference_rule():
    order = ORDERS["last_to_first"](patchable(QWEN3_4B, 36))
    plans = family_of_sets(QWEN3_4B, 36, prefixes(order), reference="last")
    assert [len(plan) for plan in plans] == list(range(19, 37))
    # Blocks 17 and 18 are the singletons 34 and 35: the teacher's although nothing is patched.
    assert plans[0] == (*student_layers(17), *read_layers("t34 t35"))
    assert plans[1] == (*student_layers(16), *read_layers("t32 t33 t34 t35"))


def test_naive_pruning_has_the_same_plan_with_the_layers_the_student_started_from():
    assert teacher_indices(read_layers("s0 s1 t4 t5 t6 t7"), (0, 2, 4, 6)) == [0, 2, 4, 5, 6, 7]


def test_a_layer_is_written_and_read_as_its_owners_letter_and_its_index():
    plan = read_layers("s0 t12")
    assert plan == (Layer("s", 0), Layer("t", 12))
    assert layers_text(plan) == "s0 t12"
    record = Interpolate(plan=["s0", "t12"], tied=False)
    assert record.plan == plan
    assert record.model_dump(mode="json", exclude_none=True) == {"plan": ["s0", "t12"], "tied": False}
    assert sorted(read_layers("t10 t9 s3")) == list(read_layers("s3 t9 t10"))


@pytest.mark.parametrize("text", ["", "4", "x4", "t", "t-1", "t4.0", "T4", " t4"])
def test_what_is_no_layer_is_an_error(text):
    with pytest.raises(ValueError, match=wording("layers.not_layer_teacher_layer")):
        Layer.read(text)
