"""The state of a child Job, as `runs` finds it."""

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from finetune_api.reasons import FailureReason

End = tuple[str, FailureReason]
"""Why a run failed: a sentence and the failure reason."""


class Standing(Enum):
    """State of a run."""

    ABSENT = "Absent"
    SUSPENDED = "Suspended"
    WAITING = "Waiting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class RunStanding:
    """State of a run, and the cause."""

    standing: Standing
    message: str = ""
    failure: FailureReason | None = None
    requeue_after: timedelta | None = None
    reason: str = ""
    """Of a suspended run: reason of the condition Ready."""
