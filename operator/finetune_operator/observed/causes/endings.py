"""Finds why a pod failed: one sentence and a failure reason.

The sources, in this order: the cluster, if the cluster ended the pod; the trainer's termination message; the condition
that the trainer wrote in the status; the exit code."""

import signal

from finetune_api import names
from finetune_api.reasons import SUPERSEDED_EXIT_CODE, FailureReason, reason_of_exit_code
from finetune_api.signals import ended_by, without_cause
from finetune_operator.observed.causes import runtime_words
from finetune_operator.observed.facts.pods import NEVER_RAN, Companion, NodeState, Pod
from finetune_operator.observed.standing import End

_DISRUPTIONS = {
    "PreemptionByScheduler": (FailureReason.PREEMPTED, "The pod was preempted by a pod of higher priority."),
    "EvictionByEvictionAPI": (FailureReason.EVICTED, "The pod was evicted, for example because its node was drained."),
    "TerminationByKubelet": (
        FailureReason.EVICTED,
        "The kubelet ended the pod, for example because the node ran out of resources or was shut down.",
    ),
    "DeletionByTaintManager": (
        FailureReason.NODE_LOST,
        "The pod's node was tainted, for example because it was unreachable.",
    ),
    "DeletionByPodGC": (FailureReason.NODE_LOST, "The pod's node no longer exists."),
}
"""Reasons of the Pod condition DisruptionTarget, from the Kubernetes documentation about disruptions."""

_OWN_LIMITS = (
    "Usage of EmptyDir volume",
    "exceeded its local ephemeral storage limit",
    "Pod ephemeral local storage usage exceeds",
)
"""The kubelet's words for a pod that has reached a limit of its own on disk space, from pkg/kubelet/eviction. All its
other messages are about the node: "The node was low on resource", "The node had condition"."""
_UNKNOWN_END = {"ContainerStatusUnknown", "Unknown"}
"""Termination reasons of the kubelet and containerd for a container whose end they did not observe."""
_NO_ROOM = {"NodeAffinity", "NodePorts", "NodeShutdown", "TaintToleration", "TopologyAffinityError"}
"""Reasons with which a kubelet refuses a pod for which it has no room now: beside OutOfcpu, OutOfnvidia.com/gpu and the
like. TopologyAffinityError: its resources are free, but not all on one NUMA node."""
_REFUSALS = {
    "AdmissionFailed",
    "AppArmor",
    "Forbidden",
    "InitContainerRestartPolicyForbidden",
    "InvalidNodeInfo",
    "PodFeatureUnsupported",
    "PodOSNotSupported",
    "PodOSSelectorNodeLabelDoesNotMatch",
    "SMTAlignmentError",
    "SupplementalGroupsPolicyNotSupported",
    "SysctlForbidden",
    "UnexpectedAdmissionError",
}
"""Reasons with which a kubelet refuses a pod because its node cannot run it: a device that is broken, or a setting of
the node. From pkg/kubelet. The scheduler does not know of them, and may choose the same node again."""
_COMMAND_EXIT_CODES = (126, 127)
"""Exit codes of a shell and of a runtime for a command that cannot be run or does not exist."""

_USAGE_EXIT_CODE, _REFUSED_ARGUMENT = 2, "error: unrecognized arguments: "
"""How argparse ends a program with arguments that it does not know."""


def why_failed(pod: Pod, said: End | None = None) -> End:
    """Return why a pod failed. `said`: the failure that the pod wrote in the status, if any."""
    if cluster := _by_the_cluster(pod):
        return cluster
    if pod.termination_reason == "OOMKilled":
        return "The container exceeded its memory limit and was killed.", FailureReason.HOST_OUT_OF_MEMORY
    if pod.termination is not None and pod.termination.reason == "Superseded":
        return pod.termination.message, FailureReason.STATUS_NOT_WRITABLE
    if pod.termination is not None and isinstance(pod.termination.reason, FailureReason):
        return pod.termination.message, pod.termination.reason
    if said is not None:
        return said
    return _without_a_container(pod) if pod.exit_code is None else _by_exit_code(pod, pod.exit_code)


def lost(pod: Pod, said: End | None = None) -> End:
    """Return why a pod is gone whose node never reported its end."""
    if said is not None:
        return said
    disruption = pod.conditions.get("DisruptionTarget")
    if pod.node_state is NodeState.GONE:
        return f"Node {pod.node_name}, which ran the pod, was deleted or is out of service.", FailureReason.NODE_LOST
    reason, message = _DISRUPTIONS.get(disruption.reason if disruption else "", (FailureReason.NODE_LOST, ""))
    return message or f"Node {pod.node_name} stopped responding while it ran the pod.", reason


def _by_the_cluster(pod: Pod) -> End | None:
    """Return the cause that the cluster reports, if the cluster ended the pod before the trainer ended."""
    disruption = pod.conditions.get("DisruptionTarget")
    if disruption is not None and disruption.reason in _DISRUPTIONS:
        if pod.finished is not None and disruption.since is not None and disruption.since > pod.finished:
            return None
        reason, message = _DISRUPTIONS[disruption.reason]
        return _by_the_kubelet(pod) or (message, reason)
    if (evicted := _by_the_kubelet(pod)) is not None:
        return evicted
    if pod.reason == "DeadlineExceeded":
        return "The pod reached its activeDeadlineSeconds, which the operator does not set.", FailureReason.EVICTED
    return None


def _by_the_kubelet(pod: Pod) -> End | None:
    """Return why the kubelet evicted the pod, with its own words; None if it did not.

    A pod that fills its own volumes does that again on every node. A node that is full says nothing about the pod, also
    where the kubelet adds that a container used more than it had requested: it counts only the container's root file
    system and log, and the trainer writes to volumes."""
    if pod.reason != "Evicted":
        return None
    own = any(words in pod.message for words in _OWN_LIMITS)
    said = pod.message.strip() or "the kubelet does not say why."
    return f"The pod was evicted: {said}", FailureReason.DISK_FULL if own else FailureReason.EVICTED


def _without_a_container(pod: Pod) -> End:
    """Return why a pod failed in which the trainer's container never ran."""
    failed = next((c for c in pod.companions if c.comes_first and c.exit_code), None)
    if failed is not None and failed.name == names.FETCHER:
        return _while_fetching(pod, failed)
    if failed is not None and (end := _by_the_node(pod, failed.runtime_error)) is not None:
        return end
    if failed is not None:
        return (
            f"Container {failed.name} failed with exit code {failed.exit_code}. It was added to pod {pod.name} and "
            f"runs before the trainer. Its log: kubectl logs {pod.name} --container {failed.name}.",
            FailureReason.POD_START_FAILED,
        )
    said = f"{pod.message or pod.reason or 'no cause is reported'}".rstrip(".")
    if pod.reason.startswith("OutOf") or pod.reason in _NO_ROOM:
        return f"Node {pod.node_name} refused the pod: {said}.", FailureReason.EVICTED
    if pod.reason in _REFUSALS:
        return f"Node {pod.node_name} refused the pod: {pod.reason}: {said}.", FailureReason.NODE_FAULT
    return f"Pod {pod.name} failed: {said}.", FailureReason.NODE_LOST


def _never_started(pod: Pod, error: str) -> End:
    """Return why a container of the trainer's image was not started. `error`: the words of the container runtime."""
    finding = f"The command of spec.trainer.image could not be run{f': {error}' if error else ''}".rstrip(".")
    return _by_the_node(pod, error) or (f"{finding}.", FailureReason.POD_START_FAILED)


def _by_the_node(pod: Pod, error: str) -> End | None:
    """Return that the node is at fault for a container that was not started; None if its command is, or if the
    container runtime says nothing."""
    reason = runtime_words.of_start(error, pod.trains)
    if not error or (reason is None and runtime_words.is_about_the_command(error)):
        return None
    said = error.strip().rstrip(".")
    return f"Node {pod.node_name} could not start the container: {said}.", reason or FailureReason.NODE_FAULT


def _while_fetching(pod: Pod, fetcher: Companion) -> End:
    """Return why the container failed that fetches the base model. It runs the trainer's program and has its exit
    codes."""
    if fetcher.ended_as == "OOMKilled":
        message, reason = "The container exceeded its memory limit and was killed.", FailureReason.HOST_OUT_OF_MEMORY
    elif fetcher.ended_as in NEVER_RAN:
        message, reason = _never_started(pod, fetcher.runtime_error)
    else:
        message, reason = _by_exit_code(pod, fetcher.exit_code or 0)
    return f"While the base model was fetched: {message}", reason


def _by_exit_code(pod: Pod, code: int) -> End:
    """Return what the exit code shows if nothing else reports a cause. Above 128 it contains a signal."""
    if pod.termination_reason in _UNKNOWN_END:
        return (
            "The node did not observe the end of the container, for example because the node was restarted.",
            FailureReason.NODE_LOST,
        )
    if pod.termination_reason in NEVER_RAN or code in _COMMAND_EXIT_CODES:
        return _never_started(pod, pod.termination_text if pod.termination_reason in NEVER_RAN else "")
    if code == _USAGE_EXIT_CODE and _REFUSED_ARGUMENT in pod.termination_text:
        return (
            "The trainer is older than the operator, and does not know an argument that this job needs. Update "
            "spec.trainer.image of the FineTuneProfile.",
            FailureReason.POD_START_FAILED,
        )
    if pod.is_leaving and code in (128 + signal.SIGKILL, 128 + signal.SIGTERM):
        return f"Pod {pod.name} was deleted before its work was done.", FailureReason.EVICTED
    if code == SUPERSEDED_EXIT_CODE:
        return (
            "The pod stopped because it may no longer write the status of the job.",
            FailureReason.STATUS_NOT_WRITABLE,
        )
    if code > 128:
        return ended_by(code)
    return without_cause(code, named=_named(pod.termination_reason)), reason_of_exit_code(code)


def _named(termination_reason: str) -> str:
    return "" if termination_reason in ("", "Error") else f" ({termination_reason})"
