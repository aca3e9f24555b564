"""When a pod that is being deleted counts as lost, because nobody reports its end.

The grace period of a pod begins when its kubelet hears of the deletion. A kubelet that does not answer has not heard of
it, so the grace period is not waited for. A zombie that comes back later cannot spoil the next attempt: its files have
prefixes of their own, and the API server refuses what it writes in the status."""

from datetime import datetime, timedelta

from finetune_operator.observed.facts.pods import NodeState, Pod

LOST_GRACE = timedelta(seconds=60)
"""How long a deleted pod may stay beyond its grace period. On a node that does not answer, it is how long the pod may
stay after the request to delete it."""
LOOK_AGAIN = timedelta(seconds=20)
"""Interval of looks at a pod that is being deleted. No watch shows that its node is gone."""


def lost_at(pod: Pod) -> datetime | None:
    """Return when the pod counts as lost, if its end is not reported before; None if it is not being deleted."""
    if pod.due is None:
        return None
    asked = pod.due - pod.grace
    if pod.node_state is NodeState.GONE:
        return asked
    return asked + LOST_GRACE if pod.node_state is NodeState.SILENT else pod.due + LOST_GRACE


def next_look(pod: Pod, now: datetime) -> timedelta | None:
    """Return when to look again at a pod that is being deleted; None if it is not."""
    at = lost_at(pod)
    return None if at is None else min(at - now, LOOK_AGAIN)
