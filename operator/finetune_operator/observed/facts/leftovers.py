"""What a job that has ended may have left in the storage, as its own JSON shows."""

from datetime import timedelta

from finetune_api.reasons import FAILURES, FailureReason, Retry
from finetune_api.spec.run_policy import KEEP_CHECKPOINTS_SECONDS
from finetune_api.status.job import ConditionType, State
from finetune_operator.observed.facts.pods import Object


def time_to_keep(spec: Object, status: Object) -> timedelta | None:
    """Return how long after its end the checkpoints of a job are kept; None if there are none to delete.

    A job that has published its results has deleted them itself. If that failed, the bucket's lifecycle rule deletes
    them: the status does not show it, and a pod for each completed job would almost always find nothing."""
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    if status.get("state") != State.FAILED or ConditionType.FAILED not in conditions or "artifacts" in status:
        return None
    if ConditionType.CHECKPOINTS_DELETED in conditions or not _has_written(status, conditions):
        return None
    return timedelta(seconds=part(spec, "runPolicy").get("keepCheckpointsSeconds", KEEP_CHECKPOINTS_SECONDS))


def has_own_checkpoint(status: Object) -> bool:
    """Whether an attempt of a job with spec.resumeFrom has stored a later checkpoint than the one with which the first
    attempt began.

    The records of a job with more than ten attempts may no longer show it. Then the answer is no."""
    attempts = [*status.get("attempts", []), status.get("training", {})]
    begun = [attempt["resumedFromStep"] for attempt in attempts if "resumedFromStep" in attempt]
    stored = [attempt["checkpointStep"] for attempt in attempts if "checkpointStep" in attempt]
    return bool(begun) and max((*begun, *stored)) > min(begun)


def part(whole: Object, name: str) -> Object:
    """Return this object in another one; an empty one if there is none, or something else in its place."""
    found = whole.get(name)
    return found if isinstance(found, dict) else {}


def _has_written(status: Object, conditions: dict[str, Object]) -> bool:
    """Whether a pod of the job may have written to the storage, and a cleanup could delete it.

    A preflight writes when it has found the input to be good. One that found bad input or no access has left nothing
    that a cleanup could delete. One that crashed, or that was stopped because the job was suspended, may have been
    writing. Both are on record."""
    if status.get("counts", {}).get("attempts") or conditions.get(ConditionType.VALIDATED, {}).get("status") == "True":
        return True
    reasons = [preflight.get("reason") for preflight in status.get("preflights", [])]
    return any(map(_may_interrupt, (*reasons, conditions[ConditionType.FAILED].get("reason"))))


def _may_interrupt(reason: str | None) -> bool:
    """Whether a preflight that failed for this reason can have been writing."""
    return reason not in set(FailureReason) or FAILURES[FailureReason(reason)].retry is not Retry.NEVER
