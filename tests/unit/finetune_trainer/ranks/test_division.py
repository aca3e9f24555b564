"""Work is divided among ranks: no item is lost, and each rank has about as many tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.ranks.division import divided, shares

lengths = st.lists(st.integers(1, 300), max_size=60)
ranks = st.integers(1, 16)


@given(lengths, ranks)
def test_every_item_goes_to_one_rank_in_the_order_of_the_items(lengths: list[int], ranks: int) -> None:
    found = shares(lengths, ranks)
    assert len(found) == ranks
    assert sorted(item for share in found for item in share) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in found)


@given(lengths.filter(bool), ranks)
def test_no_rank_has_more_than_the_longest_item_above_an_even_share(lengths: list[int], ranks: int) -> None:
    tokens = [sum(lengths[item] for item in share) for share in shares(lengths, ranks)]
    assert max(tokens) - min(tokens) <= max(lengths)


@pytest.mark.parametrize(
    ("lengths", "ranks", "tokens"),
    [([8] * 16, 4, [32, 32, 32, 32]), ([5, 1, 1, 1, 1, 1], 2, [5, 5]), ([7], 2, [7, 0]), ([], 3, [0, 0, 0])],
)
def test_tokens_are_even_where_they_can_be(lengths: list[int], ranks: int, tokens: list[int]) -> None:
    assert [sum(lengths[item] for item in share) for share in shares(lengths, ranks)] == tokens


def test_one_process_does_all_the_work() -> None:
    assert divided([3, 9, 4], lambda share: [10 * item for item in share]) == [0, 10, 20]
