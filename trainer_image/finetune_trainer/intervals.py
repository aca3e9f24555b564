"""How sure a number is: intervals of 95%, and the test of two models' hits and misses."""

from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SIGNIFICANCE = 0.05
_Z = 1.959963984540054
"""The normal distribution's 97.5% quantile."""
_CHUNK = 64
"""Resamples drawn at a time, which bounds the memory whatever the number of rows."""


class Interval(NamedTuple):
    """Where a number lies with 95% confidence."""

    low: float
    high: float


def wilson(hits: float, rows: float) -> Interval:
    """Wilson's score interval of a share (Wilson 1927): within 0 to 1, and of some width even at 0 and at 1."""
    share, square = hits / rows, _Z**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    reach = _Z / (1 + square / rows) * sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    return Interval(max(0.0, middle - reach), min(1.0, middle + reach))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test: how often a fair coin tossed `gained + lost` times is as one-sided
    (McNemar 1947)."""
    tosses = gained + lost
    tail = sum(comb(tosses, i) for i in range(min(gained, lost) + 1))
    return float(min(1, 2 * tail / 2**tosses))


def resampled(statistics: NDArray[np.float64], clusters: Sequence[int], seed: int) -> NDArray[np.float64]:
    """Sums of the rows' statistics, shape [rows, statistics], over bootstrap samples of whole clusters: shape
    [RESAMPLES, statistics] (Efron and Tibshirani 1993). Rows that are near copies of each other say one thing, so they
    are drawn together; what stands side by side in one call is drawn alike, and thereby paired."""
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), statistics.shape[1]))
    np.add.at(sums, members, statistics)
    generator = np.random.default_rng(seed)
    even = np.full(len(names), 1 / len(names))
    sizes = [min(_CHUNK, RESAMPLES - done) for done in range(0, RESAMPLES, _CHUNK)]
    return np.vstack([generator.multinomial(len(names), even, size=size) @ sums for size in sizes])


def percentiles(values: NDArray[np.float64]) -> Interval:
    """The middle 95% of resampled values; those that are no number, as of a resample without such rows, left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(float(low), float(high))
