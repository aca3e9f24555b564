"""Confidence intervals, bootstrap, and randomization tests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from finetune_trainer.statistics.intervals import RESAMPLES, exchanged, independent_rows, percentiles, resampled, wilson


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_is_scipys(rows: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, rows))
    reference = binomtest(hits, rows).proportion_ci(method="wilson")
    found = wilson(hits, rows)
    assert found == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert (found.low == 0) == (hits == 0)
    assert (found.high == 1) == (hits == rows)


def as_far(before: NDArray[np.float64], after: NDArray[np.float64], clusters: range | list[int]) -> float:
    """The p-value of the difference of means."""
    first, second = exchanged(before[:, None], after[:, None], clusters, seed=0)
    apart = np.abs(second - first)[:, 0]
    return float(np.mean(apart >= apart[0] - 1e-9))


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=40)
def test_on_right_and_wrong_answers_the_randomization_test_is_mcnemars_exact_test(gained: int, lost: int) -> None:
    before, after = np.repeat([0.0, 1.0, 1.0], [gained, lost, 9]), np.repeat([1.0, 0.0, 1.0], [gained, lost, 9])
    reference = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    exact = gained + lost <= 11
    assert as_far(before, after, range(len(before))) == pytest.approx(reference, abs=1e-9 if exact else 0.04)


def test_the_first_way_is_the_measured_one() -> None:
    before, after = np.random.default_rng(0).random((2, 40, 3))
    for rows in (8, 40):
        first, second = exchanged(before[:rows], after[:rows], range(rows), seed=0)
        assert first[0] == pytest.approx(before[:rows].sum(axis=0))
        assert second[0] == pytest.approx(after[:rows].sum(axis=0))
        assert first + second == pytest.approx(np.broadcast_to((before + after)[:rows].sum(axis=0), first.shape))


def test_copies_of_a_row_are_exchanged_together() -> None:
    before, after = np.zeros(40), np.ones(40)
    assert as_far(before, after, range(40)) < 0.001
    assert as_far(before, after, [row % 4 for row in range(40)]) == 2 / 2**4


@pytest.mark.parametrize("rows", [6, 8, 20])
def test_at_most_one_in_twenty_changes_is_called_significant_that_are_none(rows: int) -> None:
    drawn = np.random.default_rng(rows).normal(size=(400, rows))
    called = sum(as_far(np.zeros(rows), differences, range(rows)) < 0.05 for differences in drawn)
    assert called / 400 < 0.08


def test_identical_rows_count_as_one() -> None:
    generator = np.random.default_rng(0)
    hits = (generator.random(400) < 0.4).astype(float)
    assert independent_rows(hits, range(400)) == pytest.approx(400, rel=0.15)
    copied = np.repeat(hits[:40], 10)
    assert independent_rows(copied, np.repeat(range(40), 10).tolist()) == pytest.approx(40, rel=0.1)
    assert independent_rows(np.ones(400), np.repeat(range(40), 10).tolist()) == 40
    assert independent_rows(np.ones(1), [0]) == 1


def test_the_bootstrap_finds_the_spread_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    sums = resampled(np.stack([values, np.ones(400)], axis=1), range(400), seed=0)
    assert sums.shape == (RESAMPLES, 2)
    low, high = percentiles(sums[:, 0] / sums[:, 1])
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.05)


def test_copies_of_a_row_count_as_one_row() -> None:
    values = np.random.default_rng(0).normal(5, 2, 40)
    alone = resampled(np.stack([values, np.ones(40)], axis=1), range(40), seed=0)
    copied = resampled(np.stack([np.repeat(values, 10), np.ones(400)], axis=1), np.repeat(range(40), 10), seed=0)
    assert percentiles(copied[:, 0] / copied[:, 1]) == pytest.approx(percentiles(alone[:, 0] / alone[:, 1]))


def test_columns_of_one_call_are_paired() -> None:
    # Rows differ by a factor of 100, and each improved by 0.1. An unpaired test would not find this.
    before = np.arange(40.0) ** 2
    sums = resampled(np.stack([before, before - 0.1, np.ones(40)], axis=1), range(40), seed=0)
    assert percentiles((sums[:, 1] - sums[:, 0]) / sums[:, 2]) == pytest.approx((-0.1, -0.1))


def test_it_is_the_same_every_time() -> None:
    statistics = np.random.default_rng(0).random((30, 2))
    first, again, other = (resampled(statistics, range(30), seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_resamples_without_a_finite_value_are_left_out() -> None:
    assert percentiles(np.array([1.0, np.nan, 1.0])) == (1, 1)
    assert np.isnan(percentiles(np.array([np.nan]))).all()
