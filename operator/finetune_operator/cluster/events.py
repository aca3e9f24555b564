"""Reads the Events about a child that does not get on: why its pod is not made, why its pod does not start."""

from datetime import datetime, timedelta

from finetune_operator.cluster.api import Api
from finetune_operator.observed.pods import Object, PodEvent
from finetune_operator.observed.world import Run

REFUSAL_GRACE = timedelta(seconds=3)
"""How long a Job may be without a pod before its Events are read: a normal one costs no request."""

_HARMLESS = {"FailedScheduling", "FailedToRetrieveImagePullSecret"}
"""Warnings named like those that hold a pod up. The first is over once a pod has a node; the second is repeated also
where the image needs no Secret."""


def refusal(api: Api, namespace: str, job: Object, run: Run, now: datetime) -> str:
    """The Job controller's last word on why it could not make this Job's pod; "" where it said nothing."""
    begun = run.begun or run.created
    if now - begun < REFUSAL_GRACE:
        return ""
    uid = job["metadata"]["uid"]
    last = latest(api.list("Event", namespace, fields=f"involvedObject.uid={uid},reason=FailedCreate"), begun)
    return str(last.get("message", "")).removeprefix("Error creating: ") if last else ""


def pod_event(api: Api, namespace: str, uid: str) -> PodEvent | None:
    """The latest Event about this pod: a step it has taken, or what holds it up."""
    events = api.list("Event", namespace, fields=f"involvedObject.uid={uid}")
    last = latest([event for event in events if event.get("type") != "Warning" or holds_up(event.get("reason", ""))])
    if last is None:
        return None
    return PodEvent(last.get("type") == "Warning", last.get("reason", ""), last.get("message", ""))


def holds_up(reason: str) -> bool:
    """Whether a warning of this reason says why a pod cannot start: FailedMount, FailedCreatePodSandBox and the like. A
    kubelet repeats other warnings for every pod, such as MissingClusterDNS."""
    return (reason.startswith("Failed") and reason not in _HARMLESS) or reason == "NetworkNotReady"


def latest(events: list[Object], since: datetime | None = None) -> Object | None:
    """The Event that was last seen latest, not before `since`; of two at once the warning."""
    seen = [event for event in events if since is None or _time(event) >= since]
    return max(seen, key=lambda event: (_time(event), event.get("type") == "Warning"), default=None)


def _time(event: Object) -> datetime:
    """When it last happened. Old and new recorders fill different fields."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return datetime.fromisoformat(next((t for t in times if t), event["metadata"]["creationTimestamp"]))
