"""Why a pod has not started its trainer yet, in one sentence, and when waiting for it is no longer any use."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.names import CONTAINER
from finetune_api.reasons import FailureReason
from finetune_operator.observed.pods import Pod
from finetune_operator.observed.standing import RunStanding, Standing

IMAGE_GRACE = timedelta(seconds=60)
"""How long an image may fail to be pulled, or a container to be created, before it counts: registries have their
moments."""
STUCK_AFTER = timedelta(seconds=60)
"""How long a pod with a node may take to start before its Events are read."""
START_LIMIT = timedelta(minutes=10)
"""How long a pod with a node may fail to start: it holds its GPU all the while. Volumes and networks come late on a new
node, so this is longer than an image's grace."""
LOOK_AGAIN_STUCK = timedelta(seconds=20)
"""An Event wakes nobody."""

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
"""Characters shown of an Event's message."""


@dataclass(frozen=True)
class _Trouble:
    """What keeps a pod from starting, as its container's state has it."""

    container: str
    reason: str
    message: str

    @property
    def grace(self) -> timedelta:
        return IMAGE_GRACE if self.reason in _IMAGE_TROUBLE | _CONTAINER_TROUBLE else START_LIMIT

    @property
    def failure(self) -> FailureReason:
        own_image = self.container == CONTAINER and self.reason in _IMAGE_TROUBLE
        return FailureReason.IMAGE_PULL_FAILED if own_image else FailureReason.POD_START_FAILED


def waiting(pod: Pod, now: datetime) -> RunStanding:
    """Where a pod stands whose trainer has not started."""
    if (trouble := _trouble(pod)) is not None:
        whose = "" if trouble.container == CONTAINER else f"container {trouble.container}: "
        said = f"{trouble.reason}: {trouble.message}" if trouble.message else trouble.reason
        return _failing(pod, f"{whose}{said}", trouble.grace, trouble.failure, now)
    scheduled = pod.conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return RunStanding(Standing.WAITING, f"Waiting for a node: {scheduled.message}")
    if not is_stuck(pod, now):
        soon = pod.placed + STUCK_AFTER - now if pod.placed else None
        return RunStanding(Standing.WAITING, f"Pod {pod.name} is starting.", requeue_after=soon)
    if before := _running_before_the_trainer(pod):
        message = f"Pod {pod.name} waits for its container {before}, which was added to it and runs before the trainer."
        return RunStanding(Standing.WAITING, message, requeue_after=LOOK_AGAIN_STUCK)
    if pod.event is not None and pod.event.is_warning and not _has_network_and_volumes(pod):
        said = f"{pod.event.reason}: {pod.event.message}"
        found = _failing(pod, said, START_LIMIT, FailureReason.POD_START_FAILED, now)
        return replace(found, requeue_after=LOOK_AGAIN_STUCK) if found.standing is Standing.WAITING else found
    said = pod.event.message if pod.event else "no event says what it waits for"
    return RunStanding(
        Standing.WAITING, f"Pod {pod.name} is starting on node {pod.node_name}: {_ended(said)}", None, LOOK_AGAIN_STUCK
    )


def is_stuck(pod: Pod, now: datetime) -> bool:
    """Whether the pod has had a node for long and its containers do not say why the trainer has not started: then its
    Events may."""
    slow = pod.placed is not None and now - pod.placed >= STUCK_AFTER
    return slow and pod.started is None and not pod.is_over and not pod.is_leaving and _trouble(pod) is None


def _failing(pod: Pod, said: str, grace: timedelta, failure: FailureReason, now: datetime) -> RunStanding:
    """Waiting until `grace` is over since a node was found for the pod, then failed."""
    message = f"Pod {pod.name} cannot start: {_ended(said)}"
    left = (pod.placed or pod.created) + grace - now
    if left > timedelta(0):
        return RunStanding(Standing.WAITING, message, requeue_after=left)
    return RunStanding(Standing.FAILED, message, failure)


def _trouble(pod: Pod) -> _Trouble | None:
    """The first container that the kubelet cannot start, in the order in which it starts them."""
    first = [c for c in pod.companions if c.comes_first]
    waits = [_Trouble(c.name, c.waiting_reason, c.waiting_message) for c in first]
    waits.append(_Trouble(CONTAINER, pod.waiting_reason, pod.waiting_message))
    return next((trouble for trouble in waits if trouble.reason not in _NORMAL), None)


def _running_before_the_trainer(pod: Pod) -> str:
    """Name of an init container that still runs, or of a native sidecar that is not ready."""
    running = [c for c in pod.companions if c.comes_first and c.is_running]
    return next((c.name for c in running if not (c.is_sidecar and c.is_ready)), "")


def _has_network_and_volumes(pod: Pod) -> bool:
    """Whether its sandbox and its volumes are there: only its images and containers are still to come."""
    ready = pod.conditions.get("PodReadyToStartContainers")
    return ready is not None and ready.status == "True"


def _ended(said: str) -> str:
    """`said` as the end of a sentence."""
    shown = said if len(said) <= _LONGEST_WORD else f"{said[:_LONGEST_WORD]}..."
    return f"{shown.rstrip('. ')}."
