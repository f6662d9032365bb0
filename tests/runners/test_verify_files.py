"""Two files that differ: where most, by how much, and whether a tolerance covers it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from runners.verify.compare import Apart, compare_files
from tests.messages import wording


def apart(folder: Path, name: str, one: Any, other: Any, *, tolerance: float = 0.0) -> Apart:
    files = folder / "original" / name, folder / "again" / name
    for file, content in zip(files, (one, other), strict=True):
        file.parent.mkdir(exist_ok=True)
        if isinstance(content, dict) and file.suffix == ".safetensors":
            save_file(content, file)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return compare_files(*files, tolerance)


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4), "n": torch.tensor([1, 2])} | changes


def test_the_tensor_and_the_value_that_differ_most_are_named(tmp_path: Path) -> None:
    other = tensors(a=torch.tensor([[0, 1, 2], [3, 4, 5.25]]), b=torch.tensor([1, 1, 1, 1.125]))
    found = apart(tmp_path, "m.safetensors", tensors(), other)
    assert (found.where, found.largest, found.within) == ("a", 0.25, False)
    assert found.what == wording("verify_files.largest_difference_values_differ")


@pytest.mark.parametrize(("tolerance", "within"), [(0.06, True), (0.04, False)])
def test_a_tolerance_is_relative_above_one_and_absolute_below(tmp_path: Path, tolerance: float, within: bool) -> None:
    other = tensors(a=torch.tensor([[0, 1, 2], [3, 4, 5.25]]))
    assert apart(tmp_path, "m.safetensors", tensors(), other, tolerance=tolerance).within is within
    small = tensors(b=torch.tensor([1, 1, 1, 0.95]))
    assert apart(tmp_path, "m.safetensors", tensors(), small, tolerance=tolerance).within is within


def test_integers_other_shapes_and_missing_tensors_are_within_no_tolerance(tmp_path: Path) -> None:
    found = apart(tmp_path, "m.safetensors", tensors(), tensors(n=torch.tensor([1, 3])), tolerance=10)
    assert not found.within
    assert "in n (2 -> 3)" in found.what
    found = apart(tmp_path, "m.safetensors", tensors(), tensors(a=torch.zeros(6)), tolerance=10)
    assert (found.within, found.what) == (False, "a: torch.float32 [2, 3] -> torch.float32 [6]")
    found = apart(tmp_path, "m.safetensors", tensors(), tensors(extra=torch.ones(1)), tolerance=10)
    assert (found.within, found.what) == (False, wording("verify_files.extra_only_repetition_tensor"))


def test_nan_is_nan_but_no_number_and_infinity_is_never_near(tmp_path: Path) -> None:
    odd = torch.tensor([math.nan, math.inf, 1, 1])
    same = apart(tmp_path, "m.safetensors", tensors(b=odd), tensors(b=odd, a=torch.zeros(2, 3)), tolerance=10)
    assert (same.where, same.largest, same.within) == ("a", 5.0, True)
    for change in ([0.0, math.inf, 1, 1], [math.nan, 5.0, 1, 1], [math.nan, math.inf, math.inf, 1]):
        found = apart(tmp_path, "m.safetensors", tensors(b=odd), tensors(b=torch.tensor(change)), tolerance=10)
        assert (found.where, found.within, found.largest) == ("b", False, math.inf), change
    found = apart(tmp_path, "r.json", '{"x": Infinity}', '{"x": 1.0}', tolerance=10)
    assert (found.where, found.within) == ("x", False)
    assert apart(tmp_path, "r.json", '{"x": NaN, "y": 1.0}', '{"x": NaN, "y": 1.5}', tolerance=1).within


def test_equal_values_in_other_bytes_are_said_to_be_that(tmp_path: Path) -> None:
    one, other = '{"x": 1.5}', '{ "x": 1.5 }'
    assert apart(tmp_path, "r.json", one, other) == Apart("the same values, written in other bytes", False)
    assert apart(tmp_path, "r.json", one, other, tolerance=1e-9).within


def test_json_is_compared_value_by_value(tmp_path: Path) -> None:
    one = {"results": {"task": {"acc": 0.5, "n": 7}}, "rows": [1.0, 2.0], "name": "x"}
    other = {"results": {"task": {"acc": 0.75, "n": 7}}, "rows": [1.0, 2.125], "name": "x"}
    found = apart(tmp_path, "r.json", json.dumps(one), json.dumps(other), tolerance=0.2)
    assert found.where == "results.task.acc"
    assert found.what == (wording("verify_files.largest_difference_results_task"))
    assert apart(tmp_path, "r.json", json.dumps(one), json.dumps(other), tolerance=0.25).within


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"n": 8, "s": "x", "l": [1]}, "n: 7 -> 8"),
        ({"n": 7, "s": "y", "l": [1]}, "s: 'x' -> 'y'"),
        ({"n": 7, "s": "x", "l": [1, 2]}, "l: 1 entries -> 2"),
        ({"n": 7, "s": "x"}, "l: only the original has this"),
        ({"n": True, "s": "x", "l": [1]}, "n: 7 -> True"),
    ],
)
def test_counts_texts_and_shapes_are_within_no_tolerance(tmp_path: Path, other: dict[str, Any], what: str) -> None:
    found = apart(tmp_path, "r.json", json.dumps({"n": 7, "s": "x", "l": [1]}), json.dumps(other), tolerance=10)
    assert found == Apart(what, False)


def test_lines_of_json_and_cells_of_a_table_are_named(tmp_path: Path) -> None:
    found = apart(tmp_path, "m.jsonl", '{"loss": 2.5}\n{"loss": 2.25}\n', '{"loss": 2.5}\n{"loss": 2.0}\n')
    assert (found.where, found.largest) == ("line 2.loss", 0.25)
    table = "measure,value,n\nheld_out,{},{}\n"
    found = apart(tmp_path, "t.csv", table.format(2.5, 3), table.format(2.75, 3), tolerance=0.5)
    assert (found.where, found.largest, found.within) == ("row 1.value", 0.25, True)
    assert not apart(tmp_path, "t.csv", table.format(2.5, 3), table.format(2.5, 4), tolerance=5).within
    found = apart(tmp_path, "t.csv", table.format(2.5, 3), table.format(2.5, 3) + "more,1,1\n", tolerance=5)
    assert (found.what, found.within) == (wording("verify_files.row_only_repetition"), False)


def test_of_other_files_and_of_broken_ones_the_first_byte_is_told(tmp_path: Path) -> None:
    found = apart(tmp_path, "train.bin", b"12345678", b"12345x78", tolerance=10)
    assert found == Apart("differs from byte 5 on", False)
    found = apart(tmp_path, "train.bin", b"1234", b"123456")
    assert found == Apart("differs from byte 4 on, and 4 bytes became 6", False)
    assert apart(tmp_path, "r.json", "{", "[", tolerance=10) == Apart("differs from byte 0 on", False)
    assert apart(tmp_path, "m.safetensors", tensors(), b"nothing").what.startswith(wording("verify_files.differs_byte"))
