"""Why a pod failed, in one sentence with a typed reason. The order of witnesses: the cluster, where it ended the pod;
the trainer's termination message; what the trainer wrote in the status; its exit code."""

import signal

from finetune_api.reasons import SUPERSEDED_EXIT_CODE, FailureReason, reason_of_exit_code
from finetune_operator.observed.pods import Pod
from finetune_operator.observed.standing import End

_DISRUPTIONS = {
    "PreemptionByScheduler": (FailureReason.PREEMPTED, "The pod was preempted by one of higher priority."),
    "EvictionByEvictionAPI": (FailureReason.EVICTED, "The pod was evicted, as when a node is drained."),
    "TerminationByKubelet": (FailureReason.EVICTED, "The node ended the pod to protect itself."),
    "DeletionByTaintManager": (FailureReason.NODE_LOST, "The pod's node was tainted, as when it is unreachable."),
    "DeletionByPodGC": (FailureReason.NODE_LOST, "The pod's node is gone."),
}
"""Reasons of the Pod condition DisruptionTarget, from the Kubernetes documentation on disruptions."""

_UNKNOWN_END = {"ContainerStatusUnknown", "Unknown"}
"""Termination reasons the kubelet and containerd give for a container they lost sight of."""
_NEVER_RAN = {"StartError", "ContainerCannotRun"}
"""Termination reasons for a container whose command could not be run; the runtime's error is in its message."""

_SIGNALS = {
    signal.SIGKILL: (
        FailureReason.KILLED,
        "though not for going over its own memory limit: the node ran out of memory, or somebody killed it",
    ),
    signal.SIGTERM: (FailureReason.PREEMPTED, "so it was asked to stop before it could say why"),
    signal.SIGINT: (FailureReason.PREEMPTED, "so it was asked to stop before it could say why"),
    signal.SIGHUP: (FailureReason.PREEMPTED, "so it was asked to stop before it could say why"),
    signal.SIGBUS: (
        FailureReason.DISK_FULL,
        "as when a file that is mapped into memory cannot be read or written: /dev/shm, the scratch volume or the "
        "node's disk was full",
    ),
    signal.SIGABRT: (FailureReason.TRAINER_CRASHED, "as when a library aborts over an error that it cannot handle"),
    signal.SIGSEGV: (FailureReason.TRAINER_CRASHED, "as when a library or a driver uses memory that is not its own"),
    signal.SIGILL: (
        FailureReason.TRAINER_CRASHED,
        "as when a library was built for a newer CPU than the node's",
    ),
    signal.SIGSYS: (
        FailureReason.TRAINER_CRASHED,
        "as when the pod's seccomp profile forbids a system call",
    ),
}
"""What each signal that ends a process means for a trainer; the words follow its name."""


def why_failed(pod: Pod, said: End | None = None) -> End:
    """Why a pod failed. `said`: what it wrote in the status itself, if that was a failure."""
    if cluster := _by_the_cluster(pod):
        return cluster
    if pod.termination_reason == "OOMKilled":
        return "The container went over its memory limit and was killed.", FailureReason.HOST_OUT_OF_MEMORY
    if pod.termination is not None and pod.termination.reason == "Superseded":
        return pod.termination.message, FailureReason.STATUS_NOT_WRITABLE
    if pod.termination is not None and isinstance(pod.termination.reason, FailureReason):
        return pod.termination.message, pod.termination.reason
    if said is not None:
        return said
    return _without_a_container(pod) if pod.exit_code is None else _by_exit_code(pod, pod.exit_code)


def lost(pod: Pod, said: End | None = None) -> End:
    """Why a pod is gone whose node never said that it ended."""
    if said is not None:
        return said
    disruption = pod.conditions.get("DisruptionTarget")
    reason, message = _DISRUPTIONS.get(disruption.reason if disruption else "", (FailureReason.NODE_LOST, ""))
    return message or f"Node {pod.node_name} stopped answering while it ran the pod.", reason


def _by_the_cluster(pod: Pod) -> End | None:
    """What the cluster says where it ended the pod, unless the trainer had ended before."""
    disruption = pod.conditions.get("DisruptionTarget")
    if disruption is not None and disruption.reason in _DISRUPTIONS:
        if pod.finished is not None and disruption.since is not None and disruption.since > pod.finished:
            return None
        reason, message = _DISRUPTIONS[disruption.reason]
        if reason is FailureReason.EVICTED and _is_about_disk(pod.message):
            return f"The pod was evicted: {pod.message}", FailureReason.DISK_FULL
        return message, reason
    if pod.reason == "Evicted":
        reason = FailureReason.DISK_FULL if _is_about_disk(pod.message) else FailureReason.EVICTED
        return f"The pod was evicted: {pod.message}", reason
    if pod.reason == "DeadlineExceeded":
        set_by = "activeDeadlineSeconds, which something other than the operator set on it"
        return f"The pod was ended at its {set_by}.", FailureReason.EVICTED
    return None


def _without_a_container(pod: Pod) -> End:
    """Of a pod whose trainer's container never ran."""
    failed = next((c for c in pod.companions if c.comes_first and c.exit_code), None)
    if failed is not None:
        return (
            f"Container {failed.name}, which was added to pod {pod.name} and runs before the trainer, failed with exit "
            f"code {failed.exit_code}: see kubectl logs {pod.name} --container {failed.name}.",
            FailureReason.POD_START_FAILED,
        )
    said = f"{pod.message or pod.reason or 'no word why'}".rstrip(".")
    # Reasons with which a kubelet refuses a pod: OutOfcpu, OutOfnvidia.com/gpu, UnexpectedAdmissionError, NodeAffinity.
    if pod.reason.startswith("OutOf") or pod.reason in ("UnexpectedAdmissionError", "NodeAffinity"):
        return f"Node {pod.node_name} refused the pod: {said}.", FailureReason.EVICTED
    return f"Pod {pod.name} failed: {said}.", FailureReason.NODE_LOST


def _by_exit_code(pod: Pod, code: int) -> End:
    """What an exit code says where nobody says more: nothing about a pod that was deleted, the signal above 128."""
    if pod.termination_reason in _UNKNOWN_END:
        return "The node lost sight of the container, as when it was restarted.", FailureReason.NODE_LOST
    if pod.termination_reason in _NEVER_RAN or code in (126, 127):
        error = f": {pod.termination_text}" if pod.termination_reason in _NEVER_RAN and pod.termination_text else ""
        return f"The command of trainer.image could not be run{error}".rstrip(".") + ".", FailureReason.POD_START_FAILED
    if pod.is_leaving and code in (128 + signal.SIGKILL, 128 + signal.SIGTERM):
        return f"Pod {pod.name} was deleted before its work was done.", FailureReason.EVICTED
    if code == SUPERSEDED_EXIT_CODE:
        return "The pod stopped: it may no longer write the job's status.", FailureReason.STATUS_NOT_WRITABLE
    if code > 128:
        return _by_signal(code)
    return f"The trainer ended with exit code {code}{_named(pod.termination_reason)} without saying why.", (
        reason_of_exit_code(code)
    )


def _by_signal(code: int) -> End:
    try:
        number = signal.Signals(code - 128)
    except ValueError:
        return f"The trainer ended with exit code {code} without saying why.", FailureReason.TRAINER_CRASHED
    reason, words = _SIGNALS.get(number, (FailureReason.TRAINER_CRASHED, "without saying why"))
    return f"Signal {number.name} ended the trainer (exit code {code}), {words}.", reason


def _named(termination_reason: str) -> str:
    return "" if termination_reason in ("", "Error") else f" ({termination_reason})"


def _is_about_disk(message: str) -> bool:
    return any(word in message.lower() for word in ("ephemeral", "emptydir", "disk"))
