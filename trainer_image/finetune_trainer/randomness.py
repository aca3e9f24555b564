"""Everything that is drawn at random outside torch, each draw a function named after its purpose.

Rows are drawn by hashes and not by a library's generator, so that no new version of a library draws other rows. Draws
that only estimate a figure come from NumPy's generator. Random numbers on tensors, those of dropout, are in
`model.layers.philox` and `model.layers.document_dropout`. The adapter's first weights are PEFT's own draw, seeded in
`model.parameters.trainable`.
"""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 64
"""Samples drawn at a time, which bounds the memory whatever the number of rows."""


def ranks_of_groups(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """For the split: a random number for each key, different for different keys. Shape [keys]. The numbers are those of
    SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        mix = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mix = (mix ^ (mix >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mix = (mix ^ (mix >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mix ^ (mix >> np.uint64(31))


@lru_cache(maxsize=4)
def shuffled(rows: int, seed: str) -> tuple[int, ...]:
    """For epochs, samples and pairings: the indices 0..rows-1 in random order. `seed` names the purpose too, so that no
    two purposes share an order."""
    return tuple(sorted(range(rows), key=lambda row: _digest(seed, row)))


def few_of_many(rows: int, most: int, seed: str) -> list[int]:
    """For few-shot examples: up to `most` of the indices 0..rows-1 in random order, each once, without ordering all of
    a large data set. `seed` names the purpose too."""
    if rows <= 10 * most:
        return list(shuffled(rows, seed)[:most])
    return list(dict.fromkeys(int.from_bytes(_digest(seed, number), "big") % rows for number in range(most)))


def _digest(seed: str, number: int) -> bytes:
    return blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()


def random_signs(clusters: int, count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """For the randomization test: `count` samples of a sign, 1 or -1, for each cluster, as parts of shape [samples,
    clusters]."""
    generator = np.random.default_rng(seed)
    return (generator.integers(0, 2, (size, clusters), np.int8) * 2.0 - 1 for size in _sizes(count))


def permuted(values: NDArray[np.float64], count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """For the permutation test: `count` times `values`, of shape [1, clusters], in random order, as parts of shape
    [samples, clusters]."""
    generator = np.random.default_rng(seed)
    return (generator.permuted(np.repeat(values, size, axis=0), axis=1) for size in _sizes(count))


def bootstrap_counts(clusters: int, count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """For the bootstrap: how often each cluster stands in each of `count` samples with replacement, as parts of shape
    [samples, clusters]. A sample is of as many clusters as there are."""
    generator, even = np.random.default_rng(seed), np.full(clusters, 1 / clusters)
    return (generator.multinomial(clusters, even, size=size) for size in _sizes(count))


def _sizes(count: int) -> list[int]:
    return [min(_AT_ONCE, count - done) for done in range(0, count, _AT_ONCE)]
