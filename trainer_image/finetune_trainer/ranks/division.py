"""Divides work among the ranks by its tokens, and puts the results together again."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from finetune_trainer.pod.rank import place
from finetune_trainer.ranks.group import together

T = TypeVar("T")


def shares(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Divides items among ranks so that each rank has about as many tokens. Returns the indices of the items of each
    rank, in order. `lengths`: tokens of each item.

    The longest item that is left goes to the rank with the fewest tokens (Graham 1969)."""
    found: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        rank = tokens.index(min(tokens))
        found[rank].append(item)
        tokens[rank] += lengths[item]
    return [sorted(items) for items in found]


def divided(lengths: Sequence[int], work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
    """Calls `work` on each rank with the indices of its items. Returns the results of all items in order, on every
    rank.

    `lengths`: tokens of each item. `work` returns one result for each of its items. Raises what `together` raises."""
    here = place()
    parts = shares(lengths, here.ranks)
    results = together(lambda: work(parts[here.rank]))
    found = {
        item: result for part, done in zip(parts, results, strict=True) for item, result in zip(part, done, strict=True)
    }
    return [found[item] for item in range(len(lengths))]
