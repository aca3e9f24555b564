"""The rows of an epoch and their order, with and without weights."""

from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.handover.mixing import Mixture, rows_of_epoch

seeds = st.integers(0, 2**31 - 1)
epochs = st.integers(0, 5)
sources = st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 100)), min_size=1, max_size=5)
mixtures = sources.map(lambda pairs: Mixture(*(tuple(values) for values in zip(*pairs, strict=True))))


def sources_of(mixture: Mixture, rows: tuple[int, ...]) -> list[int]:
    ends = list(accumulate(mixture.sizes))
    return [next(source for source, end in enumerate(ends) if row < end) for row in rows]


def shares(mixture: Mixture) -> list[float]:
    assert mixture.weights is not None
    return [weight / sum(mixture.weights) for weight in mixture.weights]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), seeds, epochs)
def test_without_weights_an_epoch_uses_every_row_once(sizes: list[int], seed: int, epoch: int) -> None:
    assert sorted(rows_of_epoch(Mixture(tuple(sizes)), seed, epoch)) == list(range(sum(sizes)))


@given(mixtures, seeds, epochs)
def test_an_epoch_has_as_many_rows_as_all_sources_and_the_share_of_each_weight(
    mixture: Mixture, seed: int, epoch: int
) -> None:
    taken = Counter(sources_of(mixture, rows_of_epoch(mixture, seed, epoch)))
    assert taken.total() == mixture.rows
    for source, share in enumerate(shares(mixture)):
        assert abs(taken[source] - share * mixture.rows) < 1


@given(mixtures, seeds, epochs, st.data())
def test_any_part_of_an_epoch_has_nearly_the_shares_of_the_weights(
    mixture: Mixture, seed: int, epoch: int, data: st.DataObject
) -> None:
    order = sources_of(mixture, rows_of_epoch(mixture, seed, epoch))
    start = data.draw(st.integers(0, len(order) - 1))
    end = data.draw(st.integers(start, len(order)))
    taken = Counter(order[start:end])
    for source, count in enumerate(mixture.rows_per_epoch):
        assert abs(taken[source] - (end - start) * count / mixture.rows) <= len(mixture.sizes) + 1


def test_weights_of_80_and_20_give_every_step_of_10_rows_8_and_2() -> None:
    mixture = Mixture((900, 100), (0.8, 0.2))
    order = sources_of(mixture, rows_of_epoch(mixture, 0, 0))
    assert {tuple(sorted(Counter(order[start : start + 10]).items())) for start in range(0, 1000, 10)} == {
        ((0, 8), (1, 2))
    }


@given(mixtures, seeds, epochs)
def test_no_row_is_taken_again_before_all_others_of_its_source_were(mixture: Mixture, seed: int, last: int) -> None:
    taken: Counter[int] = Counter()
    for epoch in range(last + 1):
        taken.update(rows_of_epoch(mixture, seed, epoch))
    for start, size in zip(accumulate(mixture.sizes, initial=0), mixture.sizes, strict=False):
        counts = [taken[row] for row in range(start, start + size)]
        assert max(counts) - min(counts) <= 1


def test_a_small_source_repeats_and_a_large_one_is_spread_over_epochs() -> None:
    mixture = Mixture((90, 10), (1, 1))
    first, second = (rows_of_epoch(mixture, 3, epoch) for epoch in (0, 1))
    assert Counter(row for row in first if row >= 90) == dict.fromkeys(range(90, 100), 5)
    large = [row for row in (*first, *second) if row < 90]
    assert len(large) == 100
    assert len(set(large)) == 90


def test_the_order_depends_on_seed_and_epoch_alone_and_is_the_same_everywhere() -> None:
    mixture = Mixture((4, 2), (2, 1))
    assert rows_of_epoch(mixture, 0, 0) == (3, 5, 1, 2, 4, 0)
    assert rows_of_epoch(mixture, 0, 1) != rows_of_epoch(mixture, 1, 1)
    assert rows_of_epoch(Mixture((10,)), 0, 0) == (0, 4, 2, 3, 8, 7, 6, 9, 5, 1)


def test_a_weight_for_a_source_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="source 1"):
        rows_of_epoch(Mixture((5, 0), (1, 1)), 0, 0)
