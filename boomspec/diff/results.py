"""Which results moved between two runs, whether by more than noise, and in which environments they were computed.

Every number of an evaluation is compared with the number of the same name in the other run. Where both measured the
same items (documents, windows of the same text), they are compared item by item: the standard error is that of the
mean difference. Elsewhere it is that of two independent numbers. A difference of more than `THRESHOLD` standard errors
counts as moved; of many comparisons nearly one in twenty does so by chance.

A metric that no items make up (perplexity, bits per byte) is a function of one that has them: where that one is
compared item by item, it says it all, and the other is listed without a verdict.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from boomspec.core.graph import Node, TaskGraph
from boomspec.core.sizes import shown_bytes
from boomspec.core.tasks import Evaluate, LmEval
from boomspec.core.tasks.report import shown_measure
from boomspec.store import Store

THRESHOLD = 2.0  # standard errors
_MOST_RECORDS = 500  # of one run: more of them say the same
_PROVENANCE = ("python", "commit", "platform", "host")
Key = tuple[str, str]  # measure, metric
Items = Mapping[int, tuple[float, float]]  # item -> weight, value


@dataclass(frozen=True)
class Number:
    """One number of an evaluation."""

    value: float
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class Moved:
    """One number in both runs. stderr: of the difference. `moved` is None where there is no verdict."""

    label: str  # of the experiment
    model: str  # "interpolated 5 layers"
    measure: str
    metric: str
    old: Number
    new: Number
    stderr: float | None
    paired: bool
    moved: bool | None

    @property
    def difference(self) -> float:
        return self.new.value - self.old.value

    @property
    def better(self) -> bool | None:
        """Whether the newer number is the better one; None where neither is, or the measure does not say."""
        higher = self.new.higher_is_better
        return None if higher is None or not self.difference else (self.difference > 0) == higher

    def to_json(self) -> dict[str, Any]:
        return {
            "experiment": self.label,
            "model": self.model,
            "measure": self.measure,
            "metric": self.metric,
            "old": self.old.value,
            "old_stderr": self.old.stderr,
            "new": self.new.value,
            "new_stderr": self.new.stderr,
            "difference": self.difference,
            "stderr": self.stderr,
            "paired": self.paired,
            "moved": self.moved,
            "better": self.better,
        }


@dataclass(frozen=True)
class Compared:
    """All numbers that two runs have; what only one of them has; how many are one and the same measurement."""

    numbers: tuple[Moved, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    shared: int

    @property
    def judged(self) -> tuple[Moved, ...]:
        return tuple(number for number in self.numbers if number.moved is not None)

    @property
    def moved(self) -> tuple[Moved, ...]:
        return tuple(number for number in self.numbers if number.moved)

    def to_json(self) -> dict[str, Any]:
        return {
            "threshold": THRESHOLD,
            "compared": len(self.judged),
            "moved": len(self.moved),
            "shared": self.shared,
            "only_old": list(self.only_old),
            "only_new": list(self.only_new),
            "numbers": [number.to_json() for number in self.numbers],
        }


@dataclass(frozen=True)
class Measured:
    """The evaluations of one experiment of a run, by their names, as far as their artifacts are there."""

    label: str
    store: Store
    nodes: dict[str, Node]
    wanted: tuple[str, ...]  # also those that are not there


def measured(graph: TaskGraph, store: Store, label: str, tasks: Mapping[str, str]) -> Measured:
    """The evaluations of an experiment whose artifacts the store has."""
    nodes = {name: graph.nodes[i] for name, i in tasks.items() if graph.nodes[i].task.kind == "evaluate"}
    records = store.records(("evaluate", node.id) for node in nodes.values())
    there = {name: node for name, node in nodes.items() if ("evaluate", node.id) in records}
    return Measured(label, store, there, tuple(nodes))


def compare_results(pairs: Sequence[tuple[Measured, Measured]]) -> Compared:
    """Compare the results of experiments pairwise."""
    numbers: list[Moved] = []
    only_old: list[str] = []
    only_new: list[str] = []
    shared = 0
    for old, new in pairs:
        only_old += [name for name in old.nodes if name not in new.nodes]
        only_new += [name for name in new.nodes if name not in old.nodes]
        both = [name for name in new.nodes if name in old.nodes]
        changed = [name for name in both if old.nodes[name].id != new.nodes[name].id]
        for side in (old, new):
            side.store.fetch_all(("evaluate", side.nodes[name].id) for name in changed)
        for name in both:
            one, other = old.nodes[name], new.nodes[name]
            if one.id == other.id and old.store.address == new.store.address:
                shared += 1
                continue
            first, second = old.store.fetch("evaluate", one.id), new.store.fetch("evaluate", other.id)
            numbers += _compare(new.label, name, (one, first), (other, second))
    return Compared(tuple(numbers), tuple(only_old), tuple(only_new), shared)


def _compare(label: str, name: str, old: tuple[Node, Path], new: tuple[Node, Path]) -> Iterator[Moved]:
    model = name.removeprefix("evaluate ").rpartition(": ")[0]
    before, after = _numbers(old[1]), _numbers(new[1])
    same = _same_items(old[0], new[0])
    items = (_items(old[1]), _items(new[1])) if same else ({}, {})
    paired: dict[Key, float | None] = {}
    for key in after.keys() & before.keys() & items[0].keys() & items[1].keys():
        if (stderr := _paired(items[0][key], items[1][key], after[key].value - before[key].value)) is not None:
            paired[key] = stderr
    for key, number in after.items():
        if key not in before:
            continue
        stderr = paired[key] if key in paired else _independent(before[key], number)
        decides = key in paired or not any(measure == key[0] for measure, _ in paired)
        moved = None
        if decides and stderr is not None:
            moved = abs(number.value - before[key].value) > THRESHOLD * stderr
        measure = shown_measure(key[0], task=_task(new[0]), called=name.rpartition(": ")[2])
        yield Moved(
            label, model, measure, key[1], before[key], number, stderr if decides else None, key in paired, moved
        )


def _task(node: Node) -> str | None:
    """The lm-eval task that an evaluation asks."""
    record = node.task.record
    return record.measure.task if isinstance(record, Evaluate) and isinstance(record.measure, LmEval) else None


def _same_items(old: Node, new: Node) -> bool:
    """Whether two evaluations measured the same items: the same measure on the same text or task."""
    first, second = old.task.record, new.task.record
    assert isinstance(first, Evaluate)
    assert isinstance(second, Evaluate)
    reads = [{role: i for role, i in node.task.inputs.items() if role != "model"} for node in (old, new)]
    return first.measure == second.measure and reads[0] == reads[1]


def _paired(old: Items, new: Items, difference: float) -> float | None:
    """The standard error of the mean difference; None where the metric is not the mean of these items.

    The linearised variance of a ratio estimate (Cochran, Sampling Techniques, section 6.4), as for each mean alone.
    """
    count, weights = sum(weight > 0 for weight, _ in new.values()), [weight for weight, _ in new.values()]
    if old.keys() != new.keys() or [old[item][0] for item in new] != weights or count < 2:
        return None
    apart = [new[item][1] - old[item][1] for item in new]
    total = sum(weights)
    mean = sum(w * d for w, d in zip(weights, apart, strict=True)) / total
    if not math.isclose(mean, difference, rel_tol=1e-5, abs_tol=1e-8):
        return None
    squares = sum((w * (d - mean)) ** 2 for w, d in zip(weights, apart, strict=True))
    return math.sqrt(squares * count / (count - 1)) / total


def _independent(old: Number, new: Number) -> float | None:
    return None if old.stderr is None or new.stderr is None else math.hypot(old.stderr, new.stderr)


def _numbers(folder: Path) -> dict[Key, Number]:
    better = {"True": True, "False": False}
    return {
        _key(line): Number(
            float(line["value"]),
            float(line["stderr"]) if line["stderr"] else None,
            better.get(line["higher_is_better"]),
        )
        for line in _lines(folder / "table.csv")
        if line["value"] and math.isfinite(float(line["value"]))  # else it is missing, and the report says why
    }


def _items(folder: Path) -> dict[Key, dict[int, tuple[float, float]]]:
    found: dict[Key, dict[int, tuple[float, float]]] = {}
    for line in _lines(folder / "items.csv"):
        found.setdefault(_key(line), {})[int(line["item"])] = float(line["weight"]), float(line["value"])
    return found


def _key(line: dict[str, str]) -> Key:
    metric = line["metric"] if line["filter"] == "none" else f"{line['metric']},{line['filter']}"
    return line["measure"], metric


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Condition:
    """One thing that two runs have differently: each value that some of a run's artifacts were made with."""

    name: str  # "torch", "python", "gpus"
    old: tuple[str, ...]
    new: tuple[str, ...]


def conditions(old: tuple[Store, Iterable[Node]], new: tuple[Store, Iterable[Node]]) -> tuple[Condition, ...]:
    """What differs between the artifacts of two runs. What only one of them says is not compared."""
    before, after = _known(*old), _known(*new)
    return tuple(
        Condition(name, tuple(sorted(before[name])), tuple(sorted(values)))
        for name, values in after.items()
        if name in before and values != before[name]
    )


def _known(store: Store, nodes: Iterable[Node]) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for provenance in islice(_provenances(store, [(node.task.kind, node.id) for node in nodes]), _MOST_RECORDS):
        for name, value in _facts(provenance):
            known.setdefault(name, set()).add(value)
    return known


def _provenances(store: Store, tasks: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Many records are read at once, and no more than are wanted where every task has one."""
    for start in range(0, len(tasks), _MOST_RECORDS):
        records = store.records(tasks[start : start + _MOST_RECORDS]).values()
        yield from (record["provenance"] for record in records)


def _facts(provenance: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((name, str(provenance[name])) for name in _PROVENANCE if provenance.get(name) is not None)
    packages, hardware = provenance.get("packages"), provenance.get("hardware")
    if isinstance(packages, dict):
        yield from ((name, str(version)) for name, version in packages.items())
    if isinstance(hardware, dict):
        for name, value in hardware.items():
            match name, value:
                case "gpus", list():
                    yield "gpus", ", ".join(map(str, value)) or "none"
                case "memory_bytes", int():
                    yield "memory", shown_bytes(value)
                case _:
                    yield name, str(value)
