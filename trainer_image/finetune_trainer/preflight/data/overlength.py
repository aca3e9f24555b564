"""Drops the rows that have more tokens than a row may have."""

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_api.spec.dataset import Overlength
from finetune_api.spec.job import FineTuneJobSpec
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.data.gather import Gathered
from finetune_trainer.sources.findings import Findings, place_of
from finetune_trainer.tokens.row_store import RowStore


def drop_overlong(
    gathered: Gathered, spec: FineTuneJobSpec, limit: int, context: int | None, findings: Findings
) -> None:
    """Keeps the rows of each side that have at most `limit` tokens. `context`: the model's context length.

    Raises TrainerFailure DatasetInvalid when no row of a side is left, or when a row is too long and
    spec.dataset.overlength is Fail."""
    bound = _bound(limit, spec.training.max_sequence_length, context)
    for side, rows in gathered.sides.items():
        field, policy = f"spec.dataset.{side}", spec.dataset.overlength
        gathered.sides[side] = _within(limit, bound, gathered.store, rows, field, policy, findings)


def _bound(limit: int, asked: int | None, context: int | None) -> tuple[str, str]:
    """Returns a sentence that names the limit on the length of a row, and how to raise it: "" where it cannot be
    raised."""
    if limit == context:
        return f"The model's context length is {limit:,} tokens.", ""
    return (
        f"spec.training.maxSequenceLength is {limit:,}{'' if asked else ' by default'}.",
        "raise spec.training.maxSequenceLength",
    )


def _within(
    limit: int,
    bound: tuple[str, str],
    store: RowStore,
    rows: NDArray[np.int64],
    field: str,
    policy: Overlength,
    findings: Findings,
) -> NDArray[np.int64]:
    """Returns those of `rows` that have at most `limit` tokens. `bound`: the result of `_bound`. Raises TrainerFailure
    DatasetInvalid when no row is left, or when a row is too long and `policy` is Fail."""
    over = store.column("tokens")[rows] > limit
    kept, dropped = rows[~over], rows[over]
    findings.overlength += len(dropped)
    if len(dropped) and (policy is Overlength.FAIL or not len(kept)):
        first = store.example(int(dropped[0]))
        many = len(dropped) > 1
        more = f" (one of {len(dropped):,} rows of {field} that are too long)" if many else ""
        found, longer = bound
        drop = "set spec.dataset.overlength to Drop" if len(kept) else ""
        ways = ", or ".join(way for way in (longer, f"shorten the row{'s' * many}", drop) if way)
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"{place_of(first.place)} has {len(first.input_ids):,} tokens{more}. {found}"
            f"{'' if len(kept) else ' No row is left.'}",
            f"{ways[0].upper()}{ways[1:]}.",
        )
    return kept
