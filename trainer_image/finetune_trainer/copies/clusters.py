"""Groups of rows that are nearly the same: candidates that share a band key, verified, and joined with a cap.

A band key is a hash of a few numbers of a row's sketch. Rows that are alike are likely to agree in one of the bands
(locality-sensitive hashing). One band at a time is sorted, so that memory is a few bytes a row, and results depend on
the rows alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, pairwise
from math import log

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.pod.progress import Progress

BANDS = 16
RECALL = 0.98
"""Share of the pairs exactly at the threshold that become candidates in at least one band."""
PAIRED = 8
"""Rows with one band key of which every pair is looked at; of more, each is compared with the first and with the one
before it."""
SMALLEST_CAP, CAP_SHARE = 10, 0.02
"""Rows a cluster may have: chains of pairs, each alike, could else join most rows into one, and the split draws whole
clusters, a tenth of the rows by default: five of the largest fit."""


def width_of_bands(agreement: float) -> int:
    """The most numbers a band can be made of so that rows of which each number agrees with probability `agreement`
    still share one of the bands with probability RECALL (Leskovec et al., Mining of Massive Datasets, 3.4)."""
    needed = 1 - (1 - RECALL) ** (1 / BANDS)
    return max(1, int(log(needed) / log(agreement))) if agreement < 1 else 32


class Clusters:
    """Disjoint sets of rows, at first each row alone."""

    def __init__(self, rows: int) -> None:
        self._parent = np.arange(rows, dtype=np.int32)
        self._size = np.ones(rows, dtype=np.int32)
        self.cap = max(SMALLEST_CAP, int(rows * CAP_SHARE))
        self._full: set[int] = set()

    def root(self, row: int) -> int:
        """The first row of the cluster `row` is in."""
        parent = self._parent
        while (above := int(parent[row])) != row:
            parent[row] = parent[above]
            row = int(parent[row])
        return row

    def join(self, first: int, second: int, capped: bool = True) -> None:
        """Puts both rows' clusters together; where that would be more rows than the cap, only if not `capped`."""
        low, high = sorted((self.root(first), self.root(second)))
        if low == high:
            return
        if capped and self._size[low] + self._size[high] > self.cap:
            self._full |= {low, high}
            return
        self._parent[high] = low
        self._size[low] += self._size[high]

    def join_equal(self, keys: NDArray[np.uint64]) -> None:
        """Joins rows with equal keys, shape [rows], whatever their number."""
        for run in _runs(keys):
            for row in run[1:]:
                self.join(run[0], row, capped=False)

    def join_alike(self, bands: Iterable[NDArray[np.uint32]], alike: Callable[[int, int], bool]) -> None:
        """Joins the rows for which `alike` holds, of those with an equal key in one of `bands`, each of
        shape [rows]."""
        progress = Progress("Comparing rows", "bands")
        for keys in bands:
            for first, second in _candidates(keys):
                low, high = self.root(first), self.root(second)
                # What is joined already, or would be full clusters, need not be compared; two full ones are told of.
                if low == high or {low, high} <= self._full:
                    continue
                if alike(first, second):
                    self.join(first, second)
            progress.advance()

    def crowded(self) -> NDArray[np.bool_]:
        """Rows of clusters that another was not joined with because of the cap, though they are alike. Shape [rows]."""
        return np.isin(self.roots(), [self.root(row) for row in self._full])

    def roots(self) -> NDArray[np.int32]:
        """Each row's cluster, as the index of its first row. Shape [rows]."""
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
    """Rows, two or more, with the same key; in rising order."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    for index in np.flatnonzero(np.diff(starts) > 1):
        yield order[starts[index] : starts[index + 1]].tolist()
