"""Which nodes an attempt avoids, and how long it waits for another node.

The scheduler says what it found on the other nodes. What passes by itself is waited for longer. Other words begin
another wait: a node that is in use may be restarted, and is then not ready for a minute. Every wait has an end: a job
that can only run on a broken node must fail and say so."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_api.reasons import FailureReason, Retry
from finetune_api.status.attempts import Attempt
from finetune_operator.decisions.attempts.progress import retry_of
from finetune_operator.observed.causes import remedies
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import PodCondition

MOST_AVOIDED = 32
"""Number of nodes that an attempt avoids at most."""
NO_NODE_LIMIT = timedelta(minutes=10)
"""No other node can run the pod. An autoscaler may need this long to add one."""
CLOSED_LIMIT = timedelta(hours=1)
"""Another node is tainted or cordoned. Somebody may work on it, or it is kept for others."""
IN_USE_LIMIT = timedelta(hours=24)
"""Another node is large enough, and other pods use it. The pod stands in the scheduler's queue. No pod waits longer,
however often the words of the scheduler change."""
_UNPLACED = "and no other node has taken the pod for"
_CLOSED = ("taint", "were unschedulable")
"""The scheduler's words for a node that accepts no pods, or only some."""


def avoided_after(records: Sequence[Attempt]) -> list[str]:
    """Return the nodes on which the attempt after these, the last of which has ended, must not run."""
    last = records[-1]
    avoided = list(last.avoided_nodes or [])
    is_broken = retry_of(last) is Retry.OTHER_NODE or _failed_again(records)
    if is_broken and last.node_name and last.node_name not in avoided:
        avoided = [*avoided, last.node_name][-MOST_AVOIDED:]
    return avoided


def _failed_again(records: Sequence[Attempt]) -> bool:
    """Whether the node of the last attempt did not start it, and no attempt has run since it did the same before.

    Once is no reason to avoid a node: its kubelet refuses pods for a moment after a restart, and it may be the only
    node with a GPU."""
    if records[-1].reason != FailureReason.NODE_FAULT:
        return False
    nodes = []
    for record in reversed(records):
        if record.reason == FailureReason.NODE_FAULT:
            nodes.append(record.node_name)
        if record.progressed is not None:
            break  # it ran, and may have been refused after that
    return nodes[0] in nodes[1:]


def waits_until(record: Attempt, run: Run) -> datetime | None:
    """Return when the attempt gives up waiting for another node; None if it does not wait for one."""
    scheduled = _unscheduled(record, run)
    if scheduled is None:
        return None
    began = _began(scheduled, run)
    return min(max(began, scheduled.said_since or began) + _limit(scheduled.message), began + IN_USE_LIMIT)


def why_avoided(records: Sequence[Attempt]) -> FailureReason:
    """Return the last reason for which a node is avoided."""
    reasons = (FailureReason.NODE_FAULT, FailureReason.GPU_FAULT)
    found = (reason for record in reversed(records) for reason in reasons if record.reason == reason)
    return next(found, FailureReason.GPU_FAULT)


def without_a_node(record: Attempt, run: Run, why: FailureReason, now: datetime) -> str | None:
    """Return a finding if no other node can run the attempt; None if one can, or still may. `why`: nodes are
    avoided."""
    scheduled, end = _unscheduled(record, run), waits_until(record, run)
    if scheduled is None or end is None or now < end:
        return None
    avoided, minutes = ", ".join(record.avoided_nodes or []), (now - _began(scheduled, run)) // timedelta(minutes=1)
    waited = f"{minutes // 60} h" if minutes >= 60 else f"{minutes} min"
    said = scheduled.message.rstrip(". ")
    found = "A GPU failed on" if why is FailureReason.GPU_FAULT else "Attempts were not started on"
    finding = f"{found} {avoided}, {_UNPLACED} {waited}: {said}."
    return f"{finding} {remedies.of_no_node(said)}"


def was_without_a_node(record: Attempt) -> bool:
    """Whether the attempt has ended because of `without_a_node`, so that another one would wait in the same way."""
    return bool(record.avoided_nodes) and _UNPLACED in (record.message or "")


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


def _began(scheduled: PodCondition, run: Run) -> datetime:
    """Return since when the pod has no node. A pod that had a scheduling gate shows no such time."""
    return scheduled.since or (run.pod.created if run.pod else run.created)


def _limit(said: str) -> timedelta:
    """Return how long the pod waits where the scheduler says this. The node that is free soonest counts."""
    if remedies.is_in_use(said):
        return IN_USE_LIMIT
    return CLOSED_LIMIT if any(words in said for words in _CLOSED) else NO_NODE_LIMIT
