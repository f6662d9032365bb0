"""Means with their uncertainty: over items (windows of a text, documents of a task) and over seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special


def weighted_mean(values: npt.NDArray[Any], weights: npt.NDArray[Any]) -> float:
    return float((weights * values).sum() / weights.sum())


def weighted_stderr(values: npt.NDArray[Any], weights: npt.NDArray[Any]) -> float | None:
    """Standard error of the weighted mean of independent items; None for fewer than two."""
    count = int(np.count_nonzero(weights))
    if count < 2:
        return None
    # The linearised variance of a ratio estimate (Cochran, Sampling Techniques, section 6.4); with equal weights it is
    # the usual standard deviation / sqrt(n).
    residuals = weights * (values - weighted_mean(values, weights))
    return float(math.sqrt((residuals**2).sum() * count / (count - 1)) / weights.sum())


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of the population that at least two values were drawn from."""
    return float(np.std(values, ddof=1))


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of a mean's 95 % confidence interval (Student's t to three decimals); None for one value."""
    if len(values) < 2:
        return None
    # What scipy.stats calls; importing that takes most of a second, in every task that measures.
    quantile = round(float(special.stdtrit(len(values) - 1, 0.975)), 3)
    return quantile * deviation(values) / math.sqrt(len(values))
