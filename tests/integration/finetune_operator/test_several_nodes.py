"""A job on several nodes with the real Job controller: its pods have a way to meet, one reason, and no second life."""

from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_operator.decisions.attempts.gathering import LIMIT
from tests.integration.finetune_operator.kubelet import NODE, Kubelet, PlayedPod
from tests.integration.finetune_operator.running import DELETED, SECOND, pods_of
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, kstatus, manifest
from tests.integration.kube import PODS, Kube, Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")
TWO = {"nodes": 2}


def started(kube: Kube, kubelet: Kubelet, namespace: str, name: str, **spec: Any) -> tuple[Job, list[PlayedPod]]:
    """A job whose pods train."""
    job = Job.create(kube, namespace, manifest(name, compute=TWO, **spec))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    pods = pods_of(kube, kubelet, job)
    for pod in pods:
        pod.runs()
    job.wait_for_reason("Training")
    return job, pods


def network_of(kube: Kube, job: Job) -> list[Object | None]:
    """The Service and the NetworkPolicy of the job."""
    name = names.nodes_name(job.name, job.uid)
    kinds = ("/api/v1/namespaces/{}/services", "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies")
    return [kube.find(f"{kind.format(job.namespace)}/{name}") for kind in kinds]


def test_two_pods_train_one_job(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job, (first, second) = started(kube, kubelet, namespace, "two")
    service, policy = network_of(kube, job)
    assert service
    assert policy
    assert service["spec"]["clusterIP"] == "None"
    host = f"{first.pod['spec']['hostname']}.{first.pod['spec']['subdomain']}.{namespace}.svc"
    arguments = first.pod["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--first-node") + 1] == f"{host}:{names.NODE_PORT}"
    assert first.pod["spec"]["subdomain"] == service["metadata"]["name"]
    first.says_all()
    second.succeeds()
    first.succeeds()
    status = job.wait_for_reason("Succeeded")
    (attempt,) = status["attempts"]
    assert {pod["name"] for pod in attempt["pods"]} == {first.name, second.name}
    assert {pod["nodeName"] for pod in attempt["pods"]} == {NODE}
    assert (attempt["podName"], kstatus(job.read())) == (first.name, "Current")


def test_one_reason_is_told_and_the_job_controller_ends_no_pod_before_it_has_said_why(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    once = {"maxRetries": 0, "maxInterruptions": 0}
    job, (first, second) = started(kube, kubelet, namespace, "broken", runPolicy=once)
    first.fails(FailureReason.PEER_LOST, "Node gpu-7 (number 1 from 0) was lost: the connection was closed.")
    counted = f"/apis/batch/v1/namespaces/{namespace}/jobs/{job.child(ATTEMPT)}"
    wait_for("the first end to be counted", lambda: kube.get(counted)["status"].get("failedIndexes") == "0")
    pod = kube.get(f"{PODS.format(namespace)}/{second.name}")
    assert "deletionTimestamp" not in pod["metadata"]
    assert job.status()["state"] == "Running", "the others have time to end"
    second.fails(FailureReason.GPU_FAULT, "Rank 1 of 2 on node gpu-7: The GPU broke.")
    job.assert_failed(FailureReason.GPU_FAULT, "Rank 1 of 2 on node gpu-7: The GPU broke.")
    (attempt,) = job.status()["attempts"]
    assert attempt["podName"] == second.name


def test_a_pod_that_is_deleted_ends_the_attempt_and_is_not_replaced_in_it(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, (first, second) = started(kube, kubelet, namespace, "deleted")
    second.is_gone()
    first.fails(FailureReason.PEER_LOST, "Node gpu-7 (number 1 from 0) was lost: the connection was closed.")
    after = pods_of(kube, kubelet, job, SECOND)
    both = wait_for("the status to have it", lambda: job.status()["attempts"], lambda found: len(found) == 2)
    ended = next(attempt for attempt in both if attempt["number"] == 1)
    assert ended["reason"] in DELETED, ended
    assert {pod.name for pod in after}.isdisjoint({first.name, second.name})
    assert all(network_of(kube, job)), "the next attempt uses the same Service"


def test_a_job_that_is_suspended_ends_both_pods_and_a_deleted_one_leaves_nothing(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, pods = started(kube, kubelet, namespace, "suspended")
    kube.merge(job.path, {"spec": {"suspend": True}})
    for pod in pods:
        path = f"{PODS.format(namespace)}/{pod.name}"
        wait_for("the pod to be asked to stop", lambda path=path: "deletionTimestamp" in kube.get(path)["metadata"])
        pod.is_gone()
    job.wait_for_reason("Suspended")
    kube.delete(job.path)
    wait_for("the Service and the policy to be deleted", lambda: network_of(kube, job) == [None, None])


def test_the_service_and_the_policy_are_deleted_with_the_jobs(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job = Job.create(kube, namespace, manifest("expired", compute=TWO, runPolicy={"ttlSecondsAfterFinished": 1}))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    first, second = pods_of(kube, kubelet, job)
    for pod in (first, second):
        pod.runs()
    first.says_all()
    first.succeeds()
    second.succeeds()
    job.wait_for_reason("Succeeded")
    wait_for("the Service and the policy to be deleted", lambda: network_of(kube, job) == [None, None])
    wait_for("the Jobs to be deleted", lambda: not job.batch_jobs())


def test_an_attempt_with_no_node_for_the_fourth_pod_says_how_long_it_waits_and_then_gives_its_gpus_back(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job = Job.create(kube, namespace, manifest("four", compute={"nodes": 4, "gpusPerNode": 8}))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    pods = pods_of(kube, kubelet, job, count=4)
    assert all("podAntiAffinity" in pod.pod["spec"]["affinity"] for pod in pods)
    no_node = "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."
    for pod in pods:
        pod.finds_no_node(no_node)
    told = wait_for("the scheduler's words", lambda: str(job.ready().get("message")), lambda said: no_node[:-1] in said)
    assert "gives its GPUs back" not in told, "no pod holds a GPU"

    for pod in pods[:3]:
        pod.is_bound()
    told = wait_for("the wait to be told", lambda: str(job.ready()["message"]), lambda said: "3 of the 4 pods" in said)
    first = min(pod.scheduled_at() for pod in pods[:3])
    assert told.endswith(
        "3 of the 4 pods of the attempt have a node. It gives its GPUs back at "
        f"{first + LIMIT:%H:%M:%S} UTC if the others have none by then."
    )
    assert job.ready()["reason"] == "WaitingForGPU"

    pods[0].is_bound_since(first - LIMIT)
    for pod in pods[:3]:
        path = f"{PODS.format(namespace)}/{pod.name}"
        wait_for("the pod to be asked to stop", lambda path=path: "deletionTimestamp" in kube.get(path)["metadata"])
        pod.is_gone()
    again = pods_of(kube, kubelet, job, SECOND, count=4)
    assert {pod.name for pod in again}.isdisjoint({pod.name for pod in pods})
    ended = job.status()["attempts"][0]
    assert ended["reason"] == FailureReason.EVICTED
    assert ended["message"].startswith(
        f"3 of the 4 pods of the attempt have a node, and the others have had none for 10 min: {no_node} The pods "
        "were ended, so that other jobs can use their GPUs."
    )
