"""95% confidence intervals, bootstrap resampling, and randomization and permutation tests over clusters."""

from collections.abc import Sequence
from itertools import product
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.randomness import bootstrap_counts, permuted, random_signs

RESAMPLES = 2000
SIGNIFICANCE = 0.05
_Z = 1.959963984540054
"""The normal distribution's 97.5% quantile."""
_ENUMERATED = 11
"""Most clusters for which all ways to exchange two models are enumerated: 2,048 ways, about as many as RESAMPLES."""


class Interval(NamedTuple):
    """A 95% confidence interval."""

    low: float
    high: float


def wilson(hits: float, rows: float) -> Interval:
    """Returns Wilson's score interval of a share (Wilson 1927). It is within 0 to 1, and has a width even at 0 and
    1."""
    share, square = hits / rows, _Z**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    reach = _Z / (1 + square / rows) * sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    # Rounding errors would give an end slightly different from 0 or 1, and it would be shown.
    return Interval(middle - reach if hits > 0 else 0.0, middle + reach if hits < rows else 1.0)


def independent_rows(hits: NDArray[np.float64], clusters: Sequence[int]) -> float:
    """Returns the effective number of independent rows: the number of rows divided by the design effect (Kish 1965).

    `hits`: of each row, from 0 to 1, shape [rows]. The design effect is estimated from the deviation of whole clusters
    from the share. If all rows have the same hits, it cannot be estimated, and each cluster counts as one row."""
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    rows, apart = len(hits), hits - hits.mean()
    if len(names) == 1 or np.isclose(apart, 0).all():
        return len(names)
    together = np.bincount(members, apart)
    effect = (together @ together * len(names) / (len(names) - 1)) / (apart @ apart * rows / (rows - 1))
    return float(rows / max(1.0, effect))


def exchanged(
    before: NDArray[np.float64], after: NDArray[np.float64], clusters: Sequence[int], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the sums of two models' statistics after exchanging the models on some clusters.

    `before`, `after`: shape [rows, statistics]. Returns two arrays of shape [ways, statistics]; the first way is the
    measured one. If the models do not differ, each way is equally likely (approximate randomization: Noreen 1989; for
    right and wrong answers it is McNemar's exact test). If few clusters differ, these are all ways, otherwise RESAMPLES
    random ways."""
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    moved = np.zeros((len(names), before.shape[1]))
    np.add.at(moved, members, after - before)
    moved = moved[~np.isclose(moved, 0).all(axis=1)]
    if len(moved) <= _ENUMERATED:
        shifts = np.array(list(product((1.0, -1.0), repeat=len(moved)))) @ moved
    else:
        kept, signs = np.ones((1, len(moved))), random_signs(len(moved), RESAMPLES, seed)
        shifts = np.vstack([kept @ moved, *(chunk @ moved for chunk in signs)])
    total = (before + after).sum(axis=0)
    return (total - shifts) / 2, (total + shifts) / 2


def reassigned(
    statistics: NDArray[np.float64], clusters: Sequence[int], part: NDArray[np.bool_], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the sums of the rows' statistics inside and outside a part of the rows, for a permutation test.

    `statistics`: shape [rows, statistics]. `part`: shape [rows]; must contain whole clusters. Returns two arrays of
    shape [RESAMPLES + 1, statistics]: first for `part`, then for the same number of clusters drawn at random. If `part`
    does not differ from the other rows, each draw is equally likely (Fisher 1935)."""
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums, inside = np.zeros((len(names), statistics.shape[1])), np.zeros((1, len(names)))
    np.add.at(sums, members, statistics)
    inside[0, members[part]] = 1
    found = np.vstack([inside @ sums, *(chunk @ sums for chunk in permuted(inside, RESAMPLES, seed))])
    return found, sums.sum(axis=0) - found


def resampled(statistics: NDArray[np.float64], clusters: Sequence[int], seed: int) -> NDArray[np.float64]:
    """Returns the sums of the rows' statistics over bootstrap samples of whole clusters (Efron and Tibshirani 1993).

    `statistics`: shape [rows, statistics]. Returns shape [RESAMPLES, statistics]. Near-duplicates are not independent,
    so they are drawn together. All columns of one call use the same samples, so they are paired."""
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), statistics.shape[1]))
    np.add.at(sums, members, statistics)
    return np.vstack([counts @ sums for counts in bootstrap_counts(len(names), RESAMPLES, seed)])


def percentiles(values: NDArray[np.float64]) -> Interval:
    """Returns the middle 95% of resampled values. Values that are not finite are left out; a resample can contain no
    row that counts for the metric."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(float(low), float(high))
