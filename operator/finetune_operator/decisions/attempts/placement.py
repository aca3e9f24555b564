"""Whether an attempt that avoids nodes with a broken GPU can get another node."""

from datetime import datetime, timedelta

from finetune_api.status.attempts import Attempt
from finetune_operator.observed.world import Run

NODE_LIMIT = timedelta(minutes=10)
"""How long an autoscaler may take to add a node."""
_TEMPORARY = ("No preemption victims", "taint", "were unschedulable")
"""The scheduler's words for nodes that will do some day: their GPUs are in use, or somebody works on the node."""


def without_a_node(record: Attempt, run: Run, now: datetime) -> str | None:
    """Return a finding if no other node can run the attempt; None if it can, or may still get one."""
    scheduled = run.pod.conditions.get("PodScheduled") if run.pod else None
    if not record.avoided_nodes or scheduled is None or scheduled.status != "False":
        return None
    if any(words in scheduled.message for words in _TEMPORARY):
        return None
    if now < (scheduled.since or run.created) + NODE_LIMIT:
        return None
    avoided = ", ".join(record.avoided_nodes)
    return f"A GPU failed on {avoided}, and there is no other node for the pod: {scheduled.message.rstrip('.')}."


def look_again(record: Attempt, run: Run, now: datetime) -> timedelta | None:
    """Return when `without_a_node` may have another answer; None if only an event can change it."""
    scheduled = run.pod.conditions.get("PodScheduled") if run.pod else None
    if not record.avoided_nodes or scheduled is None or scheduled.status != "False":
        return None
    left = (scheduled.since or run.created) + NODE_LIMIT - now
    return left if left > timedelta(0) else None
