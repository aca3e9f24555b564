"""Metrics of models that were measured on the same rows: values and changes, with confidence intervals and p-values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.spec.evaluation import MetricName
from finetune_trainer.metrics.values import LIKELIHOODS, LOWER_IS_BETTER, row_statistics, value
from finetune_trainer.statistics.intervals import (
    SIGNIFICANCE,
    Interval,
    exchanged,
    independent_rows,
    percentiles,
    reassigned,
    resampled,
    wilson,
)

Numbers = NDArray[np.float64]
SHARES = (MetricName.EXACT_MATCH, MetricName.VALID_JSON)
"""Metrics that are a share of rows. Their confidence interval is Wilson's."""
DETECTED = 2.8
"""The sum of the normal distribution's 97.5% and 80% quantiles."""
LEAST_CLUSTERS = 6
"""Fewest clusters with which the randomization test can find a significant change. Five clusters that all differ have a
p-value of 0.0625."""


@dataclass(frozen=True)
class MetricEstimate:
    """A metric of one model, with its 95% confidence interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Change:
    """The change of a metric from one model to another on the same rows. A positive value is better, for every
    metric."""

    value: float
    interval: Interval
    """The 95% confidence interval, from a paired bootstrap over clusters."""
    differing: int
    """Clusters on which the two models differ."""
    p_value: float
    """Two-sided, from a randomization test over clusters. A bootstrap alone would call one in seven changes significant
    that are none, with six clusters, and one in ten with ten clusters."""

    @property
    def sign(self) -> int:
        """1 or -1 if the change is statistically significant, otherwise 0."""
        if self.p_value >= SIGNIFICANCE or not (self.interval.low > 0 or self.interval.high < 0):
            return 0
        return 1 if self.interval.low > 0 else -1


@dataclass(frozen=True, eq=False)
class Scored:
    """The statistics of one model for each row. Their sums over rows make the metrics."""

    statistics: Mapping[MetricName, Numbers]
    """An array for each metric, shape [rows, statistics], summed over the draws."""
    draws: int = 1
    """How often the model answered every row."""

    def of_row(self, name: MetricName) -> Numbers:
        """Returns the statistics of each row, as the mean of the draws, shape [rows, statistics]."""
        mean: Numbers = self.statistics[name] / self.draws
        return mean

    def part(self, rows: Sequence[int], names: Sequence[MetricName]) -> "Scored":
        """Returns the statistics of some rows and some metrics. Metrics that were not measured are left out."""
        there = {name: self.statistics[name] for name in names if name in self.statistics}
        return Scored({name: found[list(rows)] for name, found in there.items()}, self.draws)


def scored(
    draws: Sequence[Sequence[str]],
    expected: Sequence[str],
    labels: Sequence[str],
    metrics: Sequence[MetricName],
    likelihoods: Numbers | None = None,
    asking: Sequence[bool] | None = None,
) -> Scored:
    """Scores a model's answers to all rows in each draw.

    `likelihoods`: summed loss and number of labels of each row, shape [rows, 2]. Without them, loss and perplexity are
    left out. `asking`: whether each row has a prompt. Rows without a prompt do not count for metrics of answers."""
    found: dict[MetricName, Numbers] = {}
    for name in metrics:
        if name not in LIKELIHOODS:
            found[name] = np.sum([row_statistics(name, answers, expected, labels) for answers in draws], axis=0)
            if asking is not None:
                found[name] = found[name] * np.asarray(asking)[:, None]
        elif likelihoods is not None:
            found[name] = likelihoods
    return Scored(found, len(draws))


class Paired:
    """Models that were measured on the same rows. The bootstrap resamples them together."""

    def __init__(self, models: Mapping[str, Scored], clusters: Sequence[int], seed: int) -> None:
        self._models, self._clusters, self._seed = models, np.asarray(clusters), seed
        blocks = [(model, name, rows) for model, found in models.items() for name, rows in found.statistics.items()]
        sums = resampled(np.hstack([rows for _, _, rows in blocks]), clusters, seed)
        ends = np.cumsum([rows.shape[1] for _, _, rows in blocks])[:-1]
        parts = np.split(sums, ends, axis=1)
        self._resampled = {
            (model, name): value(name, part) for (model, name, _), part in zip(blocks, parts, strict=True)
        }

    def estimate(self, model: str, name: MetricName) -> MetricEstimate | None:
        """Returns a metric of a model. Returns None if this model was not measured by it, or no row counts for it.
        Raises KeyError if no model was measured by it."""
        if not any(name in found.statistics for found in self._models.values()):
            raise KeyError(name)
        if model not in self._models or name not in self._models[model].statistics:
            return None
        found = float(value(name, self._models[model].statistics[name].sum(axis=0)))
        if not np.isfinite(found):
            return None
        if name in SHARES:
            # Several answers to one row are not independent, so they count as one.
            rows = self._models[model].of_row(name)
            counted = rows[:, 1] > 0
            alone = independent_rows(rows[counted, 0], self._clusters[counted].tolist())
            return MetricEstimate(found, wilson(found * alone, alone))
        return MetricEstimate(found, percentiles(self._resampled[model, name]))

    def change(self, before: str, after: str, name: MetricName) -> Change | None:
        """Returns the change of a metric from model `before` to model `after`, or None if one of them has no value."""
        first, second = self.estimate(before, name), self.estimate(after, name)
        if first is None or second is None:
            return None
        sign = -1 if name in LOWER_IS_BETTER else 1
        was, now = (self._models[model].of_row(name) for model in (before, after))
        return Change(
            value=sign * (second.value - first.value),
            interval=percentiles(sign * (self._resampled[after, name] - self._resampled[before, name])),
            differing=len(np.unique(self._clusters[~np.isclose(was, now).all(axis=1)])),
            p_value=self._p_value(name, was, now),
        )

    def gap(self, before: str, after: str, name: MetricName, part: NDArray[np.bool_]) -> Change | None:
        """Returns how much larger the change is on the rows of `part` than on the other rows. Returns None if the
        metric has no value on one of the two.

        `part`: shape [rows]; must contain whole clusters. The p-value comes from a permutation test: it draws the same
        number of clusters at random, and counts how often they differ from the others as much."""
        sign = -1 if name in LOWER_IS_BETTER else 1
        was, now = (self._models[model].of_row(name) for model in (before, after))
        both = np.hstack([was, now])

        def apart(inside: Numbers, outside: Numbers) -> Numbers:
            first, second = (np.split(sums, 2, axis=-1) for sums in (inside, outside))
            of_part, of_rest = (value(name, after) - value(name, before) for before, after in (first, second))
            return sign * (of_part - of_rest)

        sums = resampled(np.hstack([both * part[:, None], both * ~part[:, None]]), self._clusters.tolist(), self._seed)
        drawn = apart(*reassigned(both, self._clusters.tolist(), part, self._seed))
        if not np.isfinite(drawn[0]):
            return None
        return Change(
            value=float(drawn[0]),
            interval=percentiles(apart(*np.split(sums, 2, axis=1))),
            differing=len(np.unique(self._clusters[~np.isclose(was, now).all(axis=1)])),
            p_value=_as_far(np.abs(drawn)),
        )

    def detectable(self, before: str, after: str, name: MetricName) -> float | None:
        """Returns the minimum detectable change: 2.8 standard errors, for a significance level of 5% and a power of 80%
        (Bloom 1995, "Minimum detectable effects"). Returns None if there are too few clusters to detect any change."""
        clusters = len(np.unique(self._clusters))
        if clusters < LEAST_CLUSTERS:
            return None
        apart = self._resampled[after, name] - self._resampled[before, name]
        found = DETECTED * float(np.std(apart[np.isfinite(apart)]))
        # If very few rows differ, the standard error is useless. Six clusters that all improve are always significant.
        return max(found, LEAST_CLUSTERS / clusters) if name in SHARES or not found else found

    def _p_value(self, name: MetricName, was: Numbers, now: Numbers) -> float:
        before, after = exchanged(was, now, self._clusters.tolist(), self._seed)
        return _as_far(np.abs(value(name, after) - value(name, before)))


def _as_far(apart: Numbers) -> float:
    """Returns the share of the ways that differ at least as much as the first, which was measured. Differences that are
    not finite are left out."""
    known = apart[np.isfinite(apart)]
    return float(np.mean(known >= known[0] * (1 - 1e-9)))
