"""Which rows are held out."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.reasons import FailureReason
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.split import hold_out, rows_to_test

groups = st.lists(st.binary(min_size=1, max_size=2), min_size=2, max_size=300).filter(lambda keys: len(set(keys)) > 1)
shares = st.none() | st.floats(min_value=0.01, max_value=0.5)
seeds = st.integers(min_value=0, max_value=2**31 - 1)


@pytest.mark.parametrize(
    ("rows", "held"), [(2, 1), (10, 2), (100, 20), (500, 100), (2000, 200), (20_000, 1000), (10**6, 1000)]
)
def test_by_default_a_tenth_within_100_and_1000_but_never_over_a_fifth(rows: int, held: int) -> None:
    assert rows_to_test(rows, None) == held
    if rows <= 20_000:
        assert len(hold_out([b"%d" % n for n in range(rows)], None, 0)) == held


def test_a_share_is_taken_as_given() -> None:
    assert len(hold_out([b"%d" % n for n in range(1000)], 0.25, 0)) == 250


@given(keys=groups, share=shares, seed=seeds)
def test_equal_prompts_never_straddle_the_split_and_both_sides_get_rows(
    keys: list[bytes], share: float | None, seed: int
) -> None:
    held = hold_out(keys, share, seed)
    inside = {keys[index] for index in held}
    assert inside.isdisjoint(keys[index] for index in range(len(keys)) if index not in held)
    assert 0 < len(held) < len(keys)


@given(keys=groups, share=shares, seed=seeds)
def test_no_more_rows_are_held_out_than_asked_for_unless_every_group_is_larger(
    keys: list[bytes], share: float | None, seed: int
) -> None:
    wanted, smallest = rows_to_test(len(keys), share), min(Counter(keys).values())
    assert len(hold_out(keys, share, seed)) <= max(wanted, smallest)


@given(data=st.data(), keys=groups, share=shares, seed=seeds)
def test_the_draw_depends_on_seed_and_content_and_not_on_order(
    data: st.DataObject, keys: list[bytes], share: float | None, seed: int
) -> None:
    shuffled = data.draw(st.permutations(keys))
    held = {keys[index] for index in hold_out(keys, share, seed)}
    assert held == {shuffled[index] for index in hold_out(shuffled, share, seed)}


def test_another_seed_draws_other_rows() -> None:
    keys = [b"%d" % n for n in range(1000)]
    assert hold_out(keys, None, 0) != hold_out(keys, None, 1)


@pytest.mark.parametrize("keys", [[b"a"], [b"a"] * 50])
def test_one_prompt_alone_cannot_be_split(keys: list[bytes]) -> None:
    with pytest.raises(TrainerFailure, match=r"give more, or name dataset\.test") as caught:
        hold_out(keys, None, 0)
    assert caught.value.reason is FailureReason.DATASET_INVALID
