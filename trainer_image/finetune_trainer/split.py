"""Which rows are held out for the evaluation."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b

from finetune_api.reasons import FailureReason
from finetune_trainer.failure import TrainerFailure

SHARE, AT_LEAST, AT_MOST, NEVER_OVER = 0.1, 100, 1000, 0.2
"""The default of `dataset.split.test`: a share of the rows, its bounds in rows, and the share it never goes over."""


def rows_to_test(rows: int, share: float | None) -> int:
    """How many of `rows` rows to hold out: `share` of them, or by default a tenth within 100..1000, but never more than
    a fifth. At least one."""
    if share is not None:
        return max(1, round(rows * share))
    return max(1, min(max(round(rows * SHARE), AT_LEAST), AT_MOST, int(rows * NEVER_OVER)))


def hold_out(keys: Sequence[bytes], share: float | None, seed: int) -> set[int]:
    """Indices of the rows to hold out. Rows with equal keys stay together. Which groups are drawn depends on the seed
    and the keys, never on the rows' order.

    Raises TrainerFailure DatasetInvalid where not both sides can get a row."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    if len(groups) < 2:
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"{len(keys)} usable row{'s' * (len(keys) != 1)} with {len(groups)} different prompt"
            f"{'s' * (len(groups) != 1)} cannot be split into rows to learn from and rows to test on: give more, or "
            "name dataset.test.",
        )
    wanted = rows_to_test(len(keys), share)
    drawn = sorted(groups, key=lambda key: blake2b(b"%d/" % seed + key, digest_size=16).digest())
    held: set[int] = set()
    for key in drawn:
        if len(held) + len(groups[key]) <= wanted:
            held.update(groups[key])
    # Every group is larger than what was asked for: the smallest is the nearest to it.
    return held or set(groups[min(drawn, key=lambda key: len(groups[key]))])
