"""Groups near-duplicates: rows with the same band key are candidates, and verified pairs are joined up to a limit.

A band key is a hash of a few numbers of a row's sketch. Similar rows probably have the same key in one of the bands
(locality-sensitive hashing). Only one band is sorted at a time, so memory is a few bytes per row. The result depends
only on the rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, pairwise
from math import log

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.pod.liveness.heartbeat import attended
from finetune_trainer.pod.progress import Progress

BANDS = 16
RECALL = 0.98
"""Share of the pairs exactly at the threshold that become candidates in at least one band (recall)."""
PAIRED = 8
"""Up to this number of rows with the same band key, every pair is compared. Of more rows, each is compared with the
first row and with the row before it."""
SMALLEST_CAP, CAP_SHARE = 10, 0.02
"""The limit of a cluster: this number of rows, or this share of all rows if that is more. Without a limit, chains of
similar pairs could join most rows. The split draws whole clusters, by default a tenth of the rows, so five of the
largest clusters fit into the test set."""


def width_of_bands(agreement: float) -> int:
    """Returns the most numbers per band with which a pair still shares a band with probability RECALL, if each number
    of the pair is equal with probability `agreement` (Leskovec et al., Mining of Massive Datasets, 3.4)."""
    needed = 1 - (1 - RECALL) ** (1 / BANDS)
    return max(1, int(log(needed) / log(agreement))) if agreement < 1 else 32


class Clusters:
    """Disjoint sets of rows. At first, each row is a separate set."""

    def __init__(self, rows: int) -> None:
        self._parent = np.arange(rows, dtype=np.int32)
        self._size = np.ones(rows, dtype=np.int32)
        self.cap = max(SMALLEST_CAP, int(rows * CAP_SHARE))
        self._full: set[int] = set()

    def root(self, row: int) -> int:
        """Returns the first row of the cluster that contains `row`."""
        parent = self._parent
        while (above := int(parent[row])) != row:
            parent[row] = parent[above]
            row = int(parent[row])
        return row

    def join(self, first: int, second: int, capped: bool = True) -> None:
        """Joins the clusters of both rows. If `capped`, does not join them if the result would be over the limit."""
        low, high = sorted((self.root(first), self.root(second)))
        if low == high:
            return
        if capped and self._size[low] + self._size[high] > self.cap:
            self._full |= {low, high}
            return
        self._parent[high] = low
        self._size[low] += self._size[high]

    def join_equal(self, keys: NDArray[np.uint64]) -> None:
        """Joins rows with equal keys, shape [rows], without the limit."""
        for run in attended(_runs(keys)):
            for row in run[1:]:
                self.join(run[0], row, capped=False)

    def join_alike(self, bands: Iterable[NDArray[np.uint32]], alike: Callable[[int, int], bool]) -> None:
        """Joins the pairs of rows that have an equal key in one of `bands` and for which `alike` returns True. Each
        band has the shape [rows]."""
        progress = Progress("Comparing rows", "bands")
        for keys in bands:
            for first, second in attended(_candidates(keys)):
                low, high = self.root(first), self.root(second)
                # Rows in the same cluster, or in two full ones (which are already recorded), need no comparison.
                if low == high or {low, high} <= self._full:
                    continue
                if alike(first, second):
                    self.join(first, second)
            progress.advance()

    def crowded(self) -> NDArray[np.bool_]:
        """Returns the rows of clusters that were not joined with a similar one because of the limit. Shape [rows]."""
        return np.isin(self.roots(), [self.root(row) for row in self._full])

    def roots(self) -> NDArray[np.int32]:
        """Returns the cluster of each row, as the index of the cluster's first row. Shape [rows]."""
        roots = self._parent
        while not np.array_equal(above := roots[roots], roots):
            roots = above
        return roots


def _candidates(keys: NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    for run in _runs(keys):
        if len(run) <= PAIRED:
            yield from combinations(run, 2)
        else:
            yield from ((run[0], row) for row in run[1:])
            yield from pairwise(run[1:])


def _runs(keys: NDArray[np.uint32] | NDArray[np.uint64]) -> Iterator[Sequence[int]]:
    """Yields every two or more rows with the same key, in ascending order."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    for index in np.flatnonzero(np.diff(starts) > 1):
        yield order[starts[index] : starts[index + 1]].tolist()
