"""What is drawn at random: always the same numbers, since a job that goes on has to draw what it drew before."""

import numpy as np
import pytest

from finetune_trainer.handover.mixing import Mixture, rows_of_epoch
from finetune_trainer.preflight.data.split import hold_out
from finetune_trainer.randomness import (
    bootstrap_counts,
    few_of_many,
    permuted,
    random_signs,
    ranks_of_groups,
    shuffled,
)
from finetune_trainer.statistics.intervals import exchanged, reassigned, resampled

# The numbers below were recorded when each draw still stood in the module that uses it.


def test_ranks_of_groups_are_those_of_splitmix64() -> None:
    # The generator's reference output for the seed 1234567 (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64).
    assert ranks_of_groups(np.array([1234567], dtype=np.uint64), 0).tolist() == [6457827717110365317]
    assert ranks_of_groups(np.array([0, 1, 2**64 - 1], dtype=np.uint64), 42).tolist() == [
        0x7DC930B302278A8,
        0x3C821FBF59108163,
        0xBE2AF7DE053863B,
    ]


def test_the_split_draws_what_it_always_drew() -> None:
    held = hold_out(np.arange(20, dtype=np.uint64), [3, 2], 42).tolist()
    assert held == [2, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]


def test_the_order_of_the_rows_in_an_epoch_never_changes() -> None:
    assert shuffled(10, "42/0") == rows_of_epoch(Mixture((6, 4)), 42, 0) == (2, 9, 0, 5, 8, 7, 1, 6, 3, 4)
    assert rows_of_epoch(Mixture((6, 3), (1.0, 2.0)), 42, 1) == (8, 2, 7, 6, 5, 6, 7, 0, 8)


def test_held_out_rows_are_drawn_as_they_always_were() -> None:
    assert shuffled(8, "evaluation/7") == (4, 3, 0, 1, 6, 2, 7, 5)


def test_few_shot_examples_are_drawn_as_they_always_were() -> None:
    assert few_of_many(10**6, 6, "few-shot/0/1") == [454269, 966937, 203946, 454703, 98105, 22201]
    assert few_of_many(12, 5, "few-shot/0/1") == [4, 6, 5, 3, 10]


def test_of_a_large_data_set_a_few_rows_are_looked_at() -> None:
    found = few_of_many(10**9, 1000, "seed")
    assert len(found) == len(set(found)) == 1000
    assert max(found) > 9 * 10**8
    assert found != few_of_many(10**9, 1000, "other")
    assert sorted(few_of_many(50, 1000, "seed")) == list(range(50))


def test_intervals_and_tests_draw_what_they_always_drew() -> None:
    before, part = np.arange(20.0)[:, None], np.arange(20) < 6
    first, second = exchanged(before, before[::-1] ** 1.5, range(20), 42)
    assert first[:4, 0].tolist() == pytest.approx([190.0, 321.661816, 312.120218, 378.269735], abs=1e-6)
    assert (second.sum(), weighted(first)) == pytest.approx((852095.8316, 872218459.373), abs=1e-3)
    inside, _ = reassigned(before, range(20), part, 42)
    assert inside[:6, 0].tolist() == [15, 74, 57, 78, 51, 60]
    assert weighted(inside) == 115071174
    sums = resampled(before, range(20), 42)
    assert sums[:6, 0].tolist() == [164, 169, 199, 224, 210, 180]
    assert weighted(sums) == 380768982


def weighted(sums: np.ndarray) -> float:
    """A number that any other draw, and any other order of the draws, would change."""
    return float(sums[:, 0] @ np.arange(len(sums)))


@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_as_many_samples_as_asked_for(count: int) -> None:
    values = np.array([[1.0, 0.0, 0.0]])
    signs, orders, counts = (
        np.vstack(list(parts))
        for parts in (random_signs(3, count, 0), permuted(values, count, 0), bootstrap_counts(3, count, 0))
    )
    assert signs.shape == orders.shape == counts.shape == (count, 3)
    assert set(np.unique(signs)) <= {-1.0, 1.0}
    assert (np.sort(orders) == np.sort(values)).all()
    assert (counts.sum(axis=1) == 3).all()
