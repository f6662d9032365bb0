"""Time as a fixed part and a rate: seconds = fixed + work x per_work, fitted to tasks that have ended.

A small task takes what it takes to start: a fraction of a second where files are copied, the import of large libraries
where something is computed. How fast a large one goes shows in large ones only. So the rate is read off the
observations where it makes up a good part of them; else it is the one that is known otherwise, and the observations say
what the fixed part is, and what the rate is at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

_SPREAD = 2.0  # the largest work over the smallest, from which a line can be laid through
_SEEN_SECONDS = 2.0  # of the largest observation, which its work must take for the rate to show
_SEEN_SHARE = 0.5  # of the fixed part, likewise
_NEAR = 4.0  # times the largest work: so far an estimate is called measured, whatever its rate


class Seen(NamedTuple):
    """A task that has ended: its work for one of its cores or workers, and its seconds."""

    work: float
    seconds: float


@dataclass(frozen=True)
class Line:
    """`of_data`: whether the rate comes from the observations. `seen`: the largest work that was observed."""

    fixed: float
    per_work: float
    of_data: bool
    seen: float

    def seconds(self, work: float) -> float:
        return self.fixed + self.per_work * work

    def is_measured(self, work: float) -> bool:
        """Whether an estimate for so much work is one of the observations, and not of another rate."""
        return self.of_data or work <= _NEAR * self.seen


def line_of(seen: Sequence[Seen], *, usual: float | None, most_fixed: float) -> Line:
    """The line through some observations. `usual`: seconds for a unit of work, as known otherwise; None where unknown.

    most_fixed: seconds that a task of the kind can take without any work, at most.
    """
    largest = max(one.work for one in seen)
    fixed, per_work = _least_squares(seen)
    spread = largest >= _SPREAD * min(one.work for one in seen)
    if spread and per_work * largest >= max(_SEEN_SECONDS, _SEEN_SHARE * fixed):
        return Line(fixed, per_work, True, largest)
    if usual is None:
        fixed = min(most_fixed, *(0.9 * one.seconds for one in seen))
        return Line(fixed, _rate(seen, fixed), True, largest)
    fastest = min(one.seconds / one.work for one in seen if one.work >= largest / _SPREAD)
    per_work = min(usual, fastest)  # what was done faster than that shows that it can be
    fixed = max(0.0, median(one.seconds - per_work * one.work for one in seen))
    if fixed <= most_fixed:
        return Line(fixed, per_work, per_work < usual, largest)
    # More than any start takes: it is the work that is slower here.
    return Line(most_fixed, _rate(seen, most_fixed), True, largest)


def _rate(seen: Sequence[Seen], fixed: float) -> float:
    """The median of the rates, each counted by its work: one task that was held up says nothing of the others."""
    rates = sorted((max(one.seconds - fixed, 0.0) / one.work, one.work) for one in seen)
    half, passed = sum(one.work for one in seen) / 2, 0.0
    for i, (rate, work) in enumerate(rates):
        passed += work
        if passed == half:  # as many lie on both sides
            return (rate + rates[i + 1][0]) / 2
        if passed > half:
            return rate
    return rates[-1][0]


def _least_squares(seen: Sequence[Seen]) -> tuple[float, float]:
    """Fixed part and rate, neither negative, with the smallest sum of squares of relative errors."""
    weights = [1.0 / max(one.seconds, 1e-3) ** 2 for one in seen]
    one, w, t = sum(weights), 0.0, 0.0
    ww = wt = 0.0
    for weight, (work, seconds) in zip(weights, seen, strict=True):
        w, t = w + weight * work, t + weight * seconds
        ww, wt = ww + weight * work * work, wt + weight * work * seconds
    determinant = one * ww - w * w
    if determinant <= 1e-12 * one * ww:  # all of one size
        return t / one, 0.0
    per_work = (one * wt - w * t) / determinant
    fixed = (t - per_work * w) / one
    if per_work < 0:
        return t / one, 0.0
    return (fixed, per_work) if fixed >= 0 else (0.0, wt / ww)
