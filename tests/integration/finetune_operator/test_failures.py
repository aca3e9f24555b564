"""Every way a pod can end badly ends the job with its own reason and a sentence for the tenant, and frees the GPU."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest

from devcluster import Cluster
from finetune_api import names
from finetune_api.reasons import FAILURES, FailureReason
from tests.integration.conftest import PROFILE, make_namespace
from tests.integration.finetune_operator.kubelet import NODE, Kubelet, PlayedPod
from tests.integration.finetune_operator.running import DELETED, training
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import PROFILES, Kube, RefusedError
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")

End = tuple[Callable[[PlayedPod], None], FailureReason, str]
TRACEBACK = "Traceback (most recent call last):\nKeyError: 'the text of a secret ticket'"
NO_DRIVER = "nvidia-container-cli: initialization error: nvml error: driver not loaded"
STUCK = "failed to create containerd task: failed to create shim task: context deadline exceeded"
NO_COMMAND = 'runc create failed: exec: "python": executable file not found in $PATH'
ENDS: dict[str, End] = {
    "it says why": (
        lambda pod: pod.fails(FailureReason.LOSS_DIVERGED, "Step 12: the loss is not a number."),
        FailureReason.LOSS_DIVERGED,
        "Step 12: the loss is not a number. Lower spec.training.learningRate",
    ),
    "no GPU to be found": (
        lambda pod: pod.fails(FailureReason.GPU_FAULT, "No usable GPU was found."),
        FailureReason.GPU_FAULT,
        "No usable GPU was found.",
    ),
    "only its exit code says why": (
        lambda pod: pod.crashes(FAILURES[FailureReason.GPU_OUT_OF_MEMORY].exit_code),
        FailureReason.GPU_OUT_OF_MEMORY,
        "The trainer ended with exit code 30",
    ),
    "a crash": (
        lambda pod: pod.crashes(1, TRACEBACK),
        FailureReason.TRAINER_CRASHED,
        "exit code 1 without reporting a cause",
    ),
    "killed": (
        lambda pod: pod.crashes(137),
        FailureReason.KILLED,
        "SIGKILL ended the trainer (exit code 137), but the container had not exceeded its memory limit",
    ),
    "a full /dev/shm": (lambda pod: pod.crashes(135), FailureReason.DISK_FULL, "SIGBUS ended the trainer"),
    "killed for memory": (
        lambda pod: pod.crashes(137, why="OOMKilled"),
        FailureReason.HOST_OUT_OF_MEMORY,
        "exceeded its memory limit and was killed.",
    ),
    "asked to stop": (lambda pod: pod.crashes(143), FailureReason.PREEMPTED, "asked to stop"),
    "evicted for memory": (
        lambda pod: pod.is_evicted("The node was low on resource: memory."),
        FailureReason.EVICTED,
        "The pod was evicted: The node was low on resource: memory.",
    ),
    "evicted for disk": (
        lambda pod: pod.is_evicted('Usage of EmptyDir volume "scratch" exceeds the limit "200Gi".'),
        FailureReason.DISK_FULL,
        'EmptyDir volume "scratch" exceeds the limit',
    ),
    "no driver": (
        lambda pod: pod.crashes(128, NO_DRIVER, why="StartError"),
        FailureReason.GPU_FAULT,
        f"Node {NODE} could not start the container: {NO_DRIVER}.",
    ),
    "a runtime that is stuck": (
        lambda pod: pod.crashes(128, STUCK, why="StartError"),
        FailureReason.NODE_FAULT,
        f"Node {NODE} could not start the container: {STUCK}.",
    ),
    "no such command": (
        lambda pod: pod.crashes(128, NO_COMMAND, why="StartError"),
        FailureReason.POD_START_FAILED,
        f"The command of spec.trainer.image could not be run: {NO_COMMAND}. Correct the cause",
    ),
    "refused for a broken device": (
        lambda pod: pod.is_refused("UnexpectedAdmissionError", "Allocate failed due to unhealthy devices"),
        FailureReason.NODE_FAULT,
        f"Node {NODE} refused the pod: UnexpectedAdmissionError: Allocate failed due to unhealthy devices.",
    ),
    "refused for its place": (
        lambda pod: pod.is_refused("TopologyAffinityError", "Resources cannot be allocated with Topology locality"),
        FailureReason.EVICTED,
        f"Node {NODE} refused the pod: Resources cannot be allocated with Topology locality.",
    ),
    "preempted": (
        lambda pod: pod.is_disrupted("PreemptionByScheduler"),
        FailureReason.PREEMPTED,
        "preempted by a pod of higher priority",
    ),
    "drained": (
        lambda pod: pod.is_disrupted("EvictionByEvictionAPI"),
        FailureReason.EVICTED,
        "for example because its node was drained",
    ),
    "unreachable node": (
        lambda pod: pod.is_disrupted("DeletionByTaintManager"),
        FailureReason.NODE_LOST,
        "for example because it was unreachable",
    ),
    "node gone": (lambda pod: pod.is_disrupted("DeletionByPodGC"), FailureReason.NODE_LOST, "node no longer exists"),
}
PREFLIGHT_ENDS: dict[str, End] = {
    "it says why": (
        lambda pod: pod.fails(
            FailureReason.DATASET_INVALID, "s3://acme-data/tickets/a.jsonl:17: completion is missing."
        ),
        FailureReason.DATASET_INVALID,
        "s3://acme-data/tickets/a.jsonl:17: completion is missing. Correct the rows",
    ),
    "killed for memory": ENDS["killed for memory"],
    "a crash": ENDS["a crash"],
    "evicted for disk": ENDS["evicted for disk"],
}


@pytest.fixture(scope="module")
def tenant(kube: Kube) -> Iterator[str]:
    """One namespace for all jobs of this module."""
    namespace = make_namespace(kube)
    yield namespace
    kube.delete(f"/api/v1/namespaces/{namespace}")


@pytest.mark.parametrize("end", ENDS)
def test_an_attempt_that_ends_badly(end: str, kube: Kube, tenant: str, kubelet: Kubelet) -> None:
    play, reason, text = ENDS[end]
    once = {"maxRetries": 0, "maxInterruptions": 0}
    job = Job.create(kube, tenant, manifest(f"attempt-{list(ENDS).index(end)}", runPolicy=once))
    kubelet.pod_of(tenant, job.child(PREFLIGHT)).validates()
    pod = kubelet.pod_of(tenant, job.child(ATTEMPT))
    pod.runs()
    job.wait_for_reason("Training")
    play(pod)

    job.assert_failed(reason, text)
    status = job.status()
    assert "secret ticket" not in str(status)
    (attempt,) = status["attempts"]
    assert (attempt["number"], attempt["name"], attempt["reason"]) == (1, job.child(ATTEMPT), reason)
    assert text.split(".")[0] in attempt["message"]
    if pod.exit_code is not None:
        assert (attempt["exitCode"], attempt["nodeName"]) == (pod.exit_code, NODE)
        assert attempt["startTime"] <= attempt["completionTime"]


def test_an_attempt_whose_pod_is_deleted_by_hand_was_interrupted(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job, pod = training(kube, namespace, kubelet, runPolicy={"maxRetries": 0, "maxInterruptions": 0})
    pod.is_gone()
    status = wait_for("the end", job.status, lambda status: status.get("state") == "Failed")
    (attempt,) = status["attempts"]
    assert attempt["reason"] in DELETED
    said = DELETED[attempt["reason"]]
    job.assert_failed(FailureReason(attempt["reason"]), said)
    assert (attempt["number"], attempt["name"]) == (1, job.child(ATTEMPT))
    assert said in attempt["message"]


@pytest.mark.parametrize("end", PREFLIGHT_ENDS)
def test_a_preflight_that_ends_badly_never_asks_for_a_gpu(end: str, kube: Kube, tenant: str, kubelet: Kubelet) -> None:
    play, reason, text = PREFLIGHT_ENDS[end]
    once = {"maxRetries": 0}
    job = Job.create(kube, tenant, manifest(f"preflight-{list(PREFLIGHT_ENDS).index(end)}", runPolicy=once))
    pod = kubelet.pod_of(tenant, job.child(PREFLIGHT))
    pod.runs()
    if end == "it says why":
        pod.says_the_data_is_bad(reason, "s3://acme-data/tickets/a.jsonl:17: completion is missing.")
    play(pod)

    job.assert_failed(reason, text)
    conditions = {c["type"]: c for c in job.status()["conditions"]}
    assert (conditions["Validated"]["status"], conditions["Validated"]["reason"]) == ("False", reason)
    assert list(job.batch_jobs()) == [PREFLIGHT]
    assert job.status().get("attempts", []) == []


def test_kubectl_wait_sees_a_failure(kube: Kube, tenant: str, kubelet: Kubelet, installed: Cluster) -> None:
    job = Job.create(kube, tenant, manifest("failing"))
    kubelet.pod_of(tenant, job.child(PREFLIGHT)).crashes(1)
    installed.kubectl("wait", "-n", tenant, "ftj/failing", "--for=condition=Failed", "--timeout=120s")


def test_an_image_may_fail_to_be_pulled_for_a_while(kube: Kube, tenant: str, kubelet: Kubelet) -> None:
    job = Job.create(kube, tenant, manifest("slow-image"))
    pod = kubelet.pod_of(tenant, job.child(PREFLIGHT))
    pod.cannot_start("ErrImagePull", "rpc error: registry is away")
    wait_for("the kubelet's word", job.ready, lambda c: "ErrImagePull: rpc error: registry is away." in str(c))
    kubelet.play(tenant, job.is_complete, job.selector)


@pytest.fixture
def no_events(kube: Kube, namespace: str) -> Iterator[None]:
    """A policy refuses the Events of the jobs of this namespace."""
    group = "/apis/admissionregistration.k8s.io/v1"
    events = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["events"]}
    spec = {
        "matchConstraints": {"resourceRules": [events]},
        "matchConditions": [
            {"name": "its-namespace", "expression": f"request.namespace == '{namespace}'"},
            {"name": "a-job", "expression": f"object.involvedObject.kind == '{names.JOB_KIND}'"},
        ],
        "validations": [{"expression": "false", "message": "there are too many Events"}],
    }
    kube.create(f"{group}/validatingadmissionpolicies", {"metadata": {"name": namespace}, "spec": spec})
    binding = {"metadata": {"name": namespace}, "spec": {"policyName": namespace, "validationActions": ["Deny"]}}
    kube.create(f"{group}/validatingadmissionpolicybindings", binding)
    wait_for("the policy to count", lambda: refuses_events(kube, namespace))
    yield
    for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
        kube.delete(f"{group}/{kind}/{namespace}")


def refuses_events(kube: Kube, namespace: str) -> bool:
    about = {"kind": names.JOB_KIND, "namespace": namespace, "name": "none"}
    try:
        kube.create(
            f"/api/v1/namespaces/{namespace}/events", {"metadata": {"generateName": "try-"}, "involvedObject": about}
        )
    except RefusedError as error:
        return "there are too many Events" in str(error)
    return False


@pytest.mark.usefixtures("no_events")
def test_a_job_ends_also_if_its_events_are_refused(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job = Job.create(kube, namespace, manifest())
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).fails(FailureReason.DATASET_INVALID, "a.jsonl:17: no completion.")

    assert job.wait_for_reason(FailureReason.DATASET_INVALID)["state"] == "Failed"
    assert job.events() == []


def test_of_two_jobs_with_one_output_the_second_fails_before_it_asks_for_a_gpu(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    place = f"s3://acme-models/{namespace}"
    first = Job.create(kube, namespace, manifest("first", output={"uri": place}))
    kubelet.pod_of(namespace, first.child(PREFLIGHT)).validates()
    first.wait_for_reason("WaitingForGPU")
    other = make_namespace(kube)
    second = Job.create(kube, other, manifest("second", output={"uri": f"{place}/"}))
    kubelet.pod_of(other, second.child(PREFLIGHT)).validates()
    second.assert_failed(
        FailureReason.OUTPUT_OCCUPIED,
        f"spec.output.uri: the unfinished job {namespace}/first also writes to {place}/ and",
    )
    assert ATTEMPT not in second.batch_jobs()
    kube.delete(f"/api/v1/namespaces/{other}")


@pytest.mark.parametrize("below", ["/second", "//second/", "/x//second"])
def test_of_two_jobs_with_one_output_inside_the_others_the_second_fails_too(
    kube: Kube, namespace: str, kubelet: Kubelet, below: str
) -> None:
    place = f"s3://acme-models/{namespace}"
    first = Job.create(kube, namespace, manifest("first", output={"uri": place}))
    kubelet.pod_of(namespace, first.child(PREFLIGHT)).validates()
    first.wait_for_reason("WaitingForGPU")
    second = Job.create(kube, namespace, manifest("second", output={"uri": f"{place}{below}"}))
    kubelet.pod_of(namespace, second.child(PREFLIGHT)).validates()
    second.assert_failed(
        FailureReason.OUTPUT_OCCUPIED, f"spec.output.uri: the unfinished job {namespace}/first writes to {place} and"
    )


def test_two_jobs_with_one_output_in_two_storages_both_train(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    elsewhere = deepcopy(PROFILE)
    elsewhere["metadata"]["name"] = "elsewhere"
    elsewhere["spec"]["storages"][0]["endpoint"] = "https://s3.elsewhere.example"
    kube.apply(f"{PROFILES}/elsewhere", elsewhere)
    output = {"uri": f"s3://acme-models/{namespace}"}
    for job in (manifest("here", output=output), manifest("there", output=output, profileName="elsewhere")):
        created = Job.create(kube, namespace, job)
        kubelet.pod_of(namespace, created.child(PREFLIGHT)).validates()
        created.wait_for_reason("WaitingForGPU")
    kube.delete(f"{PROFILES}/elsewhere")
