"""Weighted means over items (windows of a text, documents of a task) and their standard errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


def weighted_mean(values: npt.NDArray[Any], weights: npt.NDArray[Any]) -> float:
    return float((weights * values).sum() / weights.sum())


def weighted_stderr(values: npt.NDArray[Any], weights: npt.NDArray[Any]) -> float | None:
    """Standard error of the weighted mean of independent items; None for fewer than two.

    The linearised variance of a ratio estimate (Cochran, Sampling Techniques, section 6.4). With equal
    weights it is the usual standard deviation / sqrt(n).
    """
    count = int(np.count_nonzero(weights))
    if count < 2:
        return None
    residuals = weights * (values - weighted_mean(values, weights))
    return float(math.sqrt((residuals**2).sum() * count / (count - 1)) / weights.sum())
