"""How two files that should be the same differ: which value most, by how much, and whether a tolerance covers it.

Weights (safetensors), json, jsonl and csv are compared by their values; of any other file only the first byte that
differs is told. Two floating-point numbers a and b are within a tolerance t where |a - b| <= t * max(1, |a|). Whole
numbers, texts and what is missing are never within one.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

_CHUNK = 1 << 22  # values of a tensor, or bytes of a file, that are compared at a time
_SHOWN = 40  # characters of a text that differs


@dataclass(frozen=True)
class Apart:
    """How far two files are apart. `largest` and `where` are None where no two numbers could be compared."""

    what: str  # for people
    within: bool  # numbers differ, and all of them within the tolerance
    largest: float | None = None  # absolute difference
    where: str | None = None  # the tensor, the path in a json, the row and column of a csv

    @property
    def finite(self) -> bool:
        return self.largest is not None and math.isfinite(self.largest)


def compare_files(original: Path, again: Path, tolerance: float) -> Apart:
    """Say how two files differ whose bytes are known to. `tolerance` 0 covers nothing."""
    compare = _READERS.get(original.suffix)
    if compare is not None:
        tally = _Tally(tolerance)
        try:
            compare(original, again, tally)
        except (ValueError, OSError):
            return _bytes(original, again)  # one of them is not what its name says
        if tally.compared:
            return tally.result()
    return _bytes(original, again)


class _Tally:
    """What the comparison of two files has found so far."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.unit = "numbers"
        self.compared = 0
        self.different = 0
        self.outside = 0
        self.largest = 0.0
        self.where: str | None = None
        self.example = ""
        self.other = ""  # the first difference that is not one of numbers

    def number(self, where: str, a: float, b: float) -> None:
        apart = 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else abs(a - b)
        apart = math.inf if math.isnan(apart) else apart
        outside = int(math.isinf(apart) or apart > self.tolerance * max(1.0, abs(a)))
        self.numbers(where, 1, int(apart > 0), outside, apart, f"{a!r} -> {b!r}")

    def numbers(self, where: str, count: int, different: int, outside: int, largest: float, example: str) -> None:
        self.compared += count
        self.different += different
        self.outside += outside
        if largest > self.largest:
            self.largest, self.where, self.example = largest, where, example

    def exact(self, where: str, a: object, b: object) -> None:
        """Two values that must be equal."""
        self.compared += 1
        if a != b or type(a) is not type(b):
            self.differs(where, f"{_short(a)} -> {_short(b)}")

    def differs(self, where: str, what: str) -> None:
        self.other = self.other or f"{where}: {what}"

    def result(self) -> Apart:
        within = not self.other and not self.outside and self.tolerance > 0
        if not self.different:
            if not self.other:
                return Apart("the same values, written in other bytes", within)
            return Apart(self.other, False)
        numbers = (
            f"largest difference {self.largest:.3g} in {self.where} ({self.example}); "
            f"{self.different:,} of {self.compared:,} {self.unit} differ"
        )
        if self.tolerance and not within:
            numbers += f", {self.outside:,} by more than {self.tolerance:g}"
        return Apart(f"{self.other}; {numbers}" if self.other else numbers, within, self.largest, self.where)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _tensors(original: Path, again: Path, tally: _Tally) -> None:
    # Not at the top: seconds of import, and most verifications find no weights that differ.
    from safetensors import SafetensorError, safe_open

    tally.unit = "values"
    try:
        with safe_open(original, framework="pt") as one, safe_open(again, framework="pt") as other:
            names = [*one.keys(), *(name for name in other.keys() if name not in one.keys())]  # noqa: SIM118 - no dict
            for name in names:
                if name not in one.keys() or name not in other.keys():  # noqa: SIM118
                    has = "original" if name in one.keys() else "repetition"  # noqa: SIM118
                    tally.differs(name, f"only the {has} has this tensor")
                    continue
                _tensor(name, one.get_tensor(name), other.get_tensor(name), tally)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _tensor(name: str, one: Any, other: Any, tally: _Tally) -> None:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        tally.differs(name, f"{one.dtype} {list(one.shape)} -> {other.dtype} {list(other.shape)}")
        return
    tolerance = tally.tolerance if one.dtype.is_floating_point else 0.0
    for a, b in zip(one.flatten().split(_CHUNK), other.flatten().split(_CHUNK), strict=True):
        a, b = a.double(), b.double()
        if not len(a):
            continue
        same = (a == b) | (a.isnan() & b.isnan())
        apart = (a - b).abs().masked_fill(same, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
        covered = same | (apart.isfinite() & (apart <= tolerance * a.abs().clamp(min=1.0)))
        worst = int(apart.argmax())
        tally.numbers(
            name,
            count=len(apart),
            different=int((apart > 0).sum()),
            outside=int((~covered).sum()),
            largest=float(apart[worst]),
            example=f"{float(a[worst]):.6g} -> {float(b[worst]):.6g}",
        )


def _json(original: Path, again: Path, tally: _Tally) -> None:
    one, other = (json.loads(file.read_text(encoding="utf-8")) for file in (original, again))
    _walk("", one, other, tally)


def _json_lines(original: Path, again: Path, tally: _Tally) -> None:
    one, other = (file.read_text(encoding="utf-8").splitlines() for file in (original, again))
    if len(one) != len(other):
        tally.differs("lines", f"{len(one)} -> {len(other)}")
    for number, (a, b) in enumerate(zip(one, other, strict=False), 1):
        _walk(f"line {number}", json.loads(a), json.loads(b), tally)


def _walk(where: str, a: Any, b: Any, tally: _Tally) -> None:
    """Compare two JSON values; only numbers of which one is fractional may be apart."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            place = f"{where}.{key}".lstrip(".")
            if key in a and key in b:
                _walk(place, a[key], b[key], tally)
            else:
                tally.differs(place, f"only the {'original' if key in a else 'repetition'} has this")
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            tally.differs(where, f"{len(a)} entries -> {len(b)}")
        for i, (one, other) in enumerate(zip(a, b, strict=False)):
            _walk(f"{where}[{i}]", one, other, tally)
    elif _is_number(a) and _is_number(b) and float in (type(a), type(b)):
        tally.number(where, a, b)
    else:
        tally.exact(where, a, b)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _table(original: Path, again: Path, tally: _Tally) -> None:
    one, other = (list(csv.reader(_lines(file))) for file in (original, again))
    if len(one) != len(other):
        tally.differs("rows", f"{len(one)} -> {len(other)}")
    header = one[0] if one else []
    for number, (row, other_row) in enumerate(zip(one, other, strict=False)):
        for name, a, b in zip_longest(header, row, other_row, fillvalue=""):
            where = f"row {number}, {name}"
            numbers = _fraction(a), _fraction(b)
            if numbers[0] is not None and numbers[1] is not None and not (a.isdecimal() and b.isdecimal()):
                tally.number(where, numbers[0], numbers[1])
            else:
                tally.exact(where, a, b)


def _lines(file: Path) -> Iterable[str]:
    return file.read_text(encoding="utf-8").splitlines(keepends=True)


def _fraction(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bytes(original: Path, again: Path) -> Apart:
    offset = 0
    with original.open("rb") as one, again.open("rb") as other:
        while (a := one.read(_CHUNK)) == (b := other.read(_CHUNK)) and a:
            offset += len(a)
    offset += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    sizes = original.stat().st_size, again.stat().st_size
    lengths = f", and {sizes[0]:,} bytes became {sizes[1]:,}" if sizes[0] != sizes[1] else ""
    return Apart(f"differs from byte {offset:,} on{lengths}", False)


_READERS: dict[str, Callable[[Path, Path, _Tally], None]] = {
    ".safetensors": _tensors,
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _table,
}
