"""Reads what a pod itself wrote in the job's status.

The status outlives the pod. So what an earlier attempt wrote must be distinguished by the field manager, and what an
earlier pod of the same attempt wrote by its time."""

from datetime import UTC, datetime

from finetune_api.reasons import FailureReason, finding_of
from finetune_api.status.job import Condition, ConditionType, FineTuneJobStatus
from finetune_operator.observed.standing import End

PREFLIGHT = (ConditionType.VALIDATED,)
"""Conditions that the preflight's pod writes."""
ATTEMPT = (ConditionType.EVALUATED, ConditionType.TRAINED)
"""Conditions that an attempt's pod writes, the last one first."""


EVER = datetime.min.replace(tzinfo=UTC)
"""Before every condition."""


def of_attempt(authors: dict[str, int], attempt: int) -> tuple[ConditionType, ...]:
    """Return the conditions that no other attempt wrote. `authors`: of World."""
    return tuple(type for type in ATTEMPT if authors.get(type, attempt) == attempt)


def failure_said(status: FineTuneJobStatus, types: tuple[ConditionType, ...], since: datetime | None) -> End | None:
    """Return the failure that a condition of these types reports, without its remedy; None if there is none.

    A condition that changed before `since`, the time at which the Job was started or last resumed, is ignored."""
    found = (status.condition(type) for type in types)
    return next((word for condition in found if (word := _failure(condition, since))), None)


def holds_since(status: FineTuneJobStatus, type: ConditionType, since: datetime | None) -> bool:
    """Whether the condition became True at or after `since`. A pod that replaces another must do the work again."""
    condition = status.condition(type)
    return condition is not None and condition.status == "True" and _is_new(condition, since)


def is_evaluated_since(status: FineTuneJobStatus, since: datetime | None) -> bool:
    """Whether the tuned model was measured at or after `since`, also if it missed a gate."""
    condition = status.condition(ConditionType.EVALUATED)
    if condition is None or not _is_new(condition, since):
        return False
    return condition.status == "True" or condition.reason == FailureReason.EVALUATION_GATE_FAILED


def _failure(condition: Condition | None, since: datetime | None) -> End | None:
    if condition is None or condition.status != "False" or not _is_new(condition, since):
        return None
    # The condition can report progress. A missed gate is a result: the pod goes on, and publishes it before it ends.
    if condition.reason not in set(FailureReason) or condition.reason == FailureReason.EVALUATION_GATE_FAILED:
        return None
    reason = FailureReason(condition.reason)
    return finding_of(reason, condition.message), reason


def _is_new(condition: Condition, since: datetime | None) -> bool:
    return since is not None and condition.last_transition_time >= since
