"""The order in which an epoch takes the rows: a pure function of the seed and the epoch, with and without weights.

Without weights an epoch takes every row once. With weights it takes as many rows as there are in all sources together,
and of them each source's weight's share: a source that is small for its share repeats, one that is large is spread
over epochs, and no row of it is taken again before all the others were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import floor
from typing import Self

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.randomness import shuffled
from finetune_trainer.tokens.row_store import Example


@dataclass(frozen=True)
class Mixture:
    """The sources of the training rows, which stand in the sources' order: first all of the first source, and so on."""

    sizes: tuple[int, ...]
    """Rows of each source."""
    weights: tuple[float, ...] | None = None
    """Each source's weight; only their ratios matter. None: every row once an epoch, whatever its source."""

    @classmethod
    def of(cls, sources: NDArray[np.int64], weights: Sequence[float | None]) -> Self:
        """`sources`: the source of each training row, in their order, shape [rows]; `weights`: one a source."""
        sizes = np.bincount(sources, minlength=len(weights)).tolist()
        given = tuple(weight for weight in weights if weight is not None)
        return cls(tuple(sizes), given if len(given) == len(weights) else None)

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.sizes)

    @property
    def rows_per_epoch(self) -> tuple[int, ...]:
        """Rows an epoch takes of each source: its weight's share of all, rounded by largest remainders so that they add
        up. Raises ValueError where a source that is to be taken from has no row."""
        return self.sizes if self.weights is None else _apportioned(self.rows, self.weights, self.sizes)


@lru_cache(maxsize=2)
def rows_of_epoch(mixture: Mixture, seed: int, epoch: int) -> tuple[int, ...]:
    """Indices of the rows of epoch `epoch`, counted from 0, in the order they are taken. Weighted sources are spread
    evenly, so that any stretch of the epoch, and with it each step, holds nearly their shares."""
    if mixture.weights is None:
        return shuffled(mixture.rows, f"{seed}/{epoch}")
    places: list[tuple[float, int, int]] = []
    starts = accumulate(mixture.sizes, initial=0)
    for source, (start, size, taken) in enumerate(zip(starts, mixture.sizes, mixture.rows_per_epoch, strict=False)):
        for turn in range(taken):
            passes, position = divmod(epoch * taken + turn, size)
            row = start + shuffled(size, f"{seed}/{source}/{passes}")[position]
            places.append(((turn + 0.5) / taken, source, row))
    return tuple(row for _, _, row in sorted(places))


def _apportioned(rows: int, weights: Sequence[float], sizes: Sequence[int]) -> tuple[int, ...]:
    """`rows` divided by `weights`, by largest remainders (Hamilton's method)."""
    quotas = [rows * weight / sum(weights) for weight in weights]
    whole = [floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda source: whole[source] - quotas[source])
    for source in by_remainder[: rows - sum(whole)]:
        whole[source] += 1
    empty = next((source for source, size in enumerate(sizes) if whole[source] and not size), None)
    if empty is not None:
        raise ValueError(f"source {empty} has a weight and no row")
    return tuple(whole)


def draw_rows(examples: Sequence[Example], max_rows: int, seed: int) -> list[Example]:
    """At most `max_rows` of the held-out rows, drawn by `seed`, in their own order."""
    drawn = shuffled(len(examples), f"evaluation/{seed}")[:max_rows]
    return [examples[i] for i in sorted(drawn)]
