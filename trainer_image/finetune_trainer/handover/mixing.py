"""Computes the order of the rows in an epoch. The order depends only on the seed, the epoch and the weights.

Without weights, an epoch uses every row once. With weights, an epoch has as many rows as all sources together, and each
source gets the share of its weight. The rows of a small source repeat within an epoch. The rows of a large source are
spread over several epochs. No row is used again before all other rows of its source were used.
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
    """The sources of the training rows. The rows are ordered by source: first all rows of the first source, and so
    on."""

    sizes: tuple[int, ...]
    """Rows of each source."""
    weights: tuple[float, ...] | None = None
    """Weight of each source. Only the ratios matter. None: every row is used once per epoch."""

    @classmethod
    def of(cls, sources: NDArray[np.int64], weights: Sequence[float | None]) -> Self:
        """Returns the mixture. `sources`: the source of each training row, shape [rows]. `weights`: one for each
        source."""
        sizes = np.bincount(sources, minlength=len(weights)).tolist()
        given = tuple(weight for weight in weights if weight is not None)
        return cls(tuple(sizes), given if len(given) == len(weights) else None)

    @property
    def rows(self) -> int:
        """Number of rows in an epoch."""
        return sum(self.sizes)

    @property
    def rows_per_epoch(self) -> tuple[int, ...]:
        """Number of rows of each source in an epoch: the share of its weight, rounded by the largest-remainder method
        so that the sum is `rows`. Raises ValueError when a source has a weight but no row."""
        return self.sizes if self.weights is None else _apportioned(self.rows, self.weights, self.sizes)


@lru_cache(maxsize=2)
def rows_of_epoch(mixture: Mixture, seed: int, epoch: int) -> tuple[int, ...]:
    """Returns the indices of the rows of epoch `epoch`, counted from 0, in order. Weighted sources are spread evenly,
    so each step contains nearly the share of each source."""
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
    """Returns `rows` divided in proportion to `weights`, by the largest-remainder (Hamilton) method."""
    quotas = [rows * weight / sum(weights) for weight in weights]
    whole = [floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda source: whole[source] - quotas[source])
    for source in by_remainder[: rows - sum(whole)]:
        whole[source] += 1
    empty = next((source for source, size in enumerate(sizes) if whole[source] and not size), None)
    if empty is not None:
        raise ValueError(f"source {empty} has a weight but no row")
    return tuple(whole)


def draw_rows(examples: Sequence[Example], max_rows: int, seed: int) -> list[Example]:
    """Returns at most `max_rows` of `examples`, drawn by `seed`, in their original order."""
    drawn = shuffled(len(examples), f"evaluation/{seed}")[:max_rows]
    return [examples[i] for i in sorted(drawn)]
