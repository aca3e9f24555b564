"""How far attempts came, and how many interruptions in a row brought their job no further.

The status lists the last attempts only. What decisions need of earlier ones is in status.counts."""

from collections.abc import Iterable, Sequence

from finetune_api.reasons import FAILURES, FailureReason, Retry
from finetune_api.status.attempts import Attempt, Counts, Reach

STAGES = ("Training", "Evaluating", "Publishing")
"""Parts of an attempt's work, in their order."""


def retry_of(record: Attempt) -> Retry | None:
    """Return how the end of this attempt is retried; None if it did not fail, or was stopped by the operator."""
    return FAILURES[FailureReason(record.reason)].retry if record.reason in set(FailureReason) else None


def was_stopped(record: Attempt) -> bool:
    """Whether an attempt that ended without success was stopped for what the spec said then: the job goes on when the
    spec is changed. Also at its deadline, which can be raised until the job has failed."""
    return record.reason not in set(FailureReason) or record.reason == FailureReason.DEADLINE_EXCEEDED


def is_before_first_step(record: Attempt) -> bool:
    """Whether an attempt that ran ended before a step or a result of its own, for example while it loaded the model. It
    could not get further than earlier ones."""
    took_step = (record.last_step or 0) > (record.resumed_from_step or 0)
    began = record.progressed is not None and record.stage in (None, STAGES[0])
    is_idle = not record.progressed and not took_step and not record.kept_results
    return began and is_idle and record.reason != FailureReason.NODE_FAULT


def is_in_vain(record: Attempt) -> bool:
    """Whether an interrupted attempt counts as one that brought the job no further: it took a step, or its node did not
    start it.

    One that ended before its first step had no chance to, for example because its spot node was taken away while the
    model was loaded. Only spec.runPolicy.maxInterruptions limits these."""
    if retry_of(record) is not Retry.INTERRUPTION:
        return False
    without = record.progressed is False and not is_before_first_step(record)
    return record.reason == FailureReason.NODE_FAULT or without


def without_progress(records: Sequence[Attempt]) -> list[Attempt]:
    """Return the last interrupted attempts in a row that did not get further. Those that never ran are among them."""
    found: list[Attempt] = []
    for record in reversed(records):
        if record.progressed:
            break
        if was_stopped(record):
            continue
        if retry_of(record) is not Retry.INTERRUPTION:
            break
        found.append(record)
    return found


def in_vain(before: Counts, written: Sequence[Attempt], records: Iterable[Attempt]) -> int:
    """Return how many interruptions in a row were in vain. `written`: the records in the status. `records`: the same as
    they are now, and the new ones. An attempt whose pod still stops may yet get further.

    A status of an earlier version has no number. Its records have it, as far as they go back."""
    known = {record.number: record for record in written if record.reason is not None}
    number = before.in_vain or sum(map(is_in_vain, without_progress(written)))
    for record in records:
        old = known.get(record.number)
        if record.progressed:
            number = number if old is not None and old.progressed else 0
        elif retry_of(record) is Retry.INTERRUPTION:
            number += is_in_vain(record) - (old is not None and is_in_vain(old))
        elif not was_stopped(record) and old is None:
            number = 0
    return number


def got_further(record: Attempt, earlier: Sequence[Attempt], forgotten: Reach | None) -> bool:
    """Return whether an attempt got further than all earlier ones, or stored a result that they had not stored.

    A result counts also where the attempt had to repeat a stage, for example because the storage had lost another."""
    best, own = _most([*map(_reach, earlier), forgotten or Reach()]), _reach(record)
    return _place(own) > _place(best) or (own.kept_results or 0) > (best.kept_results or 0)


def forgotten(before: Reach | None, dropped: Sequence[Attempt]) -> Reach | None:
    """Return how far the attempts came that the status does not list any more. `dropped`: those that are new."""
    most = _most([*map(_reach, dropped), before or Reach()])
    return None if most == Reach() else most


def _most(each: Sequence[Reach]) -> Reach:
    stage, step = max(map(_place, each))
    results = max(reach.kept_results or 0 for reach in each)
    return Reach(
        stage=STAGES[stage] if stage or step else None, checkpoint_step=step or None, kept_results=results or None
    )


def _reach(record: Attempt) -> Reach:
    step = max(record.checkpoint_step or 0, record.resumed_from_step or 0)
    return Reach(stage=record.stage, checkpoint_step=step, kept_results=record.kept_results)


def _place(reach: Reach) -> tuple[int, int]:
    """Return the place of a reach in the order of all, as stage and checkpoint."""
    return STAGES.index(reach.stage) if reach.stage in STAGES else 0, reach.checkpoint_step or 0
