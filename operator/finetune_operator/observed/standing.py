"""Where a child Job stands, as `runs` finds it."""

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from finetune_api.reasons import FailureReason

End = tuple[str, FailureReason]
"""Why a run failed: the sentence and the reason."""


class Standing(Enum):
    """Where a run stands."""

    ABSENT = "Absent"
    SUSPENDED = "Suspended"
    WAITING = "Waiting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class RunStanding:
    """Where a run stands and why."""

    standing: Standing
    message: str = ""
    failure: FailureReason | None = None
    requeue_after: timedelta | None = None
