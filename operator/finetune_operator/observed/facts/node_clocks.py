"""How far the clock of a node differs from that of the cluster, as the JSON of a pod shows it.

The kubelet writes the times of a container by the clock of its node, which may be wrong by hours. The API server writes
by its own clock when the pod was scheduled, and when its status was last written. A kubelet acknowledges a pod after it
was scheduled, and writes an end after it has happened. These are limits for its times. They are in the pod itself, so
that an operator that was restarted finds the same ones."""

from datetime import datetime, timedelta
from typing import Any

_NONE = timedelta(0)  # one object in memory for all pods


def behind(scheduled: datetime | None, acknowledged: datetime | None) -> timedelta:
    """Return how far the node's clock is behind at least. `acknowledged`: when its kubelet accepted the pod."""
    if scheduled is None or acknowledged is None or acknowledged >= scheduled:
        return _NONE
    return scheduled - acknowledged


def correction(behind: timedelta, finished: datetime | None, written: datetime | None) -> timedelta:
    """Return what must be added to the node's times of a pod whose trainer has ended. `written`: when the kubelet last
    wrote the state of its containers, by the clock of the API server."""
    if finished is None or written is None:
        return behind
    return min(behind, written - finished)


def written(managed: list[dict[str, Any]]) -> datetime | None:
    """Return when the states of containers were last written, from the managedFields of a pod.

    The kubelet alone writes them. The name of its field manager differs: a distribution may be one program."""
    times = [
        entry["time"]
        for entry in managed
        if "time" in entry and "f:containerStatuses" in entry.get("fieldsV1", {}).get("f:status", {})
    ]
    return max(map(datetime.fromisoformat, times), default=None)
