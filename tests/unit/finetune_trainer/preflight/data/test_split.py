"""The choice of held-out rows."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.data.split import hold_out, rows_to_test, rows_to_validate

groups = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9), min_size=3, max_size=300).filter(
    lambda keys: len(set(keys)) > 2
)
shares = st.none() | st.floats(min_value=0.01, max_value=0.5)
seeds = st.integers(min_value=0, max_value=2**31 - 1)


def held(keys: list[int], wanted: list[int], seed: int) -> list[set[int]]:
    """The keys of each side: those to learn from, then those of each set."""
    sides = hold_out(np.array(keys, dtype=np.uint64), wanted, seed)
    return [{keys[row] for row in np.flatnonzero(sides == side)} for side in range(len(wanted) + 1)]


@pytest.mark.parametrize(
    ("rows", "tested", "validated"),
    [
        (2, 1, 0),
        (10, 2, 0),
        (100, 20, 0),
        (500, 100, 0),
        (749, 100, 0),
        (750, 100, 50),
        (2000, 200, 100),
        (20_000, 1000, 500),
        (10**6, 1000, 500),
    ],
)
def test_by_default_a_tenth_to_test_and_a_twentieth_to_validate_within_bounds_and_never_over_a_fifth(
    rows: int, tested: int, validated: int
) -> None:
    assert rows_to_test(rows, None) == tested
    assert rows_to_validate(rows, None, tested) == validated
    if rows <= 20_000:
        sides = hold_out(np.arange(rows, dtype=np.uint64), [tested, validated], 0)
        assert np.bincount(sides, minlength=3).tolist() == [rows - tested - validated, tested, validated]


def test_small_training_sets_get_validation_rows_if_the_test_rows_are_named() -> None:
    assert (rows_to_validate(249, None, 0), rows_to_validate(250, None, 0)) == (0, 50)


def test_a_share_is_taken_as_given() -> None:
    assert rows_to_test(1000, 0.25) == 250
    assert [rows_to_validate(1000, share, 500) for share in (0.25, 0.0)] == [250, 0]


@given(keys=groups, test=shares, validation=shares, seed=seeds)
def test_equal_prompts_never_straddle_the_split_and_every_side_gets_rows(
    keys: list[int], test: float | None, validation: float | None, seed: int
) -> None:
    wanted = [rows_to_test(len(keys), test), rows_to_validate(len(keys), validation or 0.1, 0)]
    sides = held(keys, wanted, seed)
    assert sum(len(side) for side in sides) == len(set(keys))
    assert all(sides)


@given(keys=groups, share=shares, seed=seeds)
def test_no_more_rows_are_held_out_than_asked_for_unless_every_group_is_larger(
    keys: list[int], share: float | None, seed: int
) -> None:
    wanted, smallest = rows_to_test(len(keys), share), min(Counter(keys).values())
    sides = hold_out(np.array(keys, dtype=np.uint64), [wanted], seed)
    assert np.count_nonzero(sides) <= max(wanted, smallest)


@given(data=st.data(), keys=groups, share=shares, seed=seeds)
def test_the_draw_depends_on_seed_and_content_and_not_on_order(
    data: st.DataObject, keys: list[int], share: float | None, seed: int
) -> None:
    wanted = [rows_to_test(len(keys), share), 1]
    assert held(keys, wanted, seed) == held(data.draw(st.permutations(keys)), wanted, seed)


def test_another_seed_draws_other_rows() -> None:
    keys = list(range(1000))
    assert held(keys, [100], 0) != held(keys, [100], 1)


@pytest.mark.parametrize("keys", [[1], [1] * 50])
def test_one_prompt_alone_cannot_be_split(keys: list[int]) -> None:
    said = r"in 1 group of .* pieces of one text\. .* and 1 held-out set need at least 2 groups\. Add rows, "
    said += r"or set spec\.dataset\.test"
    with pytest.raises(TrainerFailure, match=said) as caught:
        held(keys, [1], 0)
    assert caught.value.reason is FailureReason.DATASET_INVALID


def test_all_rows_are_training_rows_if_the_other_sets_are_named() -> None:
    assert held([1, 1], [0, 0], 0) == [{1}, set(), set()]
