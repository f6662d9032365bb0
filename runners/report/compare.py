"""Compare models and groups of experiments: by how much one is better than another, and how surely.

Two models are compared item by item on the same items (windows of the text, documents of a task), where the metric has
items: the standard error is that of the mean *difference*, far smaller than the standard errors of the two numbers.

Experiments are compared at the same seed: what a seed does to both (the order of the data, a teacher trained with it)
cancels. There are two reasons to doubt such a difference, and they are kept apart:

    seeds   another seed would give another difference: the 95 % interval of its mean over the seeds (Student's t)
    items   another text or other documents would: the standard error of its mean over the items, paired item by item

A difference is *clear* when it is beyond both, as far as they are known. One seed leaves the first one unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from runners.report.study import FAMILY, Group, Row, Size, Study
from runners.runtime.statistics import half_interval, weighted_mean, weighted_stderr

CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class ScoreDifference:
    """By how much the first of two is better (positive) or worse (negative) than the other at one size.

    `gains`: one for each seed at which the two are different artifacts. Empty: they share every artifact.
    """

    size: Size
    parameters: float
    gains: tuple[float, ...]
    items: float | None  # standard error over the items

    @property
    def same(self) -> bool:
        """Whether there is nothing to compare: it is one and the same artifact."""
        return not self.gains

    @cached_property
    def gain(self) -> float:
        return float(np.mean(self.gains)) if self.gains else 0.0

    @cached_property
    def interval(self) -> float | None:
        """Half the width of the 95 % interval over seeds; None for one seed."""
        return half_interval(self.gains)

    @property
    def clear(self) -> bool:
        """Whether the difference is beyond what seeds and items leave open. False where neither is known."""
        doubts = [CLEAR * self.items] if self.items is not None else []
        doubts += [self.interval] if self.interval is not None else []
        return bool(doubts) and abs(self.gain) > max(doubts)


def baseline_gains(study: Study, measure: str, *, series: str, against: str) -> list[ScoreDifference]:
    """Compare two series of one experiment at every size between student and teacher that both have."""
    trial, metric = study.trials[0], study.primary(measure)
    others = {row.size: row for row in trial.series(against, measure, metric)}
    ends = {row.cell.layers for end in ("student", "teacher") for row in trial.series(end, measure, metric)}
    rows = [r for r in trial.series(series, measure, metric) if r.size in others and r.cell.layers not in ends]
    return [_difference(row.size, study.sign(measure), [row], [(row, others[row.size])]) for row in rows]


def against_references(study: Study, measure: str) -> list[tuple[Group, Group, tuple[ScoreDifference, ...]]]:
    """Each group that has a reference, the reference, and the differences between them."""
    pairs = [(group, other) for group in study.groups if (other := study.reference(group)) is not None]
    return [(group, other, differences(study, group, other, measure)) for group, other in pairs]


def differences(study: Study, group: Group, other: Group, measure: str) -> tuple[ScoreDifference, ...]:
    """Compare the families of two groups on the primary metric, at every size that both have at a common seed.

    What was measured otherwise (another held-out text) is left out.
    """
    key = group.label, other.label, measure
    if key not in study.known:  # sentences, figures and tables ask for the same ones
        study.known[key] = tuple(_differences(study, group, other, measure))
    found: tuple[ScoreDifference, ...] = study.known[key]
    return found


def _differences(study: Study, group: Group, other: Group, measure: str) -> Iterable[ScoreDifference]:
    others = {trial.axes.get("seed"): trial.curve(FAMILY, measure, study.primary(measure)) for trial in other.trials}
    pairs: dict[Size, dict[tuple[object, object], tuple[Row, Row]]] = {}
    for trial in group.trials:
        theirs = others.get(trial.axes.get("seed"), {})
        for size, row in trial.curve(FAMILY, measure, study.primary(measure)).items():
            their_row = theirs.get(size)
            if their_row is not None and row.yardstick == their_row.yardstick:
                pairs.setdefault(size, {})[row.artifact, their_row.artifact] = row, their_row
    for size in sorted(pairs):
        found = list(pairs[size].values())
        apart = [(row, their_row) for row, their_row in found if row.artifact != their_row.artifact]
        yield _difference(size, study.sign(measure), [row for row, _ in found], apart)


def _difference(size: Size, sign: float, rows: Sequence[Row], pairs: Sequence[tuple[Row, Row]]) -> ScoreDifference:
    parameters = float(np.mean([row.cell.parameters for row in rows]))
    return ScoreDifference(
        size, parameters, tuple(sign * (a.value - b.value) for a, b in pairs), _stderr_over_items(pairs)
    )


def _stderr_over_items(pairs: Sequence[tuple[Row, Row]]) -> float | None:
    """The standard error over the items of the mean over seeds; None where the seeds do not have the same items."""
    known = [found for row, other in pairs if (found := item_differences(row, other)) is not None]
    if not known or len(known) < len(pairs) or any(not np.array_equal(known[0][1], other) for _, other in known):
        return None
    return weighted_stderr(np.mean([values for values, _ in known], axis=0), known[0][1])


def item_differences(row: Row, other: Row) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """By how much a row is higher than another, item by item, and the items' weights; None where they have no pairs."""
    if row.items is None or other.items is None:
        return None
    if not row.items[["item", "weight"]].equals(other.items[["item", "weight"]]):
        return None
    difference, weights = (row.items["value"] - other.items["value"]).to_numpy(), row.items["weight"].to_numpy()
    if not math.isclose(weighted_mean(difference, weights), row.value - other.value, rel_tol=1e-5, abs_tol=1e-8):
        return None  # the metric is not the mean of these items
    return difference, weights


def ranked(study: Study, measure: str) -> dict[Size, list[Group]]:
    """The groups from best to worst mean, at every size of the family that the specs of all of them ask for.

    Only groups that were measured with the same as the first one; sizes at which all share one artifact are left out.
    Where the result of one is missing, the others are ranked.
    """
    with_results = [group for group in study.groups if study.points(group, measure)]
    groups = [group for group in with_results if group.yardsticks(measure) == with_results[0].yardsticks(measure)]
    common = frozenset.intersection(*(group.family_sizes for group in groups)) if len(groups) > 1 else frozenset()
    order: dict[Size, list[Group]] = {}
    for size in sorted(common):
        points = {group.label: point for group in groups if (point := study.points(group, measure).get(size))}
        if len({frozenset(row.artifact for row in point.rows) for point in points.values()}) > 1:
            found = [group for group in groups if group.label in points]
            order[size] = sorted(found, key=lambda group: -study.sign(measure) * points[group.label].mean)
    return order
