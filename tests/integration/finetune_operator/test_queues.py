"""A job whose Jobs wait in queues of Kueue: the status says in Kueue's words what it waits for, and an eviction costs
neither the job nor an attempt."""

from collections.abc import Iterator

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from tests.integration.api_proxy import ApiProxy
from tests.integration.conftest import PROFILE, ROOT, make_namespace
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.finetune_operator.kueue import (
    DEFINITION,
    VERSION,
    WORKLOADS,
    Workload,
    definition,
    is_served,
    jobs_are_held,
)
from tests.integration.finetune_operator.looking import nudge
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.finetune_operator.running import SECOND, pods_of
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import PROFILES, Kube, Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("queueing")
QUEUE = "gpus"
NO_ROOM = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor any, 1 more needed"
)
PREEMPTED = "Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization in the ClusterQueue"
ACTIVATE = "Set spec.active of the Workload to true to continue."
STOPPED = "The pod was told to stop (SIGTERM) before its work was done."


@pytest.fixture(scope="module")
def queueing(kube: Kube, _operator: OperatorProcess, proxy: ApiProxy, token: str) -> Iterator[None]:
    """An operator that may read Workloads, in the place of the one of all other tests."""
    proxy.mend()
    _operator.stop()
    kube.apply(DEFINITION, definition(old=False, new=True))
    wait_for("Workloads to be served", lambda: is_served(kube, WORKLOADS.format(VERSION, "default")))
    process = OperatorProcess(ROOT / "build" / "test-operator-with-queues", proxy.address, token, ["--kueue"])
    process.start()
    process.wait_until_ready()
    yield
    process.stop()
    kube.delete(DEFINITION)
    wait_for("nobody to serve Workloads", lambda: kube.find(DEFINITION) is None)
    _operator.start()


@pytest.fixture(scope="module")
def tenant(kube: Kube, queueing: None) -> Iterator[str]:
    """A namespace in which Kueue holds every Job back that has a queue."""
    namespace = make_namespace(kube)
    with jobs_are_held(kube, namespace, QUEUE):
        yield namespace
    kube.delete(f"/api/v1/namespaces/{namespace}")


def queued(kube: Kube, namespace: str, kubelet: Kubelet, name: str, **spec: object) -> tuple[Job, Workload]:
    """A job whose attempt waits in the queue, and the Workload of that attempt."""
    body = manifest(name, **spec)
    body["metadata"]["labels"] = {names.LABEL_QUEUE: QUEUE}
    job = Job.create(kube, namespace, body)
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    return job, workload_of(job, ATTEMPT)


def workload_of(job: Job, step: str) -> Workload:
    held = wait_for("the Job", lambda: job.batch_jobs().get(step))
    assert held is not None
    assert held["spec"]["suspend"] is True
    return Workload(job.kube, held)


def are_asked_to_stop(job: Job) -> None:
    """The Job controller deletes the pods of a suspended Job."""
    wait_for(
        "the pods to be asked to stop",
        lambda: [pod for pod in job.pods() if pod["status"]["phase"] == "Running"],
        lambda running: all("deletionTimestamp" in pod["metadata"] for pod in running),
    )


def told(job: Job, reason: str, message: str) -> Object:
    """The status, once the operator has read the Workload again and says this."""
    nudge(job)
    wait_for(
        f"{job.name} to be {reason}",
        job.ready,
        lambda ready: ready.get("reason") == reason and message in ready["message"],
    )
    return job.status()


def test_an_attempt_in_a_queue_says_at_each_step_what_it_waits_for_and_trains_once_it_is_admitted(
    kube: Kube, tenant: str, kubelet: Kubelet
) -> None:
    job, workload = queued(kube, tenant, kubelet, "steps")

    workload.has_no_quota(NO_ROOM)
    assert told(job, "WaitingForQuota", f"Waiting for quota in queue gpus: {NO_ROOM}.")["state"] == "Queued"
    workload.reserves_quota("nodes", "region")
    told(job, "WaitingForAdmissionCheck", "has reserved the quota. Waiting for admission check nodes, region.")
    workload.check_is("nodes", "Ready", "There are nodes.")
    workload.check_is("region", "Pending", "A region is looked for.")
    told(job, "WaitingForAdmissionCheck", "Waiting for admission check region: A region is looked for.")

    workload.rejects("region", "No region has GPUs.")
    rejected = f"Workload {workload.name} is deactivated due to Admission check(s): region, were rejected. {ACTIVATE}"
    assert told(job, "Deactivated", rejected)["state"] == "Queued"
    workload.is_activated()
    told(job, "WaitingForQuota", "Waiting for quota in queue gpus: ")
    workload.reserves_quota("nodes")
    workload.check_is("nodes", "Ready", "There are nodes.")
    workload.admits()
    kubelet.play(tenant, job.is_complete, job.selector)
    assert job.status()["counts"] == {"attempts": 1}
    assert [event["reason"] for event in job.events()] == ["Deactivated", "Succeeded"]


def test_a_workload_that_an_administrator_deactivates_holds_the_job_back_until_it_is_activated(
    kube: Kube, tenant: str, kubelet: Kubelet
) -> None:
    job, workload = queued(kube, tenant, kubelet, "deactivated")
    workload.has_no_quota(NO_ROOM)
    workload.is_deactivated()
    deactivated = f"Workload {workload.name} is deactivated. {ACTIVATE}"
    told(job, "Deactivated", deactivated)
    workload.is_activated()
    workload.has_no_quota(NO_ROOM)
    told(job, "WaitingForQuota", f"Waiting for quota in queue gpus: {NO_ROOM}.")
    workload.reserves_quota()
    workload.admits()
    pod = kubelet.pod_of(tenant, job.child(ATTEMPT))
    pod.runs()
    job.wait_for_reason("Training")

    workload.is_deactivated()
    assert told(job, "Deactivated", deactivated)["state"] == "Queued"
    are_asked_to_stop(job)
    pod.says_it_failed(FailureReason.PREEMPTED, STOPPED)
    pod.is_gone()
    workload.takes_the_quota_back()
    told(job, "Deactivated", deactivated)
    workload.is_activated()
    workload.reserves_quota()
    workload.admits()
    kubelet.play(tenant, job.is_complete, job.selector)
    assert job.status()["counts"] == {"attempts": 1}


def test_an_attempt_on_two_nodes_that_is_evicted_is_neither_failed_nor_admitted_and_goes_on_with_other_pods(
    kube: Kube, tenant: str, kubelet: Kubelet
) -> None:
    job, workload = queued(kube, tenant, kubelet, "two-nodes", compute={"nodes": 2})
    workload.reserves_quota()
    workload.admits()
    first, second = pods_of(kube, kubelet, job)
    for pod in (first, second):
        pod.runs()
    job.wait_for_reason("Training")

    workload.evicts("Preempted", PREEMPTED)
    stopped = f"Kueue stopped the Job, with reason Preempted: {PREEMPTED}. The Job waits for quota in queue gpus again"
    assert told(job, "WaitingForQuota", stopped)["state"] == "Queued"
    are_asked_to_stop(job)
    second.fails(FailureReason.PEER_LOST, "Node gpu-7 (number 0 from 0) was lost: the connection was closed.")
    second.is_gone()
    told(job, "WaitingForQuota", stopped)
    first.says_it_failed(FailureReason.PREEMPTED, STOPPED)
    first.is_gone()
    workload.takes_the_quota_back()
    told(job, "WaitingForQuota", f"Waiting for quota in queue gpus: {PREEMPTED}.")
    workload.has_no_quota(NO_ROOM)
    before = f"{NO_ROOM}. Kueue stopped the Job before, with reason Preempted: {PREEMPTED}."
    (attempt,) = told(job, "WaitingForQuota", before)["attempts"]
    assert "reason" not in attempt

    workload.reserves_quota()
    workload.admits()
    first, second = pods_of(kube, kubelet, job)
    for pod in (first, second):
        pod.runs()
    assert job.wait_for_reason("Training")["counts"] == {"attempts": 1}
    first.says_all()
    second.succeeds()
    first.succeeds()
    status = job.wait_for_reason("Succeeded")
    (attempt,) = status["attempts"]
    assert (status["counts"], len(attempt["pods"])) == ({"attempts": 1}, 4)


def test_a_preflight_that_is_evicted_waits_in_its_queue_and_is_no_failure(
    kube: Kube, tenant: str, kubelet: Kubelet
) -> None:
    kube.create(
        PROFILES,
        {
            **PROFILE,
            "metadata": {"name": tenant},
            "spec": {**PROFILE["spec"], "pods": {"preflight": {"queueName": "cpu"}}},
        },
    )
    job = Job.create(kube, tenant, manifest("evicted-preflight", profileName=tenant))
    workload = workload_of(job, PREFLIGHT)
    workload.reserves_quota()
    workload.admits()
    first = kubelet.pod_of(tenant, job.child(PREFLIGHT))
    first.runs()
    job.wait_for_reason("Validating")

    workload.evicts("Preempted", PREEMPTED)
    status = told(job, "WaitingForQuota", f"with reason Preempted: {PREEMPTED}.")
    assert (status["state"], status["stage"]) == ("Queued", "Preflight")
    are_asked_to_stop(job)
    first.says_the_data_is_bad(FailureReason.PREEMPTED, STOPPED)
    first.is_gone()
    workload.takes_the_quota_back()
    told(job, "WaitingForQuota", f"Waiting for quota in queue cpu: {PREEMPTED}.")

    workload.reserves_quota()
    workload.admits()
    kubelet.play(tenant, job.is_complete, job.selector)
    status = job.status()
    assert (status["counts"], status.get("preflights")) == ({"attempts": 1}, None)
    kube.delete(f"{PROFILES}/{tenant}")


def test_a_job_that_is_suspended_while_it_is_queued_leaves_the_queue_and_stands_in_it_again_once_it_is_resumed(
    kube: Kube, tenant: str, kubelet: Kubelet
) -> None:
    job, workload = queued(kube, tenant, kubelet, "leaves-the-queue")
    workload.has_no_quota(NO_ROOM)
    told(job, "WaitingForQuota", NO_ROOM)

    kube.merge(job.path, {"spec": {"suspend": True}})
    assert job.wait_for_reason("Suspended")["state"] == "Suspended"
    wait_for("its Job to go", lambda: ATTEMPT not in job.batch_jobs())
    told(job, "Suspended", "spec.suspend is true. Set it to false to resume the job.")

    kube.merge(job.path, {"spec": {"suspend": False}})
    workload = workload_of(job, SECOND)
    workload.has_no_quota(NO_ROOM)
    assert told(job, "WaitingForQuota", NO_ROOM)["state"] == "Queued"
    workload.reserves_quota()
    workload.admits()
    kubelet.play(tenant, job.is_complete, job.selector)
    status = job.status()
    assert status["counts"] == {"attempts": 2, "reasons": {"Suspended": 1}}
    assert status["gpuSeconds"] == status["attempts"][1]["gpuSeconds"]
