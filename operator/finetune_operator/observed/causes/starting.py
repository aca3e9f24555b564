"""Finds why a pod has not started its trainer yet, in one sentence, and after which time the pod counts as failed."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.names import CONTAINER, FETCHER
from finetune_api.reasons import FAILURES, FailureReason, with_remedy
from finetune_operator.observed.causes import remedies, runtime_words
from finetune_operator.observed.facts.pods import Pod, PodEvent
from finetune_operator.observed.standing import RunStanding, Standing

IMAGE_GRACE = timedelta(seconds=60)
"""How long image pulls or container creation may fail, because registries have short outages. The kubelet pulls an
image again after 10 s, and then after twice as long each time."""
STUCK_AFTER = timedelta(seconds=60)
"""How long a scheduled pod may take to start before the operator reads its Events."""
START_LIMIT = timedelta(minutes=10)
"""How long a scheduled pod may fail to start before it counts as failed, because it holds its GPU. It counts from the
first warning: what came before may have taken long. Volumes and networks can be slow on a new node, or on one that was
restarted, so this is longer than IMAGE_GRACE."""
SLOW_LIMIT = timedelta(hours=6)
"""How long a scheduled pod may take to start if nothing says that it fails. Large images and slow volumes may take
hours."""
FETCH_LIMIT = timedelta(hours=24)
"""Likewise for a pod that fetches its base model first, which may be large. The watchdog of the fetch ends one that
makes no progress, so this limit is for a container whose watchdog cannot run."""
LOOK_AGAIN_STUCK = timedelta(seconds=20)
"""Interval of checks for a stuck pod. The operator does not watch Events."""

_NORMAL = {"", "ContainerCreating", "PodInitializing"}
_NO_IMAGE = {"InvalidImageName", "ErrImageNeverPull"}
"""What the kubelet says about an image that it will never pull."""
_IMAGE_TROUBLE = _NO_IMAGE | {
    "ErrImagePull",
    "ImagePullBackOff",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
_RUNTIME_TROUBLE = {"CreateContainerError", "RunContainerError"}
_CONTAINER_TROUBLE = _RUNTIME_TROUBLE | {"CreateContainerConfigError"}
_PULLING, _SANDBOX = "Pulling", "FailedCreatePodSandBox"
"""Reasons of Events: the kubelet pulls an image; the runtime could not set up the network of the pod."""
_LONGEST_WORD = 1500
"""Largest number of characters shown of an Event's message."""


@dataclass(frozen=True)
class _Trouble:
    """What prevents a container from starting, from the container's state."""

    container: str
    reason: str
    message: str

    @property
    def grace(self) -> timedelta:
        if self.reason in _NO_IMAGE:
            return timedelta(0)
        return IMAGE_GRACE if self.reason in _IMAGE_TROUBLE | _CONTAINER_TROUBLE else START_LIMIT

    def said(self, pod: Pod) -> str:
        """Return the words of the kubelet. Before Kubernetes 1.32, only an Event says why a pull failed."""
        found = f"{self.reason}: {self.message}" if self.message else self.reason
        lacks_cause = self.reason == "ImagePullBackOff" and "ErrImagePull" not in self.message
        return f"{found}. {pod.event.pull_error}" if lacks_cause and pod.event and pod.event.pull_error else found

    def failure(self, pod: Pod) -> FailureReason:
        """Return the reason if the container of this pod does not start within its grace."""
        if self.reason in _RUNTIME_TROUBLE:
            return runtime_words.of_start(self.message, pod.trains) or FailureReason.POD_START_FAILED
        if self.reason not in _IMAGE_TROUBLE:
            return FailureReason.POD_START_FAILED
        if self.reason == "RegistryUnavailable":
            return FailureReason.REGISTRY_UNAVAILABLE
        own = self.container in (CONTAINER, FETCHER)
        final = FailureReason.IMAGE_PULL_FAILED if own else FailureReason.POD_START_FAILED
        return final if self.reason in _NO_IMAGE else runtime_words.of_pull(self.said(pod)) or final


def waiting(pod: Pod, now: datetime) -> RunStanding:
    """Return the state of a pod whose trainer has not started."""
    if (trouble := _trouble(pod)) is not None:
        return _in_trouble(pod, trouble, now)
    scheduled = pod.conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        said = _ended(scheduled.message)
        remedy = remedies.while_waiting(remedies.of_no_node(said))
        return RunStanding(Standing.WAITING, f"The pod waits for a node: {said} {remedy}")
    if not is_stuck(pod, now):
        soon = pod.placed + STUCK_AFTER - now if pod.placed else None
        return RunStanding(Standing.WAITING, requeue_after=soon)  # normal, so it needs no message
    if (late := _too_late(pod, now)) is not None:
        return late
    before = _running_before_the_trainer(pod)
    if before == FETCHER:
        message = f"The base model is being fetched. Its log: kubectl logs {pod.name} --container {FETCHER}."
        return RunStanding(Standing.WAITING, message, requeue_after=LOOK_AGAIN_STUCK)
    if before:
        message = (
            f"Pod {pod.name} waits for container {before}, which was added to the pod and runs before the trainer. Its "
            f"log: kubectl logs {pod.name} --container {before}."
        )
        return RunStanding(Standing.WAITING, message, requeue_after=LOOK_AGAIN_STUCK)
    if pod.event is not None and pod.event.is_warning and not _has_network_and_volumes(pod):
        said = f"{pod.event.reason}: {pod.event.message}"
        left = max(pod.may_start_since, pod.event.warned_since or pod.created) + START_LIMIT - now
        found = _failing(pod, said, left, _of_event(pod, pod.event))
        return replace(found, requeue_after=LOOK_AGAIN_STUCK) if found.standing is Standing.WAITING else found
    said = pod.event.message if pod.event else "no Event reports the cause of the delay"
    return RunStanding(
        Standing.WAITING, f"Pod {pod.name} is starting on node {pod.node_name}: {_ended(said)}", None, LOOK_AGAIN_STUCK
    )


def _too_late(pod: Pod, now: datetime) -> RunStanding | None:
    """Return that a pod has failed which holds its GPU and does not come to its trainer; None if it still may."""
    limit = _longest(pod)
    if pod.placed is None or now < pod.placed + limit:
        return None
    hours, before = limit / timedelta(hours=1), _running_before_the_trainer(pod)
    waited = f"Pod {pod.name} was on node {pod.node_name} for {hours:.0f} hours and did not start its trainer"
    if before == FETCHER:
        message = f"{waited}: container {FETCHER}, which fetches the base model, had not ended."
        said = with_remedy(message, remedies.UNENDED_FETCH)
        return RunStanding(Standing.FAILED, said, FailureReason.TRAINING_STALLED)
    if before:
        message = f"{waited}: container {before}, which was added to the pod and runs before it, was not done."
        return RunStanding(Standing.FAILED, message, FailureReason.POD_START_FAILED)
    said = pod.event.message if pod.event else "no Event reports the cause"
    return RunStanding(Standing.FAILED, f"{waited}: {_ended(said)}", FailureReason.POD_START_FAILED)


def is_stuck(pod: Pod, now: datetime) -> bool:
    """Whether the pod was scheduled long ago and its containers report no cause. Its Events may report one."""
    slow = pod.placed is not None and now - pod.placed >= STUCK_AFTER
    return slow and pod.started is None and not pod.is_over and not pod.is_leaving and _trouble(pod) is None


def needs_events(pod: Pod, now: datetime) -> bool:
    """Whether the Events of the pod decide: it is stuck, or its failure may be newer than its grace."""
    if is_stuck(pod, now):
        return True
    trouble = None if pod.started or pod.is_over or pod.is_leaving else _trouble(pod)
    return trouble is not None and trouble.reason not in _NO_IMAGE and now >= pod.may_start_since + trouble.grace


def _in_trouble(pod: Pod, trouble: _Trouble, now: datetime) -> RunStanding:
    """Return WAITING until the kubelet has failed for the whole grace, then FAILED.

    The grace begins with the failure, as far as Events tell it: the pull before it may have taken long. A pull that
    runs again is waited for."""
    whose = "" if trouble.container in (CONTAINER, FETCHER) else f"container {trouble.container}: "
    since = pod.event.step_since if pod.event else None
    left = max(pod.may_start_since, min(since or pod.created, now)) + trouble.grace - now
    if trouble.reason in _IMAGE_TROUBLE - _NO_IMAGE and pod.event is not None and pod.event.reason == _PULLING:
        left = max(left, LOOK_AGAIN_STUCK)
    if pod.placed is not None:
        left = min(left, pod.placed + _longest(pod) - now)
    return _failing(pod, f"{whose}{trouble.said(pod)}", left, trouble.failure(pod))


def _of_event(pod: Pod, event: PodEvent) -> FailureReason:
    """Return the reason if the pod does not start because of what this Event reports."""
    if event.reason != _SANDBOX:
        return FailureReason.POD_START_FAILED  # a volume or an object is missing, on each node
    return runtime_words.of_start(event.message, pod.trains) or FailureReason.NODE_FAULT


def _longest(pod: Pod) -> timedelta:
    """Return how long the pod may hold its GPU before its trainer starts."""
    fetches = any(companion.name == FETCHER for companion in pod.companions)
    return FETCH_LIMIT if fetches else SLOW_LIMIT


def _failing(pod: Pod, said: str, left: timedelta, failure: FailureReason) -> RunStanding:
    """Return WAITING while time is left, then FAILED."""
    message = f"Pod {pod.name} cannot start: {_ended(said)}"
    if left > timedelta(0):
        # Another image needs another pod. Every other cause can be corrected under this one.
        pull = failure in (FailureReason.IMAGE_PULL_FAILED, FailureReason.REGISTRY_UNAVAILABLE)
        remedy = FAILURES[failure].remedy if pull else remedies.of_start(said)
        return RunStanding(Standing.WAITING, " ".join((message, remedy)), requeue_after=left)
    return RunStanding(Standing.FAILED, message, failure)


def _trouble(pod: Pod) -> _Trouble | None:
    """The first container that the kubelet cannot start, in the order in which it starts them."""
    first = [c for c in pod.companions if c.comes_first]
    waits = [_Trouble(c.name, c.waiting_reason, c.waiting_message) for c in first]
    waits.append(_Trouble(CONTAINER, pod.waiting_reason, pod.waiting_message))
    return next((trouble for trouble in waits if trouble.reason not in _NORMAL), None)


def _running_before_the_trainer(pod: Pod) -> str:
    """Return the name of an init container that still runs, or of a native sidecar that is not ready; else ""."""
    running = [c for c in pod.companions if c.comes_first and c.is_running]
    return next((c.name for c in running if not (c.is_sidecar and c.is_ready)), "")


def _has_network_and_volumes(pod: Pod) -> bool:
    """Whether the pod's sandbox and volumes are ready, so that only images and containers are missing."""
    ready = pod.conditions.get("PodReadyToStartContainers")
    return ready is not None and ready.status == "True"


def _ended(said: str) -> str:
    """Return `said`, shortened, as the end of a sentence."""
    shown = said if len(said) <= _LONGEST_WORD else f"{said[:_LONGEST_WORD]}..."
    return f"{shown.rstrip('. ')}."
