"""What a pod wrote in the job's status itself. It outlives the pod, so it has to be told apart from what an earlier pod
of the same Job wrote."""

from datetime import datetime

from finetune_api.reasons import FAILURES, FailureReason
from finetune_api.status.job import Condition, ConditionType, FineTuneJobStatus
from finetune_operator.observed.standing import End

PREFLIGHT = (ConditionType.VALIDATED,)
"""What a preflight's pod writes."""
ATTEMPT = (ConditionType.EVALUATED, ConditionType.TRAINED)
"""What an attempt's pod writes, the last first."""


def failure_said(status: FineTuneJobStatus, types: tuple[ConditionType, ...], since: datetime | None) -> End | None:
    """The failure in a condition of these types that was written since then, without its remedy; None where there is
    none. `since`: when the Job was started or last resumed."""
    found = (status.condition(type) for type in types)
    return next((word for condition in found if (word := _failure(condition, since))), None)


def holds_since(status: FineTuneJobStatus, type: ConditionType, since: datetime | None) -> bool:
    """Whether the condition became True since then: a pod that took another's place has not done its work yet."""
    condition = status.condition(type)
    return condition is not None and condition.status == "True" and _is_new(condition, since)


def _failure(condition: Condition | None, since: datetime | None) -> End | None:
    if condition is None or condition.status != "False" or not _is_new(condition, since):
        return None
    if condition.reason not in set(FailureReason):
        return None  # a word about the work under way
    reason = FailureReason(condition.reason)
    return condition.message.removesuffix(FAILURES[reason].remedy).rstrip(), reason


def _is_new(condition: Condition, since: datetime | None) -> bool:
    return since is not None and condition.last_transition_time >= since
