"""Pods as the API server sends them, on a node whose clock is wrong."""

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api import names
from finetune_operator.observed.facts.pods import Object

HOUR = timedelta(hours=1)
PLACED = datetime(2026, 1, 2, 3, 0, 0, tzinfo=UTC)
AT_ONCE, RAN = timedelta(seconds=1), timedelta(minutes=40)


def on_a_node(skew: timedelta, exit_code: int = 137, evicted: bool = False, sidecar: str = "") -> Object:
    """A pod that was scheduled at PLACED and whose trainer ended after RAN. `skew`: how far the node's clock is ahead.
    `sidecar`: name of a container that runs on."""
    times = {"startedAt": (PLACED + skew).isoformat(), "finishedAt": (PLACED + RAN + skew).isoformat()}
    target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    conditions: list[dict[str, Any]] = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": PLACED.isoformat()},
        *([{**target, "lastTransitionTime": (PLACED + RAN + skew - AT_ONCE).isoformat()}] if evicted else []),
    ]
    ended = {"name": names.CONTAINER, "state": {"terminated": {"exitCode": exit_code, **times}}}
    beside = [{"name": sidecar, "state": {"running": {}}}] if sidecar else []
    wrote = {"f:status": {"f:containerStatuses": {}}}
    return {
        "metadata": {
            "name": "p",
            "creationTimestamp": PLACED.isoformat(),
            "managedFields": [
                {"manager": "kube-controller-manager", "time": (PLACED + 9 * HOUR).isoformat(), "fieldsV1": {}},
                {"manager": "kubelet", "time": (PLACED + RAN + AT_ONCE).isoformat(), "fieldsV1": wrote},
            ],
        },
        "spec": {"nodeName": "n1"},
        "status": {
            "phase": "Running" if sidecar else "Failed",
            "startTime": (PLACED + skew).isoformat(),
            "conditions": conditions,
            "containerStatuses": [*beside, ended],
        },
    }
