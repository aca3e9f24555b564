"""Reads where one child Job stands: absent, waiting, running, succeeded or failed, and why, in one sentence."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from finetune_api.reasons import FailureReason, reason_of_exit_code
from finetune_operator.world import Pod, Run

IMAGE_GRACE = timedelta(seconds=60)
"""How long an image may fail to be pulled before it counts: registries have their moments."""

LOOK_AGAIN = timedelta(seconds=10)
"""A pod that is refused makes an Event, which nobody watches for."""

LOST_GRACE = timedelta(seconds=60)
"""How long a deleted pod may outstay its grace period: on a node that is gone it stays Running for ever."""

_IMAGE_TROUBLE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_CONTAINER_TROUBLE = {"CreateContainerConfigError", "CreateContainerError"}

_DISRUPTIONS = {
    "PreemptionByScheduler": (FailureReason.PREEMPTED, "The pod was preempted by one of higher priority."),
    "EvictionByEvictionAPI": (FailureReason.EVICTED, "The pod was evicted, as when a node is drained."),
    "TerminationByKubelet": (FailureReason.EVICTED, "The node ended the pod to protect itself."),
    "DeletionByTaintManager": (FailureReason.NODE_LOST, "The pod's node was tainted, as when it is unreachable."),
    "DeletionByPodGC": (FailureReason.NODE_LOST, "The pod's node is gone."),
}
"""Reasons of the Pod condition DisruptionTarget, from the Kubernetes documentation on disruptions."""


class Standing(Enum):
    """Where a run stands."""

    ABSENT = "Absent"
    WAITING = "Waiting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class Assessment:
    """Where a run stands and why."""

    standing: Standing
    message: str = ""
    failure: FailureReason | None = None
    requeue_after: timedelta | None = None


def assess(run: Run | None, now: datetime) -> Assessment:
    """Where this run stands. The first statement that holds counts."""
    if run is None:
        return Assessment(Standing.ABSENT)
    pod = run.pod
    if run.succeeded or (pod is not None and pod.phase == "Succeeded"):
        return Assessment(Standing.SUCCEEDED)
    if pod is not None and pod.phase == "Failed":
        return Assessment(Standing.FAILED, *_why(pod))
    if run.failed:
        return Assessment(Standing.FAILED, f"Pod of Job {run.name} was removed before it ended.", FailureReason.EVICTED)
    if pod is None:
        refused = f"The pod of Job {run.name} is refused: {run.refusal}".rstrip(".") + "."
        message = refused if run.refusal else f"Job {run.name} has no pod yet."
        return Assessment(Standing.WAITING, message, requeue_after=LOOK_AGAIN)
    if pod.due is not None and now >= pod.due + LOST_GRACE:
        return Assessment(Standing.FAILED, *_lost(pod))
    if pod.started is not None:
        return Assessment(Standing.RUNNING, requeue_after=pod.due + LOST_GRACE - now if pod.due else None)
    return _waiting(pod, now)


def _waiting(pod: Pod, now: datetime) -> Assessment:
    trouble = pod.waiting_reason in _IMAGE_TROUBLE | _CONTAINER_TROUBLE
    if trouble:
        placed = pod.conditions.get("PodScheduled")
        left = ((placed and placed.since) or pod.created) + IMAGE_GRACE - now
        message = f"Pod {pod.name} cannot start: {pod.waiting_reason}: {pod.waiting_message}".rstrip(".") + "."
        if left > timedelta(0):
            return Assessment(Standing.WAITING, message, requeue_after=left)
        image = pod.waiting_reason in _IMAGE_TROUBLE
        failure = FailureReason.IMAGE_PULL_FAILED if image else FailureReason.TRAINER_CRASHED
        return Assessment(Standing.FAILED, message, failure)
    scheduled = pod.conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return Assessment(Standing.WAITING, f"Waiting for a node: {scheduled.message}")
    return Assessment(Standing.WAITING, f"Pod {pod.name} is starting.")


def _lost(pod: Pod) -> tuple[str, FailureReason]:
    """Why a pod is gone whose node never said that it ended."""
    disruption = pod.conditions.get("DisruptionTarget")
    reason, message = _DISRUPTIONS.get(disruption.reason if disruption else "", (FailureReason.NODE_LOST, ""))
    return message or f"Node {pod.node_name} stopped answering while it ran the pod.", reason


def _why(pod: Pod) -> tuple[str, FailureReason]:
    """Why a pod failed: what the cluster says of it first, then what the trainer said itself."""
    disruption = pod.conditions.get("DisruptionTarget")
    if disruption is not None and disruption.reason in _DISRUPTIONS:
        reason, message = _DISRUPTIONS[disruption.reason]
        if reason is FailureReason.EVICTED and _is_about_disk(pod.message):
            return f"The pod was evicted: {pod.message}", FailureReason.DISK_FULL
        return message, reason
    if pod.reason == "Evicted":
        reason = FailureReason.DISK_FULL if _is_about_disk(pod.message) else FailureReason.EVICTED
        return f"The pod was evicted: {pod.message}", reason
    if pod.termination_reason == "OOMKilled":
        return "The container went over its memory limit and was killed.", FailureReason.HOST_OUT_OF_MEMORY
    if pod.termination is not None and isinstance(pod.termination.reason, FailureReason):
        return pod.termination.message, pod.termination.reason
    if pod.exit_code is None:
        return f"Pod {pod.name} failed: {pod.message or pod.reason or 'no word why'}.", FailureReason.NODE_LOST
    if pod.exit_code == 143:
        return "The pod was asked to stop before it could say why.", FailureReason.PREEMPTED
    return (
        f"The trainer ended with exit code {pod.exit_code}{_named(pod.termination_reason)} without saying why.",
        reason_of_exit_code(pod.exit_code),
    )


def _named(termination_reason: str) -> str:
    return "" if termination_reason in ("", "Error") else f" ({termination_reason})"


def _is_about_disk(message: str) -> bool:
    return any(word in message.lower() for word in ("ephemeral", "emptydir", "disk"))
