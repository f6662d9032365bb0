"""Compare models and groups of experiments: by how much one is better than another, and how surely.

Two models are compared item by item on the same items (windows of the text, documents of a task), where the metric has
items: the standard error is that of the mean *difference*, far smaller than the standard errors of the two numbers.

Experiments are compared at the same seed: what a seed does to both (the order of the data, a teacher trained with it)
cancels. There are two reasons to doubt such a difference, and they are kept apart:

    seeds   another seed would give another difference: the 95 % interval of its mean over the seeds (Student's t)
    items   another text or other documents would: the standard error of its mean over the items, paired item by item

A difference is *clear* when it is beyond both, as far as they are known. One seed leaves the first one unknown.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runners.report.study import FAMILY, SEED, Group, Row, Size, Study, curve_of
from runners.runtime.statistics import half_interval, weighted_mean, weighted_stderr

CLEAR = 2.0  # standard errors
_Pairs = Sequence[tuple[Row, Row]]


class ScoreDifference:
    """By how much the first of two is better (positive) or worse (negative) than the other at one size.

    `pairs`: a row of the first and one of the other for each seed; `apart`: those that are different artifacts, from
    which the numbers come. `sign`: -1 where less is better.
    """

    def __init__(self, size: Size, sign: float, pairs: _Pairs, apart: _Pairs) -> None:
        self.size = size
        self.parameters = float(np.mean([row.cell.parameters for row, _ in pairs]))
        self.gains = tuple(sign * (row.value - other.value) for row, other in apart)
        self.same = not self.gains  # one and the same artifact: there is nothing to compare
        self.gain = float(np.mean(self.gains)) if self.gains else 0.0
        self.interval = half_interval(self.gains)  # half of the 95 % interval over seeds; None for one seed
        # The standard error over the items of the mean over seeds; None where the seeds do not have the same items.
        self.items: float | None = None
        known = [found for row, other in apart if (found := item_differences(row, other)) is not None]
        if known and len(known) == len(apart) and all(np.array_equal(known[0][1], other) for _, other in known):
            self.items = weighted_stderr(np.mean([values for values, _ in known], axis=0), known[0][1])
        self.error = self.items if self.interval is None else self.interval
        # Whether it is beyond what seeds and items leave open. False where neither is known.
        doubts = [CLEAR * self.items] if self.items is not None else []
        doubts += [self.interval] if self.interval is not None else []
        self.clear = bool(doubts) and abs(self.gain) > max(doubts)


def baseline_gains(study: Study, measure: str, *, series: str, against: str) -> list[ScoreDifference]:
    """Compare two series of one experiment at every size between student and teacher that both have."""
    trial, metric, sign = study.trials[0], study.primary[measure], study.sign(measure)
    others = {row.size: row for row in trial.series(against, measure, metric)}
    ends = {row.cell.layers for end in ("student", "teacher") for row in trial.series(end, measure, metric)}
    rows = [r for r in trial.series(series, measure, metric) if r.size in others and r.cell.layers not in ends]
    return [ScoreDifference(row.size, sign, [(row, others[row.size])], [(row, others[row.size])]) for row in rows]


def against_references(study: Study, measure: str) -> list[tuple[Group, Group, tuple[ScoreDifference, ...]]]:
    """Each group that has a reference, the reference, and the differences between them."""
    pairs = [(group, other) for group in study.groups if (other := study.reference(group)) is not None]
    return [(group, other, differences(study, group, other, measure)) for group, other in pairs]


@lru_cache(4096)  # sentences, figures and tables ask for the same ones
def differences(study: Study, group: Group, other: Group, measure: str) -> tuple[ScoreDifference, ...]:
    """Compare two families on the primary metric, at each size and seed of both that was measured on the same text."""
    metric, pairs = study.primary[measure], dict[Size, dict[tuple[Path, Path], tuple[Row, Row]]]()
    others = {t.axes.get(SEED): {r.size: r for r in t.series(FAMILY, measure, metric)} for t in other.trials}
    for trial in group.trials:
        theirs = others.get(trial.axes.get(SEED), {})
        for row in trial.series(FAMILY, measure, metric):
            their_row = theirs.get(row.size)
            if their_row is not None and row.yardstick == their_row.yardstick:
                pairs.setdefault(row.size, {})[row.artifact, their_row.artifact] = row, their_row
    found = {size: list(rows.values()) for size, rows in sorted(pairs.items())}
    apart = {size: [(a, b) for a, b in rows if a.artifact != b.artifact] for size, rows in found.items()}
    return tuple(ScoreDifference(s, study.sign(measure), rows, apart[s]) for s, rows in found.items())


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
    asked = [{size for t in group.trials for c, size in t.cells.items() if curve_of(c) == FAMILY} for group in groups]
    order: dict[Size, list[Group]] = {}
    for size in sorted(set.intersection(*asked)) if len(groups) > 1 else ():
        points = {group.label: point for group in groups if (point := study.points(group, measure).get(size))}
        if len({point.artifacts for point in points.values()}) > 1:
            found = [group for group in groups if group.label in points]
            order[size] = sorted(found, key=lambda group: -study.sign(measure) * points[group.label].mean)
    return order
