"""What the numbers say, in sentences that are computed from them and never from a hope.

Two models are compared item by item on the same items (windows of the text, documents of a task), where the
metric has items: the standard error is that of the mean *difference*, which is far smaller than the
standard errors of the two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from runners.report.collect import SERIES, Results, Row
from runners.report.format import number
from runners.runtime.statistics import weighted_mean, weighted_stderr

UNITS = {"loss": "nats per token", "bits_per_byte": "bits per byte"}
_ADJECTIVES = {"interpolated": "interpolated", "random_init": "randomly initialised"}
CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Comparison:
    """By how much one model is better (positive) or worse (negative) than another of as many layers."""

    layers: int
    gain: float
    stderr: float | None

    @property
    def clear(self) -> bool:
        """Whether the difference is more than two of its standard errors. False where that is not known."""
        return self.stderr is not None and abs(self.gain) > CLEAR * self.stderr


def compare(results: Results, measure: str, *, series: str, against: str) -> tuple[Comparison, ...]:
    """Compare two series at every size between student and teacher that both have, on the primary metric."""
    metric = results.primary(measure)
    sign = 1.0 if results.higher_is_better(measure, metric) else -1.0
    others = {row.cell.layers: row for row in results.series(against, measure, metric)}
    ends = {row.cell.layers for end in ("student", "teacher") for row in results.series(end, measure, metric)}
    pairs = [
        (row, others[row.cell.layers])
        for row in results.series(series, measure, metric)
        if row.cell.layers in others and row.cell.layers not in ends
    ]
    return tuple(
        Comparison(row.cell.layers, sign * (row.value - other.value), _paired_stderr(results, row, other))
        for row, other in pairs
    )


def _paired_stderr(results: Results, row: Row, other: Row) -> float | None:
    found = item_differences(results, row, results, other)
    return None if found is None else weighted_stderr(*found)


def item_differences(
    results: Results, row: Row, others: Results, other: Row
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """What a row is more than another, item by item, and the items' weights; None where they cannot be paired."""
    first = results.items.get((row.cell, row.measure, row.metric))
    second = others.items.get((other.cell, other.measure, other.metric))
    if first is None or second is None or not np.array_equal(first.item, second.item):
        return None
    if not np.array_equal(first.weight, second.weight):
        return None
    difference = first.value - second.value
    if not math.isclose(weighted_mean(difference, first.weight), row.value - other.value, rel_tol=1e-5, abs_tol=1e-8):
        return None  # the metric is not the mean of these items
    return difference, first.weight


def outcome(results: Results) -> str:
    """One sentence for the top of the page: the main measure, and how much is missing."""
    sentence = _headline(results)
    if not results.missing:
        return sentence
    without = {missing.cell for missing in results.missing}
    cells, count = len({row.cell for row in results.rows} | without), len(without)
    return f"{sentence} {count} of {cells} results {'is' if count == 1 else 'are'} missing."


def _headline(results: Results) -> str:
    if not results.measures:
        return "There are no results."
    measure = results.measures[0]
    sentence = _against(results, measure, series="interpolated", against="naive_pruning")
    return sentence or _between(results, measure) or f"No interpolated size has a result on {label(results, measure)}."


def findings(results: Results) -> list[str]:
    """What else the numbers say: the main measure in full, then one sentence for each other measure."""
    if not results.measures:
        return []
    main, *others = results.measures
    found = [_between(results, main), _steps(results, main)]
    others_of_its_size = ("shortgpt", "laco", "standard_distillation")
    found += [_against(results, main, series="interpolated", against=name) for name in others_of_its_size]
    found += [_against(results, main, series="random_init", against="naive_pruning")]
    found += [_against(results, measure, series="interpolated", against="naive_pruning") for measure in others]
    headline = _headline(results)
    return [sentence for sentence in found if sentence and sentence != headline]


def label(results: Results, measure: str) -> str:
    """A measure's name for people: "held-out loss", "arc_easy acc"."""
    return name_of(measure, results.primary(measure))


def name_of(measure: str, metric: str) -> str:
    """A metric's name for people."""
    return f"{'held-out' if measure == 'held_out' else measure} {metric}"


def _against(results: Results, measure: str, *, series: str, against: str) -> str | None:
    """Who beats whom at how many sizes, by how much, and how surely; None where nothing can be compared."""
    compared = compare(results, measure, series=series, against=against)
    if not compared:
        return None
    won = [c for c in compared if c.gain > 0]
    lost = [c for c in compared if not c.gain > 0]
    sizes, total = f"{_ADJECTIVES[series]} size{'s' if len(compared) > 1 else ''}", len(compared)
    what = f"{SERIES[against]} on {label(results, measure)}"
    unit = UNITS.get(results.primary(measure), "")
    if not lost:
        subject = {1: f"The one {sizes} beats", 2: f"Both {sizes} beat"}.get(total, f"All {total} {sizes} beat")
        sentence = f"{subject} {what}, by {_range(won, unit)}"
    elif not won:
        subject = {1: f"The one {sizes} does not beat"}.get(total, f"None of the {total} {sizes} beats")
        sentence = f"{subject} {what}: behind by {_range(lost, unit)}"
    else:
        sentence = (
            f"{len(won)} of {total} {sizes} {'beats' if len(won) == 1 else 'beat'} {what}, by {_range(won, unit)}; "
            f"behind at {listed([c.layers for c in lost])} layers, by {_range(lost, unit)}"
        )
    unknown = _not_compared(results, measure, {series, against}, {c.layers for c in compared})
    return f"{sentence}; at {listed(unknown)} layers a result is missing." if unknown else f"{sentence}."


def _not_compared(results: Results, measure: str, series: set[str], compared: set[int]) -> list[int]:
    """The sizes between student and teacher at which a missing result keeps two series from being compared."""
    metric = results.primary(measure)
    missing = {m.cell.layers for m in results.missing if m.concerns(measure, metric) and m.cell.series in series}
    cells = [row.cell for row in results.rows] + [m.cell for m in results.missing]
    ends = {cell.layers for cell in cells if cell.series in ("student", "teacher")}
    return sorted(missing - compared - ends)


def _range(compared: Sequence[Comparison], unit: str) -> str:
    """The smallest and largest difference, and how many are larger than chance allows."""
    gains = sorted(abs(c.gain) for c in compared)
    low, high = number(gains[0]), number(gains[-1])
    amount = " ".join([low if low == high else f"{low} to {high}", unit]).rstrip()
    if any(c.stderr is None for c in compared):
        return amount
    clear = sum(c.clear for c in compared)
    if len(compared) == 1:
        return f"{amount} ({'more' if clear else 'less'} than two standard errors)"
    many = {0: "none", len(compared): "each"}.get(clear, f"{clear} of them")
    return f"{amount} ({many} by more than two standard errors)"


def listed(numbers: Sequence[int]) -> str:
    first = ", ".join(map(str, numbers[:-1]))
    return f"{first} and {numbers[-1]}" if first else str(numbers[-1])


def _between(results: Results, measure: str) -> str | None:
    """How many interpolated sizes lie between student and teacher."""
    metric = results.primary(measure)
    ends = [results.series(name, measure, metric) for name in ("student", "teacher")]
    rows = results.series("interpolated", measure, metric)
    if not (rows and all(len(end) == 1 for end in ends)):
        return None
    student, teacher = (end[0].value for end in ends)
    low, high = sorted((student, teacher))
    inside = sum(low <= row.value <= high for row in rows)
    total = len(rows)
    subject = f"{inside} of {total} interpolated sizes {'lies' if inside == 1 else 'lie'}"
    if inside == total:
        subject = {1: "The one interpolated size lies", 2: "Both interpolated sizes lie"}.get(
            total, f"All {total} interpolated sizes lie"
        )
    return (
        f"{subject} between the student ({number(student)}) "
        f"and the teacher ({number(teacher)}) on {label(results, measure)}."
    )


def _steps(results: Results, measure: str) -> str | None:
    """At how many steps up in size, from student to teacher, the metric improves."""
    metric = results.primary(measure)
    family = [row for name in ("student", "interpolated", "teacher") for row in results.series(name, measure, metric)]
    family.sort(key=lambda row: row.cell.layers)
    if len(family) < 3:
        return None
    sign = 1.0 if results.higher_is_better(measure, metric) else -1.0
    improved = sum(sign * (up.value - down.value) > 0 for down, up in pairwise(family))
    return f"From size to size upwards, {label(results, measure)} improves at {improved} of {len(family) - 1} steps."
