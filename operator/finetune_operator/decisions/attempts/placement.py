"""How long an attempt that avoids nodes with a broken GPU waits for another node.

The scheduler says what it found on the other nodes. What passes by itself is waited for longer. Every wait has an end:
a job that can only run on a node with a broken GPU must fail and say so."""

from datetime import datetime, timedelta

from finetune_api.status.attempts import Attempt
from finetune_operator.observed import remedies
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.pods import PodCondition

NO_NODE_LIMIT = timedelta(minutes=10)
"""No other node can run the pod. An autoscaler may need this long to add one."""
CLOSED_LIMIT = timedelta(hours=1)
"""Another node is tainted or cordoned. Somebody may work on it, or it is kept for others."""
IN_USE_LIMIT = timedelta(hours=24)
"""Another node is large enough, and other pods use it. The pod stands in the scheduler's queue."""
_CLOSED = ("taint", "were unschedulable")
"""The scheduler's words for a node that accepts no pods, or only some."""


def waits_until(record: Attempt, run: Run) -> datetime | None:
    """Return when the attempt gives up waiting for another node; None if it does not wait for one."""
    scheduled = _unscheduled(record, run)
    return None if scheduled is None else (scheduled.since or run.created) + _limit(scheduled.message)


def without_a_node(record: Attempt, run: Run, now: datetime) -> str | None:
    """Return a finding if no other node can run the attempt; None if one can, or still may."""
    scheduled, end = _unscheduled(record, run), waits_until(record, run)
    if scheduled is None or end is None or now < end:
        return None
    avoided, hours = ", ".join(record.avoided_nodes or []), _limit(scheduled.message) / timedelta(hours=1)
    waited = f"{hours:.0f} h" if hours >= 1 else f"{hours * 60:.0f} min"
    said = scheduled.message.rstrip(". ")
    finding = f"A GPU failed on {avoided}, and no other node has taken the pod for {waited}: {said}."
    return f"{finding} {remedies.of_no_node(said)}"


def look_again(record: Attempt, run: Run, now: datetime) -> timedelta | None:
    """Return when `without_a_node` may have another answer; None if only an event can change it."""
    end = waits_until(record, run)
    return end - now if end is not None and end > now else None


def _unscheduled(record: Attempt, run: Run) -> PodCondition | None:
    """Return what the scheduler says about a pod that avoids nodes and has no node; else None.

    A pod with a scheduling gate was not looked at yet."""
    scheduled = run.pod.conditions.get("PodScheduled") if run.pod else None
    if not record.avoided_nodes or scheduled is None or scheduled.status != "False":
        return None
    return scheduled if scheduled.reason == "Unschedulable" else None


def _limit(said: str) -> timedelta:
    """Return how long the pod waits where the scheduler says this. The node that is free soonest counts."""
    if remedies.is_in_use(said):
        return IN_USE_LIMIT
    return CLOSED_LIMIT if any(words in said for words in _CLOSED) else NO_NODE_LIMIT
