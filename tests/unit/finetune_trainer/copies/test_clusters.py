"""Which rows are joined, and how many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.copies.clusters import BANDS, RECALL, SMALLEST_CAP, Clusters, width_of_bands


@pytest.mark.parametrize("agreement", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_pairs_at_the_threshold_become_candidates_and_no_wider_band_would_do(agreement: float) -> None:
    def recall(width: int) -> float:
        return float(1 - (1 - agreement**width) ** BANDS)

    width = width_of_bands(agreement)
    assert recall(width) >= RECALL > recall(width + 1)


@given(st.integers(2, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=40))
def test_a_row_is_in_the_cluster_of_every_row_it_was_joined_with(rows: int, pairs: list[tuple[int, int]]) -> None:
    clusters = Clusters(rows)
    clusters.cap = rows
    pairs = [(first % rows, second % rows) for first, second in pairs]
    for first, second in pairs:
        clusters.join(first, second)
    roots = clusters.roots()
    assert all(roots[first] == roots[second] for first, second in pairs)
    assert all(root <= row and roots[root] == root for row, root in enumerate(roots)), "named by their first row"


def test_a_chain_of_likenesses_ends_at_the_cap() -> None:
    clusters = Clusters(100)
    bands = np.zeros((1, 100), dtype=np.uint32)
    clusters.join_alike(bands, lambda first, second: abs(first - second) == 1)
    assert np.bincount(clusters.roots()).max() == clusters.cap == SMALLEST_CAP
    assert clusters.crowded().all()


def test_clusters_under_the_cap_are_not_crowded() -> None:
    clusters = Clusters(100)
    clusters.join_alike(np.zeros((1, 100), dtype=np.uint32), lambda first, second: second - first == 1 == second % 2)
    assert not clusters.crowded().any()


def test_rows_with_equal_keys_are_joined_whatever_their_number() -> None:
    clusters = Clusters(100)
    clusters.join_equal(np.array([row % 2 for row in range(100)], dtype=np.uint64))
    assert set(clusters.roots().tolist()) == {0, 1}


def test_only_rows_that_share_a_band_are_compared() -> None:
    compared = []

    def alike(first: int, second: int) -> bool:
        compared.append((first, second))
        return True

    clusters = Clusters(4)
    clusters.join_alike(np.array([[1, 2, 1, 3], [5, 6, 5, 6]], dtype=np.uint32), alike)
    assert compared == [(0, 2), (1, 3)], "and a pair that is joined already is not compared again"
    assert clusters.roots().tolist() == [0, 1, 0, 1]
