"""Reads the Events about a stuck child: why its pod is not created, or why its pod does not start."""

from datetime import datetime, timedelta

from finetune_operator.cluster.api import Api
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Object, PodEvent

REFUSAL_GRACE = timedelta(seconds=3)
"""How long a Job may be without a pod before its Events are read. A normal Job needs no such request."""

_HARMLESS = {"FailedScheduling", "FailedToRetrieveImagePullSecret"}
"""Warnings that do not prevent a pod from starting. The first is obsolete once a pod has a node. The second is also
sent if the image needs no Secret."""
_DONE = {"Pulling", "Pulled", "Created", "Started"}
_STEPS = _DONE | {"Failed", "BackOff"}
"""What the kubelet reports about a container that it starts. It sends the same report again as the same Event.
`_DONE` are those that it reports only when the pod has its network and its volumes."""
_PULL_FAILED = "Failed to pull image"


def refusal(api: Api, namespace: str, uid: str, run: Run, now: datetime) -> str:
    """Return the Job controller's last message about why it could not create the pod; "" if there is none.

    `uid`: of the Job."""
    begun = run.begun or run.created
    if now - begun < REFUSAL_GRACE:
        return ""
    last = latest(api.events(namespace, f"involvedObject.uid={uid},reason=FailedCreate"), begun)
    return str(last.get("message", "")).removeprefix("Error creating: ") if last else ""


def pod_event(api: Api, namespace: str, uid: str) -> PodEvent | None:
    """Return the latest Event about this pod: a completed step, or the cause of a delay."""
    events = api.events(namespace, f"involvedObject.uid={uid}")
    last = latest([event for event in events if event.get("type") != "Warning" or holds_up(event.get("reason", ""))])
    if last is None:
        return None
    failed = latest([event for event in events if str(event.get("message", "")).startswith(_PULL_FAILED)])
    return PodEvent(
        last.get("type") == "Warning",
        last.get("reason", ""),
        last.get("message", ""),
        step_since=_newest_step(events, _STEPS),
        pull_error=failed["message"] if failed else "",
        warned_since=_warned_since(events) if last.get("type") == "Warning" else None,
    )


def _newest_step(events: list[Object], steps: set[str]) -> datetime | None:
    """Return when the newest of these steps was first reported."""
    return max((_first(event) for event in events if event.get("reason") in steps), default=None)


def _warned_since(events: list[Object]) -> datetime | None:
    """Return since when warnings hold the pod up: the first one after the newest step.

    Of a warning from before that step which was sent again after it, only the last time is known."""
    done = _newest_step(events, _DONE)
    warnings = [e for e in events if e.get("type") == "Warning" and holds_up(e.get("reason", ""))]
    times = [time for warning in warnings for time in (_first(warning), _time(warning)) if done is None or time > done]
    return min(times, default=done)


def holds_up(reason: str) -> bool:
    """Whether a warning with this reason explains why a pod cannot start, for example FailedMount.

    The kubelet repeats other warnings, such as MissingClusterDNS, for every pod."""
    return (reason.startswith("Failed") and reason not in _HARMLESS) or reason == "NetworkNotReady"


def latest(events: list[Object], since: datetime | None = None) -> Object | None:
    """Return the most recent Event, not older than `since`; of two at the same time, the warning."""
    seen = [event for event in events if since is None or _time(event) >= since]
    return max(seen, key=lambda event: (_time(event), event.get("type") == "Warning"), default=None)


def _first(event: Object) -> datetime:
    """Return when the Event was first reported."""
    return datetime.fromisoformat(event["metadata"]["creationTimestamp"])


def _time(event: Object) -> datetime:
    """Return when the Event last happened. Old and new recorders set different fields."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return datetime.fromisoformat(next((t for t in times if t), event["metadata"]["creationTimestamp"]))
