"""How sure a number is: intervals of 95%, and what two models would show if nothing told them apart."""

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
"""Clusters of which every way to exchange two models is looked at: about as many ways as are drawn otherwise."""


class Interval(NamedTuple):
    """Where a number lies with 95% confidence."""

    low: float
    high: float


def wilson(hits: float, rows: float) -> Interval:
    """Wilson's score interval of a share (Wilson 1927): within 0 to 1, and of some width even at 0 and at 1."""
    share, square = hits / rows, _Z**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    reach = _Z / (1 + square / rows) * sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    # Rounding would leave a trace of more than nothing, which would be shown.
    return Interval(middle - reach if hits > 0 else 0.0, middle + reach if hits < rows else 1.0)


def independent_rows(hits: NDArray[np.float64], clusters: Sequence[int]) -> float:
    """How many rows that have nothing to do with each other say as much about the share as these, each with its hits
    from 0 to 1: their number over the design effect (Kish 1965), taken from how far whole clusters lie from the share.
    Where all rows are alike that cannot be seen, and each cluster counts as one."""
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
    """Sums of two models' statistics, each of shape [rows, statistics], with the models exchanged on some clusters:
    both of shape [ways, statistics]. If nothing tells the models apart, each way is as likely as what was measured,
    which is the first (approximate randomization: Noreen 1989; on hits and misses it is McNemar's exact test). All
    ways, where few clusters differ, or else RESAMPLES."""
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
    """Sums of the rows' statistics, shape [rows, statistics], inside a part and outside, both of shape [RESAMPLES + 1,
    statistics]: first of the part that is given, shape [rows], in which clusters are whole; then of as many clusters
    drawn at random. If the part is nothing special, each is as likely (a permutation test: Fisher 1935)."""
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums, inside = np.zeros((len(names), statistics.shape[1])), np.zeros((1, len(names)))
    np.add.at(sums, members, statistics)
    inside[0, members[part]] = 1
    found = np.vstack([inside @ sums, *(chunk @ sums for chunk in permuted(inside, RESAMPLES, seed))])
    return found, sums.sum(axis=0) - found


def resampled(statistics: NDArray[np.float64], clusters: Sequence[int], seed: int) -> NDArray[np.float64]:
    """Sums of the rows' statistics, shape [rows, statistics], over bootstrap samples of whole clusters: shape
    [RESAMPLES, statistics] (Efron and Tibshirani 1993). Rows that are near copies of each other say one thing, so they
    are drawn together; what stands side by side in one call is drawn alike, and thereby paired."""
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), statistics.shape[1]))
    np.add.at(sums, members, statistics)
    return np.vstack([counts @ sums for counts in bootstrap_counts(len(names), RESAMPLES, seed)])


def percentiles(values: NDArray[np.float64]) -> Interval:
    """The middle 95% of resampled values; those that are no number, as of a resample without such rows, left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(float(low), float(high))
