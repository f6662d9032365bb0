"""Compare an artifact with its repetition, file by file and value by value, and say what has changed around them.

In: the records of two artifacts of one task (`artifact.json`) and their folders. Out: a `Checked`. Files are the same
where the sha256 in the two records are: the original's files have been compared with its record before.

Weights (safetensors), json, jsonl and csv are compared by their values; of any other file only the first byte that
differs is reported. Two floating-point numbers a and b are within a tolerance t where |a - b| <= t * max(1, |a|). Whole
numbers, texts and what is missing are never within one.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from boomspec.core.graph import Node, TaskGraph
from boomspec.store import Store
from runners.runtime.tables import read_table

Verdict = Literal["identical", "within", "differs", "failed", "measured"]
_DRAWN = {".png", ".svg", ".pdf", ".html"}  # figures and pages: made from the numbers in the files beside them
_CHUNK = 1 << 22  # values of a tensor, or bytes of a file, that are compared at a time
_SHOWN = 40  # characters of a text that differs


@dataclass(frozen=True)
class Apart:
    """How far two files are apart. `largest` and `where` are None where no two numbers could be compared."""

    what: str  # for people
    within: bool  # numbers differ, and all of them within the tolerance
    largest: float | None = None  # absolute difference
    where: str | None = None  # the tensor, or the place in a json, jsonl or csv file


@dataclass(frozen=True)
class Checked:
    """What the repetition of one task has shown."""

    node: Node
    verdict: Verdict
    tolerance: float
    files: dict[str, Apart] = field(default_factory=dict)  # those that differ
    changes: tuple[str, ...] = ()  # of packages and hardware since the original was made
    error: str = ""  # why it could not be made again


def tolerance_of(graph: TaskGraph, task_id: str) -> float:
    """`determinism.tolerance` of the spec; of several experiments that share the task the smallest."""
    sharing = [e.meaning for e in graph.experiments if task_id in e.tasks.values()]
    return min((float(spec.get("determinism", {}).get("tolerance", 0.0)) for spec in sharing), default=0.0)


def compare(node: Node, original: Store, again: Store, tolerance: float, *, measured: bool = False) -> Checked:
    """Compare the artifacts of one task in two stores. Both must have it. `measured`: its numbers are of a machine."""
    key = node.task.kind, node.id
    one, other = original.record(*key), again.record(*key)
    assert one is not None
    assert other is not None
    digests, repeated = ({file["path"]: file["sha256"] for file in record["files"]} for record in (one, other))
    found: dict[str, Apart] = {}
    for path in {**digests, **repeated}:
        if path not in digests or path not in repeated:
            found[path] = Apart(f"only the {'original' if path in digests else 'repetition'} has this file", False)
        elif digests[path] != repeated[path]:
            found[path] = compare_files(original.fetch(*key) / path, again.fetch(*key) / path, tolerance)
    numbers = [apart for path, apart in found.items() if Path(path).suffix not in _DRAWN]
    if numbers and all(apart.within for apart in numbers):  # figures and pages are as good as the numbers they show
        drawn = [path for path in found if Path(path).suffix in _DRAWN]
        found |= dict.fromkeys(drawn, Apart("shows numbers that are within the tolerance", True))
    within = all(apart.within for apart in found.values())
    verdict: Verdict = ("within" if within else "differs") if found else "identical"
    if found and measured:
        verdict = "measured"
    return Checked(node, verdict, tolerance, found, changes(one["provenance"], other["provenance"]))


def changes(then: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """What may explain a difference: "torch 2.8.0 -> 2.9.1". From the provenance of two artifacts."""
    packages = sorted({**then.get("packages", {}), **now.get("packages", {})})

    def facts(made: dict[str, Any]) -> list[tuple[str, Any]]:
        versions, hardware = made.get("packages", {}), made.get("hardware", {})
        return [
            ("boomspec's commit", made.get("commit")),
            ("python", made.get("python")),
            *((name, versions.get(name)) for name in packages),
            *((name, hardware.get(name.lower())) for name in ("CPU", "CPUs", "GPUs")),
            ("platform", made.get("platform")),
        ]

    def shown(value: object) -> str:
        if isinstance(value, list):
            return ", ".join(map(str, value)) or "none"
        return "not recorded" if value is None else re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", str(value))

    pairs = zip(facts(then), facts(now), strict=True)
    return tuple(f"{name} {shown(a)} -> {shown(b)}" for (name, a), (_, b) in pairs if a != b)


def compare_files(original: Path, again: Path, tolerance: float) -> Apart:
    """Report how two files differ whose bytes are known to differ. `tolerance` 0 covers nothing."""
    tally = _Tally(tolerance)
    try:
        if original.suffix == ".safetensors":
            _compare_tensors(original, again, tally)
        elif original.suffix in (".json", ".jsonl", ".csv"):
            tally.compare("", _values(original), _values(again))
    except (ValueError, OSError):
        return _compare_bytes(original, again)  # one of them is not what its name says
    return tally.result() if tally.compared else _compare_bytes(original, again)


@dataclass
class _Tally:
    """What the comparison of two files has found so far."""

    tolerance: float
    unit: str = "numbers"
    compared: int = 0
    different: int = 0
    outside: int = 0
    largest: float = 0.0
    where: str | None = None
    example: str = ""
    other: str = ""  # the first difference that is not one of numbers

    def compare(self, where: str, a: Any, b: Any) -> None:
        """Compare two values of JSON; only numbers of which one is fractional may be apart."""
        kinds = {type(a), type(b)}
        if kinds == {dict}:
            for key in {**a, **b}:
                place = f"{where}.{key}".lstrip(".")
                if key in a and key in b:
                    self.compare(place, a[key], b[key])
                else:
                    self.differ(place, f"only the {'original' if key in a else 'repetition'} has this")
        elif kinds == {list}:
            if len(a) != len(b):
                self.differ(where, f"{len(a)} entries -> {len(b)}")
            for i, (one, other) in enumerate(zip(a, b, strict=False)):
                self.compare(f"{where}[{i}]", one, other)
        elif float in kinds and kinds <= {int, float}:
            apart = 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else abs(a - b)
            apart = math.inf if math.isnan(apart) else apart
            outside = math.isinf(apart) or apart > self.tolerance * max(1.0, abs(a))
            self.add(where, 1, int(apart > 0), int(outside), apart, f"{a!r} -> {b!r}")
        else:
            self.compared += 1
            if a != b or len(kinds) > 1:
                texts = [text if len(text) <= _SHOWN else text[:_SHOWN] + "..." for text in (repr(a), repr(b))]
                self.differ(where, " -> ".join(texts))

    def add(self, where: str, count: int, different: int, outside: int, largest: float, example: str) -> None:
        self.compared += count
        self.different += different
        self.outside += outside
        if largest > self.largest:
            self.largest, self.where, self.example = largest, where, example

    def differ(self, where: str, what: str) -> None:
        self.other = self.other or f"{where}: {what}"

    def result(self) -> Apart:
        within = not self.other and not self.outside and self.tolerance > 0
        if not self.different:
            return Apart(self.other or "the same values, written in other bytes", within)
        numbers = (
            f"largest difference {self.largest:.3g} in {self.where} ({self.example}); "
            f"{self.different:,} of {self.compared:,} {self.unit} differ"
        )
        if self.tolerance and not within:
            numbers += f", {self.outside:,} by more than {self.tolerance:g}"
        return Apart(f"{self.other}; {numbers}" if self.other else numbers, within, self.largest, self.where)


def _compare_tensors(original: Path, again: Path, tally: _Tally) -> None:
    # Not at the top: seconds of import, and most verifications find no weights that differ.
    from safetensors import SafetensorError, safe_open

    tally.unit = "values"
    try:
        with safe_open(original, framework="pt") as one, safe_open(again, framework="pt") as other:
            names, repeated = list(one.keys()), list(other.keys())
            for name in dict.fromkeys([*names, *repeated]):
                if name in names and name in repeated:
                    _compare_tensor(name, one.get_tensor(name), other.get_tensor(name), tally)
                else:
                    tally.differ(name, f"only the {'original' if name in names else 'repetition'} has this tensor")
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _compare_tensor(name: str, one: Any, other: Any, tally: _Tally) -> None:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        tally.differ(name, f"{one.dtype} {list(one.shape)} -> {other.dtype} {list(other.shape)}")
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
        example = f"{float(a[worst]):.6g} -> {float(b[worst]):.6g}"
        tally.add(name, len(apart), int((apart > 0).sum()), int((~covered).sum()), float(apart[worst]), example)


def _values(file: Path) -> Any:
    """What a json, jsonl or csv file holds, as a value of JSON; lines and rows by their numbers."""
    if file.suffix == ".csv":
        rows = enumerate(read_table(file), 1)
        return {f"row {number}": {name: _cell(text) for name, text in row.items()} for number, row in rows}
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return json.loads(text)
    return {f"line {number}": json.loads(line) for number, line in enumerate(text.splitlines(), 1)}


def _cell(text: str) -> int | float | str:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def _compare_bytes(original: Path, again: Path) -> Apart:
    offset = 0
    with original.open("rb") as one, again.open("rb") as other:
        while (a := one.read(_CHUNK)) == (b := other.read(_CHUNK)) and a:
            offset += len(a)
    offset += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    sizes = original.stat().st_size, again.stat().st_size
    lengths = f", and {sizes[0]:,} bytes became {sizes[1]:,}" if sizes[0] != sizes[1] else ""
    return Apart(f"differs from byte {offset:,} on{lengths}", False)
