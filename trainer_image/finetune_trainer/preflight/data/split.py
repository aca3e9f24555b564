"""Chooses the validation rows and the test rows, and gives every side its rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_api.spec.dataset import Split
from finetune_trainer.handover.prepared import SIDES, Side
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.preflight.data.gather import Gathered
from finetune_trainer.randomness import ranks_of_groups
from finetune_trainer.tokens.row_store import PLACED, Rows

TEST_SHARE, TEST_AT_LEAST, TEST_AT_MOST = 0.1, 100, 1000
"""The default of `dataset.split.test`: a share of the rows, and its limits in rows."""
VALIDATION_SHARE, VALIDATION_AT_LEAST, VALIDATION_AT_MOST = 0.05, 50, 500
"""The default of `dataset.split.validation`."""
NEVER_OVER = 0.2
"""The largest share of the rows that the two defaults together hold out."""


def split_rows(gathered: Gathered, wish: Split) -> dict[Side, Rows]:
    """Returns the rows of each side in the order of the sources, with their clusters. Validation and test rows that no
    source provides are drawn from the training rows. Raises TrainerFailure as `hold_out` does."""
    phase("splitting the rows")
    store, sides = gathered.store, dict(gathered.sides)
    groups = gathered.alike.groups
    clusters = np.unique(groups, return_inverse=True)[1].astype(np.int32)
    train = sides["train"]
    tested = 0 if len(sides["test"]) else rows_to_test(len(train), wish.test)
    validated = 0 if len(sides["validation"]) else rows_to_validate(len(train), wish.validation, tested)
    held = hold_out(groups[train], [tested, validated], wish.seed)
    drawn = {"train": train[held == 0], "test": train[held == 1], "validation": train[held == 2]}
    placed: dict[Side, Rows] = {}
    for side in SIDES:
        rows = sides[side] if side != "train" and len(sides[side]) else drawn[side]
        array = np.zeros(len(rows), PLACED)
        array["row"], array["cluster"] = rows, clusters[rows]
        placed[side] = Rows(store, array)
    return placed


def rows_to_test(rows: int, share: float | None) -> int:
    """Returns the number of test rows: `share` of `rows`, or by default a tenth of `rows`, at least 100 and at most
    1000, but at most a fifth of `rows`. The result is at least 1."""
    if share is not None:
        return max(1, round(rows * share))
    return max(1, min(max(round(rows * TEST_SHARE), TEST_AT_LEAST), TEST_AT_MOST, int(rows * NEVER_OVER)))


def rows_to_validate(rows: int, share: float | None, tested: int) -> int:
    """Returns the number of validation rows: `share` of `rows`, or by default a twentieth of `rows`, at least 50 and at
    most 500. The default is 0 when validation and test rows together would be more than a fifth of `rows`. `tested`:
    the number of test rows."""
    if share is not None:
        return max(1, round(rows * share)) if share else 0
    wanted = min(max(round(rows * VALIDATION_SHARE), VALIDATION_AT_LEAST), VALIDATION_AT_MOST)
    return wanted if wanted + tested <= rows * NEVER_OVER else 0


def hold_out(keys: NDArray[np.uint64], wanted: Sequence[int], seed: int) -> NDArray[np.int8]:
    """Assigns each row to a set. Returns 0 for a training row and N for a row of the Nth held-out set. Shape [rows].

    `keys`: the group of each row. Rows of one group stay in one set. `wanted`: the number of rows of each held-out set.
    The choice depends on `seed` and the keys only, and not on the order of the rows. A set for which every group is too
    large gets the smallest group.

    Raises TrainerFailure DatasetInvalid when there is no group for each held-out set and one for the training rows."""
    # Small integers, and not the inverse of np.unique: for ten million rows, each array of 64-bit numbers needs 80 MB.
    order = np.argsort(keys)
    starts = np.flatnonzero(np.append(True, np.diff(keys[order]) != 0)[: len(keys)])
    found, sizes = keys[order[starts]], np.diff(starts, append=len(keys)).astype(np.int32)
    sets = [number for number, rows in enumerate(wanted, start=1) if rows]
    if len(found) <= len(sets):
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"The number of usable rows is {len(keys):,}, in {len(found)} group{'s' * (len(found) != 1)} of rows with "
            "similar prompts or pieces of one text. A group is not split, so training rows and "
            f"{len(sets)} held-out set{'s' * (len(sets) != 1)} need at least {len(sets) + 1} groups.",
            "Add rows, or set spec.dataset.test.",
        )
    side = np.zeros(len(found), dtype=np.int8)
    drawn = np.argsort(ranks_of_groups(found, seed))
    for position, number in enumerate(sets):
        # One group for each remaining set, and one for the training rows, must stay free.
        spare = int(np.count_nonzero(side == 0)) - (len(sets) - position)
        chosen = _fill(drawn[side[drawn] == 0], sizes, wanted[number - 1], spare)
        side[chosen] = number
    held = np.empty(len(keys), dtype=np.int8)
    held[order] = np.repeat(side, sizes)
    return held


def _fill(groups: NDArray[np.int64], sizes: NDArray[np.int32], wanted: int, spare: int) -> list[int]:
    """Returns at least one and at most `spare` of `groups`, in order, with at most `wanted` rows together."""
    chosen: list[int] = []
    for group in groups:
        if sizes[group] <= wanted and len(chosen) < spare:
            chosen.append(int(group))
            wanted -= int(sizes[group])
        if not wanted:
            break
    return chosen or [int(groups[np.argmin(sizes[groups])])]
