"""How sure a number is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from finetune_trainer.intervals import RESAMPLES, mcnemar, percentiles, resampled, wilson


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_is_scipys(rows: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, rows))
    reference = binomtest(hits, rows).proportion_ci(method="wilson")
    assert wilson(hits, rows) == pytest.approx((reference.low, reference.high), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_test_is_scipys_exact_one(gained: int, lost: int) -> None:
    reference = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == pytest.approx(reference)


def test_the_bootstrap_finds_the_spread_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    sums = resampled(np.stack([values, np.ones(400)], axis=1), range(400), seed=0)
    assert sums.shape == (RESAMPLES, 2)
    low, high = percentiles(sums[:, 0] / sums[:, 1])
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.05)


def test_copies_of_a_row_are_worth_one_row() -> None:
    values = np.random.default_rng(0).normal(5, 2, 40)
    alone = resampled(np.stack([values, np.ones(40)], axis=1), range(40), seed=0)
    copied = resampled(np.stack([np.repeat(values, 10), np.ones(400)], axis=1), np.repeat(range(40), 10), seed=0)
    assert percentiles(copied[:, 0] / copied[:, 1]) == pytest.approx(percentiles(alone[:, 0] / alone[:, 1]))


def test_what_stands_side_by_side_is_paired() -> None:
    # Rows differ a hundredfold, but every one got better by 0.1: unpaired, that would drown.
    before = np.arange(40.0) ** 2
    sums = resampled(np.stack([before, before - 0.1, np.ones(40)], axis=1), range(40), seed=0)
    assert percentiles((sums[:, 1] - sums[:, 0]) / sums[:, 2]) == pytest.approx((-0.1, -0.1))


def test_it_is_the_same_every_time() -> None:
    statistics = np.random.default_rng(0).random((30, 2))
    first, again, other = (resampled(statistics, range(30), seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_resamples_that_give_no_number_are_left_out() -> None:
    assert percentiles(np.array([1.0, np.nan, 1.0])) == (1, 1)
    assert np.isnan(percentiles(np.array([np.nan]))).all()
