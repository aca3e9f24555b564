"""The rows of each step, and their packing into micro-batches."""

from collections import Counter
from math import inf

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.handover.mixing import Mixture
from finetune_trainer.model.batches import micro_batch, micro_batches, pack, rows_of_step, steps_per_epoch
from tests.unit.finetune_trainer.small_runs import example, examples

HUNDRED = Mixture((100,))
CPU = torch.device("cpu")
rows = st.integers(1, 200)
batch_sizes = st.integers(1, 64)
seeds = st.integers(0, 2**31 - 1)
lengths = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(rows, batch_sizes, seeds, st.integers(0, 3))
def test_every_epoch_uses_each_row_exactly_once(rows: int, batch: int, seed: int, epoch: int) -> None:
    steps = steps_per_epoch(rows, batch)
    taken = [row for step in range(steps) for row in rows_of_step(Mixture((rows,)), batch, seed, epoch * steps + step)]
    assert sorted(taken) == list(range(rows))


@given(rows, batch_sizes, seeds)
def test_every_step_but_an_epochs_last_is_full(rows: int, batch: int, seed: int) -> None:
    sizes = [len(rows_of_step(Mixture((rows,)), batch, seed, step)) for step in range(steps_per_epoch(rows, batch))]
    assert sizes[:-1] == [batch] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= batch


def test_a_steps_rows_depend_only_on_seed_epoch_and_step() -> None:
    assert rows_of_step(HUNDRED, 8, seed=7, step=5) == rows_of_step(HUNDRED, 8, seed=7, step=5)
    assert rows_of_step(HUNDRED, 8, seed=7, step=5) != rows_of_step(HUNDRED, 8, seed=8, step=5)
    assert rows_of_step(HUNDRED, 8, seed=7, step=0) != rows_of_step(HUNDRED, 8, seed=7, step=13), (
        "the next epoch's first step"
    )


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert rows_of_step(Mixture((10,)), 10, seed=0, step=0) == [0, 4, 2, 3, 8, 7, 6, 9, 5, 1]


@given(lengths, st.integers(1, 400))
def test_packing_puts_each_row_in_one_bin_within_the_limit(lengths: list[int], limit: int) -> None:
    bins = pack(lengths, limit, inf)
    assert Counter(item for items in bins for item in items) == Counter(range(len(lengths)))
    for items in bins:
        assert sum(lengths[item] for item in items) <= limit or len(items) == 1


@given(lengths, st.integers(300, 1000))
def test_packing_needs_few_bins(lengths: list[int], limit: int) -> None:
    fewest = -(-sum(lengths) // limit)
    assert len(pack(lengths, limit, inf)) <= 2 * fewest, "no two bins could be one"


@given(lengths, st.integers(1, 400), st.integers(0, 300))
def test_an_item_that_must_not_share_is_alone(lengths: list[int], limit: int, longest: int) -> None:
    bins = pack(lengths, limit, longest)
    assert Counter(item for items in bins for item in items) == Counter(range(len(lengths)))
    for items in bins:
        assert max(lengths[item] for item in items) <= longest or len(items) == 1


def test_documents_are_concatenated_and_positions_restart_at_zero() -> None:
    first, second = example(5, 2, seed=1), example(3, 1, seed=2)
    batch = micro_batch([first, second], CPU)
    assert batch.input_ids.tolist() == [[*first.input_ids, *second.input_ids]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.document_lengths == (5, 3)


def test_a_label_is_the_learned_token_after_its_position() -> None:
    first, second = example(5, 2, seed=1), example(3, 1, seed=2)
    batch = micro_batch([first, second], CPU)
    assert batch.label_positions.tolist() == [2, 3, 6]
    assert batch.labels.tolist() == [first.input_ids[3], first.input_ids[4], second.input_ids[2]]
    assert batch.label_documents.tolist() == [0, 0, 1]


def test_the_first_token_of_a_document_is_no_label() -> None:
    wholly_learned = example(4, 4, seed=1)
    batch = micro_batch([wholly_learned, wholly_learned], CPU)
    assert batch.label_positions.tolist() == [0, 1, 2, 4, 5, 6]
    assert wholly_learned.supervised.all(), "the rows themselves stay as they are"


def test_micro_batches_contain_every_learned_token_once() -> None:
    rows = examples([40, 10, 25, 90, 5])
    batches = micro_batches(rows, 50, inf, CPU)
    assert sum(len(batch.labels) for batch in batches) == sum(int(row.supervised.sum()) for row in rows)
    assert sorted(np.concatenate([batch.document_lengths for batch in batches])) == [5, 10, 25, 40, 90]
    assert sorted(np.concatenate([batch.places for batch in batches])) == [0, 1, 2, 3, 4]
    for batch in batches:
        assert [len(rows[place].input_ids) for place in batch.places] == list(batch.document_lengths)
