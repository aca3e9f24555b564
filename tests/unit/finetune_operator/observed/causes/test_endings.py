"""Why a pod failed: what the cluster says first, then the trainer's own word, then its exit code."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FAILURES, FailureReason, Retry
from finetune_operator.observed.causes.endings import lost, why_failed
from finetune_operator.observed.facts.pods import Companion, Pod, PodCondition
from tests.unit.finetune_operator.worlds import NOW, pod

SAID = TerminationMessage(reason=FailureReason.LOSS_DIVERGED, message="Loss is NaN at step 7.")


def disrupted(reason: str, seconds: int | None = None) -> dict[str, Any]:
    """`seconds`: how long after the trainer's end."""
    since = None if seconds is None else NOW + timedelta(seconds=seconds)
    return {"conditions": {"DisruptionTarget": PodCondition("True", reason, "", since)}, "finished": NOW}


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        (disrupted("PreemptionByScheduler"), FailureReason.PREEMPTED),
        (disrupted("EvictionByEvictionAPI"), FailureReason.EVICTED),
        (disrupted("DeletionByTaintManager"), FailureReason.NODE_LOST),
        (disrupted("PreemptionByScheduler") | {"termination": SAID}, FailureReason.PREEMPTED),
        (disrupted("EvictionByEvictionAPI", -5) | {"termination": SAID}, FailureReason.EVICTED),
        (disrupted("EvictionByEvictionAPI", 5) | {"termination": SAID}, FailureReason.LOSS_DIVERGED),
        ({"reason": "Evicted"}, FailureReason.EVICTED),
        ({"reason": "DeadlineExceeded", "exit_code": 137}, FailureReason.EVICTED),
        ({"reason": "OutOfnvidia.com/gpu", "message": "Node didn't have enough resource."}, FailureReason.EVICTED),
        ({"reason": "UnexpectedAdmissionError", "message": "Allocate failed"}, FailureReason.NODE_FAULT),
        ({"reason": "SMTAlignmentError", "message": "SMT Alignment Error"}, FailureReason.NODE_FAULT),
        ({"reason": "TopologyAffinityError", "message": "Resources cannot be allocated"}, FailureReason.EVICTED),
        ({"reason": "NodeShutdown", "message": "Pod was rejected"}, FailureReason.EVICTED),
        ({"reason": "Unheard", "message": "Of."}, FailureReason.NODE_LOST),
        ({"termination_reason": "OOMKilled", "exit_code": 137}, FailureReason.HOST_OUT_OF_MEMORY),
        ({"termination": SAID, "exit_code": 29}, FailureReason.LOSS_DIVERGED),
        ({"exit_code": 31}, FailureReason.GPU_FAULT),
        ({"exit_code": 14}, FailureReason.TRAINING_STALLED),
        ({"exit_code": 1}, FailureReason.TRAINER_CRASHED),
        ({"exit_code": 40}, FailureReason.STATUS_NOT_WRITABLE),
        ({"exit_code": 127}, FailureReason.POD_START_FAILED),
        ({"exit_code": 137, "termination_reason": "ContainerStatusUnknown"}, FailureReason.NODE_LOST),
        ({"exit_code": 255, "termination_reason": "Unknown"}, FailureReason.NODE_LOST),
        ({"exit_code": 137, "due": NOW}, FailureReason.EVICTED),
        ({}, FailureReason.NODE_LOST),
    ],
)
def test_a_failed_pod_is_told_apart(fields: dict[str, Any], failure: FailureReason) -> None:
    message, reason = why_failed(pod("Failed", **fields))

    assert reason is failure
    assert message.endswith(".")


OWN = [
    'Usage of EmptyDir volume "scratch" exceeds the limit "200Gi". ',
    'Container trainer exceeded its local ephemeral storage limit "10Gi". ',
    "Pod ephemeral local storage usage exceeds the total limit of containers 10Gi. ",
]
FULL_NODE = [
    "The node was low on resource: memory. ",
    "The node was low on resource: inodes. ",
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. ",
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. "
    "Container trainer was using 20Ki, request is 0, has larger consumption of ephemeral-storage. ",
    "The node was low on resource: ephemeral-storage. Container trainer was using 20Ki, which exceeds its request of "
    "0. ",
    "The node had condition: [DiskPressure]. ",
]


@pytest.mark.parametrize("disruption", [{}, disrupted("TerminationByKubelet")], ids=["", "as a disruption"])
@pytest.mark.parametrize("said", [*OWN, *FULL_NODE])
def test_a_pod_that_fills_its_own_volumes_is_told_apart_from_a_node_that_its_neighbours_fill(
    said: str, disruption: dict[str, Any]
) -> None:
    """The messages of the kubelet, from pkg/kubelet/eviction. What it says about containers leaves out the volumes."""
    found = why_failed(pod("Failed", reason="Evicted", message=said, **disruption))

    reason = FailureReason.DISK_FULL if said in OWN else FailureReason.EVICTED
    assert found == (f"The pod was evicted: {said.strip()}", reason)


@pytest.mark.parametrize(
    ("number", "failure", "words"),
    [
        (
            1,
            FailureReason.PREEMPTED,
            "SIGHUP ended the trainer (exit code 129), which means that the trainer was asked to stop",
        ),
        (2, FailureReason.PREEMPTED, "SIGINT"),
        (4, FailureReason.TRAINER_CRASHED, "built for a newer CPU"),
        (
            6,
            FailureReason.TRAINER_CRASHED,
            "SIGABRT ended the trainer (exit code 134), which happens when a library aborts",
        ),
        (7, FailureReason.DISK_FULL, "SIGBUS ended the trainer (exit code 135)"),
        (
            9,
            FailureReason.KILLED,
            "SIGKILL ended the trainer (exit code 137), but the container had not exceeded its memory limit",
        ),
        (11, FailureReason.TRAINER_CRASHED, "SIGSEGV ended the trainer (exit code 139)"),
        (13, FailureReason.TRAINER_CRASHED, "SIGPIPE ended the trainer (exit code 141), without reporting a cause"),
        (
            15,
            FailureReason.PREEMPTED,
            "SIGTERM ended the trainer (exit code 143), which means that the trainer was asked to stop",
        ),
        (31, FailureReason.TRAINER_CRASHED, "seccomp"),
        (40, FailureReason.TRAINER_CRASHED, "exit code 168"),
    ],
)
def test_a_signal_is_named_with_what_it_means(number: int, failure: FailureReason, words: str) -> None:
    message, reason = why_failed(pod("Failed", exit_code=128 + number, termination_reason="Error"))

    assert reason is failure
    assert words in message


@given(st.integers(1, 255), st.sampled_from(["", "Error", "OOMKilled", "StartError", "Unknown"]), st.text(max_size=50))
def test_every_exit_code_has_a_sentence_that_ends(code: int, why: str, text: str) -> None:
    message, reason = why_failed(pod("Failed", exit_code=code, termination_reason=why, termination_text=text))

    assert message.endswith(".")
    assert reason in FAILURES


def test_a_kill_is_no_error_in_the_trainer() -> None:
    for code in (137, 143):
        _, reason = why_failed(pod("Failed", exit_code=code))
        assert "error is in the trainer" not in FAILURES[reason].remedy


@pytest.mark.parametrize(
    "reason", ["OutOfnvidia.com/gpu", "NodeAffinity", "TopologyAffinityError", "UnexpectedAdmissionError", "AppArmor"]
)
def test_a_pod_that_its_kubelet_refuses_names_the_node_and_the_words_of_the_kubelet(reason: str) -> None:
    said = "Pod was rejected: Allocate failed due to unhealthy devices, which is unexpected."

    message, _ = why_failed(pod("Failed", started=None, reason=reason, message=said))

    assert message.startswith("Node n1 refused the pod: ")
    assert message.endswith("Pod was rejected: Allocate failed due to unhealthy devices, which is unexpected.")


SHIM = "failed to create containerd task: failed to create shim task: "
OF_THE_GPU = [
    f"{SHIM}OCI runtime create failed: error running hook #0: exit status 1, stdout: , stderr: Auto-detected mode as "
    "'legacy'\nnvidia-container-cli: initialization error: nvml error: driver not loaded: unknown",
    f"{SHIM}OCI runtime create failed: could not apply required modification to OCI specification: failed to inject "
    "CDI devices: unresolvable CDI devices nvidia.com/gpu=0: unknown",
    'could not select device driver "nvidia" with capabilities: [[gpu]]',
    f"{SHIM}failed to create NVIDIA Container Runtime: failed to construct discoverer: unknown",
    f'{SHIM}fork/exec /usr/bin/nvidia-container-runtime: no such file or directory: "": unknown',
    f'{SHIM}error gathering device information while adding custom device "/dev/nvidia0": no such file or directory',
]
OF_THE_NODE = [
    f"{SHIM}context deadline exceeded: unknown",
    f"{SHIM}OCI runtime create failed: runc create failed: unable to start container process: cannot allocate memory",
    "failed to mount rootfs component: no space left on device: unknown",
    "ttrpc: closed",
    "words that nobody knows",
]
OF_THE_COMMAND = [
    f'{SHIM}OCI runtime create failed: exec: "python": executable file not found in $PATH: unknown',
    f'{SHIM}OCI runtime create failed: exec: "/opt/trainer": stat /opt/trainer: no such file or directory: unknown',
    f'{SHIM}OCI runtime create failed: exec: "/etc/hosts": permission denied: unknown',
    "exec /usr/bin/python: exec format error",
    "",
]


def ended_by_the_runtime(container: str, error: str, **fields: Any) -> Pod:
    """A pod of which the runtime could not start this container."""
    end = {"exit_code": 128, "termination_reason": "StartError", "termination_text": error}
    if container == "trainer":
        return pod("Failed", **end, **fields)
    first = Companion(container, comes_first=True, exit_code=128, ended_as="StartError", runtime_error=error)
    return pod("Failed", started=None, companions=(first,), **fields)


@pytest.mark.parametrize("container", ["trainer", "fetch-model", "istio-init"])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("error", [*OF_THE_GPU, *OF_THE_NODE, *OF_THE_COMMAND])
def test_a_container_that_was_not_started_is_told_apart_by_the_words_of_the_runtime(
    error: str, trains: bool, container: str
) -> None:
    message, reason = why_failed(ended_by_the_runtime(container, error, trains=trains))

    if error in OF_THE_COMMAND:
        assert (reason, error in message) == (FailureReason.POD_START_FAILED, container != "istio-init" or not error)
        return
    assert reason is (FailureReason.GPU_FAULT if error in OF_THE_GPU and trains else FailureReason.NODE_FAULT)
    assert f"Node n1 could not start the container: {error}." in message
    assert FAILURES[reason].retry is not Retry.NEVER


@pytest.mark.parametrize("code", [126, 127])
def test_a_shell_that_cannot_run_the_command_is_no_fault_of_the_node(code: int) -> None:
    log = "sh: 1: python: cannot allocate memory"

    found = why_failed(pod("Failed", exit_code=code, termination_reason="Error", termination_text=log))

    assert found == ("The command of spec.trainer.image could not be run.", FailureReason.POD_START_FAILED)


def test_a_command_that_cannot_be_run_shows_the_runtimes_error_and_a_crash_shows_no_log() -> None:
    error = 'exec: "python": executable file not found in $PATH'
    started = pod("Failed", exit_code=128, termination_reason="StartError", termination_text=error)
    crashed = pod("Failed", exit_code=1, termination_reason="Error", termination_text="KeyError: 'a secret ticket'")

    assert error in why_failed(started)[0]
    assert "secret" not in why_failed(crashed)[0]


def test_a_trainer_that_does_not_know_an_argument_is_older_than_the_operator() -> None:
    usage = "usage: finetune_trainer\nfinetune_trainer: error: unrecognized arguments: --claims /v\n"
    message, reason = why_failed(pod("Failed", exit_code=2, termination_reason="Error", termination_text=usage))
    assert reason is FailureReason.POD_START_FAILED
    assert message.startswith("The trainer is older than the operator")
    assert message.endswith("Update spec.trainer.image of the FineTuneProfile.")
    assert why_failed(pod("Failed", exit_code=2, termination_reason="Error"))[1] is FailureReason.TRAINER_CRASHED


def test_the_trainers_own_sentence_is_kept() -> None:
    assert why_failed(pod("Failed", termination=SAID))[0] == "Loss is NaN at step 7."


def test_what_the_pod_wrote_in_the_status_counts_where_it_left_no_message() -> None:
    killed = pod("Failed", exit_code=137)

    said = ("Loss is NaN at step 7.", FailureReason.LOSS_DIVERGED)
    assert why_failed(killed, said) == lost(killed, said) == said
    assert lost(killed)[1] is FailureReason.NODE_LOST


def test_a_container_added_before_the_trainer_is_named_where_it_fails() -> None:
    failed = Companion("istio-init", comes_first=True, exit_code=255)

    message, reason = why_failed(pod("Failed", name="p", started=None, companions=(failed,)))

    assert reason is FailureReason.POD_START_FAILED
    assert message.startswith("Container istio-init failed with exit code")
    assert "kubectl logs p --container istio-init" in message


@pytest.mark.parametrize(
    ("ended", "leaving", "reason"),
    [
        ({"exit_code": 33, "ended_as": "Error"}, True, FailureReason.PREEMPTED),
        ({"exit_code": 137, "ended_as": "OOMKilled"}, False, FailureReason.HOST_OUT_OF_MEMORY),
        ({"exit_code": 137, "ended_as": "Error"}, True, FailureReason.EVICTED),
        ({"exit_code": 137, "ended_as": "Error"}, False, FailureReason.KILLED),
        ({"exit_code": 14, "ended_as": "Error"}, False, FailureReason.TRAINING_STALLED),
        ({"exit_code": 2, "ended_as": "Error"}, False, FailureReason.TRAINER_CRASHED),
    ],
)
def test_a_pod_that_ends_while_it_fetches_its_model_is_an_attempt_that_is_tried_again(
    ended: dict[str, Any], leaving: bool, reason: FailureReason
) -> None:
    fetcher = Companion("fetch-model", comes_first=True, **ended)

    message, found = why_failed(pod("Failed", started=None, companions=(fetcher,), due=NOW if leaving else None))

    assert found is reason
    assert FAILURES[found].retry is not Retry.NEVER
    assert message.startswith("While the base model was fetched: ")


def test_a_pod_that_could_no_longer_write_the_status_says_so() -> None:
    stopped = TerminationMessage(reason="Superseded", message="Stopped: HTTP 403.")

    assert why_failed(pod("Failed", exit_code=40, termination=stopped)) == (
        "Stopped: HTTP 403.",
        FailureReason.STATUS_NOT_WRITABLE,
    )
