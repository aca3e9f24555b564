"""Which rows are held out, to validate on while training and to test on in the end."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.randomness import ranks_of_groups

TEST_SHARE, TEST_AT_LEAST, TEST_AT_MOST = 0.1, 100, 1000
"""The default of `dataset.split.test`: a share of the rows, and its bounds in rows."""
VALIDATION_SHARE, VALIDATION_AT_LEAST, VALIDATION_AT_MOST = 0.05, 50, 500
"""The default of `dataset.split.validation`."""
NEVER_OVER = 0.2
"""The share of the rows that the defaults of both together never go over."""


def rows_to_test(rows: int, share: float | None) -> int:
    """How many of `rows` rows to test on: `share` of them, or by default a tenth within 100..1000, but never more than
    a fifth. At least one."""
    if share is not None:
        return max(1, round(rows * share))
    return max(1, min(max(round(rows * TEST_SHARE), TEST_AT_LEAST), TEST_AT_MOST, int(rows * NEVER_OVER)))


def rows_to_validate(rows: int, share: float | None, tested: int) -> int:
    """How many of `rows` rows to validate on, `tested` of which are to be tested on: `share` of them, or by default a
    twentieth within 50..500, but none where both together would be more than a fifth."""
    if share is not None:
        return max(1, round(rows * share)) if share else 0
    wanted = min(max(round(rows * VALIDATION_SHARE), VALIDATION_AT_LEAST), VALIDATION_AT_MOST)
    return wanted if wanted + tested <= rows * NEVER_OVER else 0


def hold_out(keys: NDArray[np.uint64], wanted: Sequence[int], seed: int) -> NDArray[np.int8]:
    """For each row 0 where it is to be learned from, or 1.. for the set of `wanted` rows it was drawn for. Rows with
    equal keys stay together. Which groups are drawn depends on the seed and the keys, never on the rows' order. A set
    of which every group is larger than what is wanted gets the smallest group.

    Raises TrainerFailure DatasetInvalid where there are not as many groups as sets, and one to learn from."""
    # Small numbers, and no inverse as np.unique has it: of ten million rows each array of 64 bits is 80 MB.
    order = np.argsort(keys)
    starts = np.flatnonzero(np.append(True, np.diff(keys[order]) != 0)[: len(keys)])
    found, sizes = keys[order[starts]], np.diff(starts, append=len(keys)).astype(np.int32)
    sets = [number for number, rows in enumerate(wanted, start=1) if rows]
    if len(found) <= len(sets):
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"{len(keys):,} usable row{'s' * (len(keys) != 1)} in {len(found)} group{'s' * (len(found) != 1)} that "
            "stay together (prompts that are alike, pieces of one text) cannot be split into rows to learn from and "
            f"{len(sets)} set{'s' * (len(sets) != 1)} to hold out: give more, or name dataset.test.",
        )
    side = np.zeros(len(found), dtype=np.int8)
    drawn = np.argsort(ranks_of_groups(found, seed))
    for position, number in enumerate(sets):
        # As many groups as there are sets still to come, and one to learn from, stay free.
        spare = int(np.count_nonzero(side == 0)) - (len(sets) - position)
        chosen = _fill(drawn[side[drawn] == 0], sizes, wanted[number - 1], spare)
        side[chosen] = number
    held = np.empty(len(keys), dtype=np.int8)
    held[order] = np.repeat(side, sizes)
    return held


def _fill(groups: NDArray[np.int64], sizes: NDArray[np.int32], wanted: int, spare: int) -> list[int]:
    """Those of `groups`, in order, that make up `wanted` rows at most; at most `spare` of them, at least one."""
    chosen: list[int] = []
    for group in groups:
        if sizes[group] <= wanted and len(chosen) < spare:
            chosen.append(int(group))
            wanted -= int(sizes[group])
        if not wanted:
            break
    return chosen or [int(groups[np.argmin(sizes[groups])])]
