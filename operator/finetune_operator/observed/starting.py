"""Finds why a pod has not started its trainer yet, in one sentence, and after which time the pod counts as failed."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.names import CONTAINER, FETCHER
from finetune_api.reasons import FAILURES, FailureReason
from finetune_operator.observed import remedies
from finetune_operator.observed.pods import Pod
from finetune_operator.observed.standing import RunStanding, Standing

IMAGE_GRACE = timedelta(seconds=60)
"""How long image pulls or container creation may fail, because registries have short outages."""
STUCK_AFTER = timedelta(seconds=60)
"""How long a scheduled pod may take to start before the operator reads its Events."""
START_LIMIT = timedelta(minutes=10)
"""How long a scheduled pod may fail to start before it counts as failed, because it holds its GPU. Volumes and networks
can be slow on a new node, so this is longer than IMAGE_GRACE."""
SLOW_LIMIT = timedelta(hours=6)
"""How long a scheduled pod may take to start if nothing says that it fails. Large images and slow volumes may take
hours."""
FETCH_LIMIT = timedelta(hours=24)
"""Likewise for a pod that fetches its base model first, which may be large. The watchdog of the fetch ends one that
makes no progress, so this limit is for a container whose watchdog cannot run."""
LOOK_AGAIN_STUCK = timedelta(seconds=20)
"""Interval of checks for a stuck pod. The operator does not watch Events."""

_NORMAL = {"", "ContainerCreating", "PodInitializing"}
_IMAGE_TROUBLE = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
_CONTAINER_TROUBLE = {"CreateContainerConfigError", "CreateContainerError"}
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
        return IMAGE_GRACE if self.reason in _IMAGE_TROUBLE | _CONTAINER_TROUBLE else START_LIMIT

    @property
    def failure(self) -> FailureReason:
        own_image = self.container in (CONTAINER, FETCHER) and self.reason in _IMAGE_TROUBLE
        return FailureReason.IMAGE_PULL_FAILED if own_image else FailureReason.POD_START_FAILED


def waiting(pod: Pod, now: datetime) -> RunStanding:
    """Return the state of a pod whose trainer has not started."""
    if (trouble := _trouble(pod)) is not None:
        whose = "" if trouble.container in (CONTAINER, FETCHER) else f"container {trouble.container}: "
        said = f"{trouble.reason}: {trouble.message}" if trouble.message else trouble.reason
        return _failing(pod, f"{whose}{said}", trouble.grace, trouble.failure, now)
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
        found = _failing(pod, said, START_LIMIT, FailureReason.POD_START_FAILED, now)
        return replace(found, requeue_after=LOOK_AGAIN_STUCK) if found.standing is Standing.WAITING else found
    said = pod.event.message if pod.event else "no Event reports the cause of the delay"
    return RunStanding(
        Standing.WAITING, f"Pod {pod.name} is starting on node {pod.node_name}: {_ended(said)}", None, LOOK_AGAIN_STUCK
    )


def _too_late(pod: Pod, now: datetime) -> RunStanding | None:
    """Return that a pod has failed which holds its GPU and does not come to its trainer; None if it still may."""
    fetches = any(companion.name == FETCHER for companion in pod.companions)
    limit = FETCH_LIMIT if fetches else SLOW_LIMIT
    if pod.placed is None or now < pod.placed + limit:
        return None
    hours, before = limit / timedelta(hours=1), _running_before_the_trainer(pod)
    waited = f"Pod {pod.name} was on node {pod.node_name} for {hours:.0f} hours and did not start its trainer"
    if before == FETCHER:
        message = f"{waited}: container {FETCHER}, which fetches the base model, had not ended."
        return RunStanding(Standing.FAILED, message, FailureReason.TRAINING_STALLED)
    if before:
        message = f"{waited}: container {before}, which was added to the pod and runs before it, was not done."
        return RunStanding(Standing.FAILED, message, FailureReason.POD_START_FAILED)
    said = pod.event.message if pod.event else "no Event reports the cause"
    return RunStanding(Standing.FAILED, f"{waited}: {_ended(said)}", FailureReason.POD_START_FAILED)


def is_stuck(pod: Pod, now: datetime) -> bool:
    """Whether the pod was scheduled long ago and its containers report no cause. Its Events may report one."""
    slow = pod.placed is not None and now - pod.placed >= STUCK_AFTER
    return slow and pod.started is None and not pod.is_over and not pod.is_leaving and _trouble(pod) is None


def _failing(pod: Pod, said: str, grace: timedelta, failure: FailureReason, now: datetime) -> RunStanding:
    """Return WAITING until `grace` has passed since the pod was scheduled, then FAILED."""
    message = f"Pod {pod.name} cannot start: {_ended(said)}"
    left = (pod.placed or pod.created) + grace - now
    if left > timedelta(0):
        # Another image needs another pod. Every other cause can be corrected under this one.
        pull = failure is FailureReason.IMAGE_PULL_FAILED
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
