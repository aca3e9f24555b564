"""What is known of models measured on the same rows: each metric's value with its interval, and the changes between."""

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
"""Metrics that are a share of rows, whose interval is Wilson's."""
DETECTED = 2.8
"""The normal distribution's 97.5% quantile and its 80% quantile, added."""
LEAST_CLUSTERS = 6
"""Clusters below which the randomization test calls no change certain: five that all differ have a p-value of 0.0625.
"""


@dataclass(frozen=True)
class MetricEstimate:
    """A metric of one model, with its 95% interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Change:
    """A metric of one model against another's on the same rows. Above zero is better, whatever the metric."""

    value: float
    interval: Interval
    """95%, by a paired bootstrap over clusters."""
    differing: int
    """Clusters on which the two are not the same."""
    p_value: float
    """How often models that nothing tells apart differ as much: a randomization test over clusters, two-sided. A
    bootstrap alone calls one in seven changes real that is none, at six clusters; one in ten at ten."""

    @property
    def sign(self) -> int:
        """1 or -1 where the change is beyond the noise, 0 where it is inside."""
        if self.p_value >= SIGNIFICANCE or not (self.interval.low > 0 or self.interval.high < 0):
            return 0
        return 1 if self.interval.low > 0 else -1


@dataclass(frozen=True, eq=False)
class Scored:
    """What one model adds up to, row by row."""

    statistics: Mapping[MetricName, Numbers]
    """For each metric an array of shape [rows, statistics], summed over the draws."""
    draws: int = 1
    """How often it answered every row."""

    def of_row(self, name: MetricName) -> Numbers:
        """The statistics of each row in the mean of the draws."""
        mean: Numbers = self.statistics[name] / self.draws
        return mean

    def part(self, rows: Sequence[int], names: Sequence[MetricName]) -> "Scored":
        """The same of some rows and of those of the metrics that there are."""
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
    """A model's scores, from its answers to all rows in each draw. `likelihoods`: summed loss and number of labels of
    each row, shape [rows, 2]; without it the metrics made of them are left out. `asking`: the rows that ask something,
    where not all do; the others count for no metric of answers."""
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
    """Models measured on the same rows, resampled together."""

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
        """The metric of that model; None where that model has none, or there is no row it can be taken of. Raises
        KeyError where no model has it."""
        if not any(name in found.statistics for found in self._models.values()):
            raise KeyError(name)
        if model not in self._models or name not in self._models[model].statistics:
            return None
        found = float(value(name, self._models[model].statistics[name].sum(axis=0)))
        if not np.isfinite(found):
            return None
        if name in SHARES:
            # Several answers to one row are one piece of evidence.
            rows = self._models[model].of_row(name)
            counted = rows[:, 1] > 0
            alone = independent_rows(rows[counted, 0], self._clusters[counted].tolist())
            return MetricEstimate(found, wilson(found * alone, alone))
        return MetricEstimate(found, percentiles(self._resampled[model, name]))

    def change(self, before: str, after: str, name: MetricName) -> Change | None:
        """The metric of `after` against that of `before`; None where one has none."""
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
        """By how much the change of `change` is larger on the rows of `part`, in which clusters are whole, than on the
        others; None where it cannot be taken on one of the two. `part`: shape [rows]. Its p_value is that of a
        permutation test: how often as many clusters, drawn without regard to `part`, are as far from the others."""
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
        """The least change that so many clusters would show in four of five cases: 2.8 standard errors, for a
        significance of 5% and a power of 80% (Bloom 1995, "Minimum detectable effects"). None where they could show
        none."""
        clusters = len(np.unique(self._clusters))
        if clusters < LEAST_CLUSTERS:
            return None
        apart = self._resampled[after, name] - self._resampled[before, name]
        found = DETECTED * float(np.std(apart[np.isfinite(apart)]))
        # Where hardly a row differs, the spread says nothing; six rows that are right and were wrong always show.
        return max(found, LEAST_CLUSTERS / clusters) if name in SHARES or not found else found

    def _p_value(self, name: MetricName, was: Numbers, now: Numbers) -> float:
        before, after = exchanged(was, now, self._clusters.tolist(), self._seed)
        return _as_far(np.abs(value(name, after) - value(name, before)))


def _as_far(apart: Numbers) -> float:
    """How many of the ways are as far apart as the first, which was measured; those that are no number left out."""
    known = apart[np.isfinite(apart)]
    return float(np.mean(known >= known[0] * (1 - 1e-9)))
