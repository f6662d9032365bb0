"""Which results moved between two runs, whether by more than noise, and in which environments they were computed.

Every number of an evaluation is compared with the number of the same name in the other run. Where both measured the
same items (documents, windows of the same text), they are compared item by item: the standard error is that of the
mean difference. Elsewhere it is that of two independent numbers. A difference of more than `THRESHOLD` standard errors
counts as moved; of many comparisons nearly one in twenty does so by chance.

A metric that no items make up (perplexity, bits per byte) is a function of one that has them: where that one is
compared item by item, it says it all, and the other is listed without a verdict.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from boomspec.core.graph import Experiment, Node
from boomspec.core.sizes import shown_bytes
from boomspec.core.tasks import Evaluate, LmEval
from boomspec.core.tasks.report import shown_measure
from boomspec.diff.sides import ComparedInput
from boomspec.plan.changes import FieldChange

THRESHOLD = 2.0  # standard errors
_MOST_RECORDS = 500  # of one run: more of them say the same
Key = tuple[str, str]  # measure, metric
Items = Mapping[int, tuple[float, float]]  # item -> weight, value


class Number(NamedTuple):
    value: float
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class Moved:
    """One number in both runs, in the order of the JSON."""

    experiment: str  # its label
    model: str  # "interpolated 5 layers"
    measure: str
    metric: str
    old: float
    old_stderr: float | None
    new: float
    new_stderr: float | None
    difference: float
    stderr: float | None  # of the difference
    paired: bool
    moved: bool | None  # None where there is no verdict
    better: bool | None  # whether the newer number is; None where neither is, or the measure does not say
    evaluations: tuple[str, str]  # their ids: experiments share those of what does not differ between them

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "evaluations"}


@dataclass(frozen=True)
class Mean:
    """The mean difference of one number over pairs of experiments, such as the seeds; `stderr`: over those."""

    model: str
    measure: str
    metric: str
    pairs: int
    difference: float
    stderr: float
    lowest: float
    highest: float
    moved: bool
    better: bool | None


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
    def means(self) -> tuple[Mean, ...]:
        """Over the pairs of experiments, of what several of them have. A mean counts as moved where all differ in one
        direction, by more on average than `THRESHOLD` standard errors over the pairs.

        What several pairs share, such as the teacher over seeds, is one measurement: it counts once, and has no spread.
        """
        found: dict[tuple[str, str, str], dict[tuple[str, str], Moved]] = {}
        for number in self.numbers:
            found.setdefault((number.model, number.measure, number.metric), {})[number.evaluations] = number
        return tuple(_mean(key, [*numbers.values()]) for key, numbers in found.items() if len(numbers) > 1)

    @property
    def moved(self) -> tuple[Moved, ...]:
        return tuple(number for number in self.numbers if number.moved)

    def to_json(self) -> dict[str, Any]:
        counts = {"threshold": THRESHOLD, "compared": len(self.judged), "moved": len(self.moved), "shared": self.shared}
        named = {"only_old": list(self.only_old), "only_new": list(self.only_new)}
        rows = {
            "numbers": [number.to_json() for number in self.numbers],
            "means": [asdict(mean) for mean in self.means],
        }
        return {**counts, **named, **rows}


def _mean(key: tuple[str, str, str], numbers: Sequence[Moved]) -> Mean:
    apart = [number.difference for number in numbers]
    difference, stderr = fmean(apart), stdev(apart) / math.sqrt(len(apart))
    moved = (min(apart) > 0 or max(apart) < 0) and abs(difference) > THRESHOLD * stderr
    rising = [number.better == (number.difference > 0) for number in numbers if number.better is not None]
    better = (difference > 0) == rising[0] if rising and difference else None
    return Mean(*key, len(apart), difference, stderr, min(apart), max(apart), moved, better)


def compare_results(old: ComparedInput, new: ComparedInput, partners: list[tuple[Experiment, Experiment]]) -> Compared:
    """Compare the results of two runs, experiment by experiment, as far as their artifacts are there."""
    numbers: list[Moved] = []
    only_old: list[str] = []
    only_new: list[str] = []
    shared = 0
    for before, after in partners:
        first, second = _evaluations(old, before), _evaluations(new, after)
        only_old += [name for name in first if name not in second]
        only_new += [name for name in second if name not in first]
        both = [name for name in second if name in first]
        changed = [name for name in both if first[name].id != second[name].id]
        for side, nodes in ((old, first), (new, second)):
            side.store.fetch_all(("evaluate", nodes[name].id) for name in changed)
        for name in both:
            one, other = first[name], second[name]
            if one.id == other.id and old.store.address == new.store.address:
                shared += 1
                continue
            folders = old.store.fetch("evaluate", one.id), new.store.fetch("evaluate", other.id)
            numbers += _compare(after.label, name, (one, folders[0]), (other, folders[1]))
    return Compared(tuple(numbers), tuple(only_old), tuple(only_new), shared)


def _evaluations(side: ComparedInput, experiment: Experiment) -> dict[str, Node]:
    """The evaluations of an experiment whose artifacts the store has, by their names."""
    assert side.graph is not None
    nodes = {name: side.graph.nodes[i] for name, i in experiment.tasks.items()}
    nodes = {name: node for name, node in nodes.items() if node.task.kind == "evaluate"}
    records = side.store.records(("evaluate", node.id) for node in nodes.values())
    return {name: node for name, node in nodes.items() if ("evaluate", node.id) in records}


def _compare(label: str, name: str, old: tuple[Node, Path], new: tuple[Node, Path]) -> Iterator[Moved]:
    model, _, called = name.removeprefix("evaluate ").rpartition(": ")
    first, second = old[0].task.record, new[0].task.record
    assert isinstance(first, Evaluate)
    assert isinstance(second, Evaluate)
    before, after = _numbers(old[1]), _numbers(new[1])
    reads = [{role: i for role, i in node.task.inputs.items() if role != "model"} for node, _ in (old, new)]
    items = (_items(old[1]), _items(new[1])) if first.measure == second.measure and reads[0] == reads[1] else ({}, {})
    paired: dict[Key, float] = {}
    for key in after.keys() & before.keys() & items[0].keys() & items[1].keys():
        if (stderr := _paired(items[0][key], items[1][key], after[key].value - before[key].value)) is not None:
            paired[key] = stderr
    for key in (key for key in after if key in before):
        a, b = before[key], after[key]
        independent = None if a.stderr is None or b.stderr is None else math.hypot(a.stderr, b.stderr)
        decides = key in paired or not any(measure == key[0] for measure, _ in paired)
        stderr = paired.get(key, independent) if decides else None
        difference = b.value - a.value
        moved = None if stderr is None else abs(difference) > THRESHOLD * stderr
        better = None if b.higher_is_better is None or not difference else (difference > 0) == b.higher_is_better
        task = second.measure.task if isinstance(second.measure, LmEval) else None
        titles = label, model, shown_measure(key[0], task=task, called=called), key[1]
        ids = old[0].id, new[0].id
        yield Moved(*titles, *a[:2], *b[:2], difference, stderr, key in paired, moved, better, ids)


def _paired(old: Items, new: Items, difference: float) -> float | None:
    """The standard error of the mean difference; None where the metric is not the mean of these items.

    The linearised variance of a ratio estimate (Cochran, Sampling Techniques, section 6.4), as for each mean alone.
    """
    weights = [weight for weight, _ in new.values()]
    count = sum(weight > 0 for weight in weights)
    if old.keys() != new.keys() or [old[item][0] for item in new] != weights or count < 2:
        return None
    apart = [new[item][1] - old[item][1] for item in new]
    total = sum(weights)
    mean = sum(w * d for w, d in zip(weights, apart, strict=True)) / total
    if not math.isclose(mean, difference, rel_tol=1e-5, abs_tol=1e-8):
        return None
    squares = sum((w * (d - mean)) ** 2 for w, d in zip(weights, apart, strict=True))
    return math.sqrt(squares * count / (count - 1)) / total


def _numbers(folder: Path) -> dict[Key, Number]:
    better = {"True": True, "False": False}
    found = {}
    for key, line in _lines(folder / "table.csv"):
        if line["value"] and math.isfinite(float(line["value"])):  # else it is missing, and the report says why
            stderr = float(line["stderr"]) if line["stderr"] else None
            found[key] = Number(float(line["value"]), stderr, better.get(line["higher_is_better"]))
    return found


def _items(folder: Path) -> dict[Key, dict[int, tuple[float, float]]]:
    found: dict[Key, dict[int, tuple[float, float]]] = {}
    for key, line in _lines(folder / "items.csv"):
        found.setdefault(key, {})[int(line["item"])] = float(line["weight"]), float(line["value"])
    return found


def _lines(path: Path) -> Iterator[tuple[Key, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            metric = line["metric"] if line["filter"] == "none" else f"{line['metric']},{line['filter']}"
            yield (line["measure"], metric), line


def conditions(old: ComparedInput, new: ComparedInput) -> tuple[FieldChange, ...]:
    """How the environments differ in which the artifacts of two runs were made; what only one says is not compared."""
    before, after = _environment(old), _environment(new)
    return tuple(
        FieldChange((name,), sorted(before[name]), sorted(values))
        for name, values in after.items()
        if name in before and values != before[name]
    )


def _environment(side: ComparedInput) -> dict[str, set[str]]:
    """The facts of an environment, such as "torch" and "gpus": each value that some artifact of a run was made with."""
    assert side.graph is not None
    tasks = [(node.task.kind, node.id) for node in side.graph.nodes.values()]
    # Many records are read at once, and no more than are wanted where every task has one.
    starts = range(0, len(tasks), _MOST_RECORDS)
    records = chain.from_iterable(side.store.records(tasks[i : i + _MOST_RECORDS]).values() for i in starts)
    known: dict[str, set[str]] = {}
    for record in islice(records, _MOST_RECORDS):
        made = record["provenance"]
        facts = {name: made[name] for name in ("python", "commit", "platform", "host") if made.get(name) is not None}
        for more in (made.get("packages"), made.get("hardware")):
            facts |= more if isinstance(more, dict) else {}
        for name, value in facts.items():
            text = str(value)
            if name == "gpus" and isinstance(value, list):
                text = ", ".join(map(str, value)) or "none"
            elif name == "memory_bytes" and isinstance(value, int):
                name, text = "memory", shown_bytes(value)
            known.setdefault(name, set()).add(text)
    return known
