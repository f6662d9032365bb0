"""By how much one group of experiments is better than another, and how surely.

Experiments are compared at the same seed: what a seed does to both (the order of the data, a teacher trained with
it) cancels. There are two reasons to doubt such a difference, and they are kept apart:

    seeds   another seed would give another difference: the 95 % interval of its mean over the seeds (Student's t)
    items   another text or other documents would: the standard error of its mean over the items, paired item by item

A difference is *clear* when it is beyond both, as far as they are known. One seed leaves the first one unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runners.report.collect import Row
from runners.report.comparison import FAMILY, Group, Size, Study, Trial
from runners.report.findings import CLEAR, item_differences
from runners.runtime.statistics import half_interval, weighted_stderr


@dataclass(frozen=True)
class Difference:
    """By how much a group is better (positive) or worse (negative) than another at one size of the family.

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

    @property
    def gain(self) -> float:
        return float(np.mean(self.gains)) if self.gains else 0.0

    @property
    def interval(self) -> float | None:
        """Half the width of the 95 % interval over seeds; None for one seed."""
        return half_interval(self.gains)

    @property
    def clear(self) -> bool:
        """Whether the difference is beyond what seeds and items leave open. False where neither is known."""
        doubts = [CLEAR * self.items] if self.items is not None else []
        doubts += [self.interval] if self.interval is not None else []
        return bool(doubts) and abs(self.gain) > max(doubts)


def differences(study: Study, group: Group, other: Group, measure: str) -> tuple[Difference, ...]:
    """Compare the families of two groups on the primary metric, at every size that both have at a common seed.

    What was measured otherwise (another held-out text) is left out.
    """
    key = group.label, other.label, measure
    if key not in study.compared:  # sentences, figures and tables ask for the same ones
        study.compared[key] = _differences(study, group, other, measure)
    found: tuple[Difference, ...] = study.compared[key]
    return found


def _differences(study: Study, group: Group, other: Group, measure: str) -> tuple[Difference, ...]:
    others = {trial.seed: trial for trial in other.trials}
    pairs = [(trial, others[trial.seed]) for trial in group.trials if trial.seed in others]
    metric = study.primary(measure)
    curves = [(a, b, a.curve(FAMILY, measure, metric), b.curve(FAMILY, measure, metric)) for a, b in pairs]
    found: dict[Size, dict[tuple[Path, Path], tuple[Trial, Row, Trial, Row]]] = {}
    for a, b, rows, their_rows in curves:
        for size in rows.keys() & their_rows.keys():
            row, their_row = rows[size], their_rows[size]
            if a.yardsticks[row.cell] != b.yardsticks[their_row.cell]:
                continue
            artifacts = a.artifacts[row.cell], b.artifacts[their_row.cell]
            found.setdefault(size, {})[artifacts] = (a, row, b, their_row)
    sign = 1.0 if study.higher_is_better(measure) else -1.0
    return tuple(_difference(size, sign, found[size]) for size in sorted(found))


def _difference(size: Size, sign: float, pairs: dict[tuple[Path, Path], tuple[Trial, Row, Trial, Row]]) -> Difference:
    compared = [pair for (own, their), pair in pairs.items() if own != their]
    gains = tuple(sign * (row.value - their_row.value) for _, row, _, their_row in compared)
    parameters = float(np.mean([row.cell.parameters for _, row, _, _ in pairs.values()]))
    return Difference(size, parameters, gains, _over_items(compared))


def _over_items(pairs: list[tuple[Trial, Row, Trial, Row]]) -> float | None:
    """The standard error over the items of the mean over seeds; None where the seeds do not have the same items."""
    paired = [item_differences(a.results, row, b.results, their_row) for a, row, b, their_row in pairs]
    known = [found for found in paired if found is not None]
    if not known or len(known) < len(paired):
        return None
    weights = known[0][1]
    if any(not np.array_equal(weights, other) for _, other in known):
        return None
    return weighted_stderr(np.mean([values for values, _ in known], axis=0), weights)
