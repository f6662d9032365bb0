"""Canonical JSON refuses what has no canonical form, and equal values give equal text."""

import pytest

from boomspec.core.identity import canonical_json, canonical_texts, digest


def test_key_order_and_containers_do_not_matter():
    assert canonical_json({"b": (1, 2.5), "a": "ä"}) == '{"a":"\\u00e4","b":[1,2.5]}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_negative_zero_is_zero_but_an_integer_is_not_a_float():
    assert canonical_json(-0.0) == canonical_json(0.0)
    assert canonical_json(1) != canonical_json(1.0)


@pytest.mark.parametrize("value", [{1: 2}, {1, 2}, b"x", object(), 1j])
def test_values_without_a_canonical_form_are_refused(value):
    with pytest.raises(TypeError):
        canonical_json({"x": [value]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_cannot_write_are_refused_with_their_place(value):
    with pytest.raises(ValueError, match=r"\$\.x\[0\]"):
        canonical_json({"x": [value]})


def test_an_object_of_texts_has_the_same_text_by_the_short_way():
    for texts in ({}, {"b": "2", "a": 'ä\n"\\'}, {"teacher 80%/held_out": "x", "é": "-0.0"}):
        assert canonical_texts(texts) == canonical_json(texts)
