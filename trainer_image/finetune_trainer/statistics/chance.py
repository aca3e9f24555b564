"""What the tuned model's answers score by chance: against the expected answers of other rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune_api.spec.evaluation import MetricName
from finetune_trainer.handover.prepared import Example
from finetune_trainer.metrics.values import row_statistics
from finetune_trainer.randomness import shuffled
from finetune_trainer.statistics.estimates import Scored

OTHER_ROWS = 10
"""Other rows whose expected answer each answer is held against."""


def pairings(rows: Sequence[Example], seed: int) -> list[tuple[list[int], list[int]]]:
    """Up to ten times every row that asks something with one of the same source and another cluster, as (rows, others);
    rows that find none are left out."""
    orders: dict[int, list[int]] = {}
    for row in shuffled(len(rows), f"chance/{seed}"):
        if rows[row].prompt:
            orders.setdefault(rows[row].mixture, []).append(row)
    found = []
    for shift in range(1, OTHER_ROWS + 1):
        both = [
            pair
            for order in orders.values()
            if shift < len(order)
            for pair in zip(order, (*order[shift:], *order[:shift]), strict=True)
        ]
        apart = sorted((row, other) for row, other in both if rows[row].cluster != rows[other].cluster)
        if apart:
            found.append(([row for row, _ in apart], [other for _, other in apart]))
    return found


def by_chance(
    name: MetricName,
    given: Sequence[str],
    expected: Sequence[str],
    pairings: Sequence[tuple[list[int], list[int]]],
    labels: Sequence[str],
) -> Scored:
    """What the answers score against the expected answers of other rows: what a model gets that has learned how
    answers look, and nothing about which belongs to which question. `pairings`: at least one.

    A row's statistics are those of its answer beside other rows' expected ones, and of others' answers beside its
    expected one, less their mean. The sum is the same as without the latter two, and what a row has in common with all
    others, such as a frequent label, no longer counts as a difference between its score and chance (Hajek's projection
    of a U-statistic: Hoeffding 1948)."""
    answered: NDArray[np.float64] | None = None
    for mine, others in pairings:
        part = row_statistics(name, [given[row] for row in mine], [expected[row] for row in others], labels)
        if answered is None:
            answered, asked = np.zeros((2, len(given), part.shape[1]))
        answered[mine] += part
        asked[others] += part
    assert answered is not None
    paired = np.unique([row for mine, _ in pairings for row in mine])
    asked[paired] -= answered.sum(axis=0) / len(paired)
    return Scored({name: answered + asked}, len(pairings))
