"""A pod is not the job: suspended Jobs, sidecars, pods that are gone before they are seen, pods that never start."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_operator.observed import runs
from finetune_operator.observed.causes import starting
from tests.integration.conftest import PROFILE, make_namespace
from tests.integration.finetune_operator.kubelet import Kubelet, PlayedPod
from tests.integration.finetune_operator.kueue import jobs_are_held
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import BATCH_JOBS, PODS, PROFILES, Kube, Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")
NAN = "Step 12: the loss is not a number."
SANDBOX = 'Failed to create pod sandbox: plugin type="bridge" failed: no IP addresses are left'


@pytest.fixture(scope="module")
def slow(kube: Kube, _operator: OperatorProcess, kubelet: Kubelet) -> Iterator[dict[str, Job]]:
    """Jobs that are told only after a grace, by what is wrong: they wait it out while other tests run."""
    _operator.start()
    namespace = make_namespace(kube)
    jobs = {name: Job.create(kube, namespace, manifest(name)) for name in ("sandbox", "sidecar", "failed-beside-one")}
    stuck = kubelet.pod_of(namespace, jobs["sandbox"].child(PREFLIGHT))
    stuck.cannot_start("ContainerCreating", "")
    says(kube, stuck, "FailedCreatePodSandBox", SANDBOX)
    done = kubelet.pod_of(namespace, jobs["sidecar"].child(PREFLIGHT))
    done.sidecar = "istio-proxy"
    done.validates()
    kubelet.pod_of(namespace, jobs["failed-beside-one"].child(PREFLIGHT)).validates()
    failed = kubelet.pod_of(namespace, jobs["failed-beside-one"].child(ATTEMPT))
    failed.sidecar = "istio-proxy"
    failed.runs()
    failed.fails(FailureReason.LOSS_DIVERGED, NAN)
    yield jobs
    kube.delete(f"/api/v1/namespaces/{namespace}")


def says(kube: Kube, pod: PlayedPod, reason: str, message: str) -> None:
    """An Event of the kubelet's about this pod."""
    metadata = pod.pod["metadata"]
    about = {"kind": "Pod", "namespace": metadata["namespace"], "name": pod.name, "uid": metadata["uid"]}
    event = {"metadata": {"generateName": pod.name}, "involvedObject": about, "type": "Warning"}
    kube.create(f"/api/v1/namespaces/{metadata['namespace']}/events", {**event, "reason": reason, "message": message})


def suspend(job: Job, child: str, suspended: bool = True) -> None:
    path = f"{BATCH_JOBS.format(job.namespace)}/{job.child(child)}"
    job.kube.merge(path, {"spec": {"suspend": suspended}})


def pods_of_attempt(job: Job) -> Callable[[], list[str]]:
    return lambda: [pod["metadata"]["name"] for pod in job.pods() if is_of_attempt(pod)]


def is_of_attempt(pod: Object) -> bool:
    return names.LABEL_ATTEMPT in pod["metadata"]["labels"]


def test_a_job_that_is_suspended_while_it_trains_waits_and_its_resumed_pod_counts(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job = Job.create(kube, namespace, manifest())
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    first = kubelet.pod_of(namespace, job.child(ATTEMPT))
    first.runs()
    first.says_it_trained()
    job.wait_for_reason("Evaluating")

    suspend(job, ATTEMPT)
    status = job.wait_for_reason("Suspended")
    assert (status["state"], status["counts"]) == ("Queued", {"attempts": 1})
    assert (
        "is suspended by python-requests. Set spec.suspend of that Job to false to continue." in job.ready()["message"]
    )
    first.says_it_failed(FailureReason.PREEMPTED, "The pod was told to stop (SIGTERM) before its work was done.")
    first.is_gone()
    wait_for("the pod to go", pods_of_attempt(job), lambda left: not left)

    suspend(job, ATTEMPT, False)
    (again,) = wait_for("another pod", pods_of_attempt(job))
    assert again != first.name
    second = kubelet.pod_of(namespace, job.child(ATTEMPT))
    second.runs()
    assert job.wait_for_reason("Training")["stage"] == "Training"  # not what the first pod had come to
    kubelet.play(namespace, job.is_complete)
    assert job.status()["counts"] == {"attempts": 1}


def test_two_pods_of_one_job_never_train_at_a_time(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job = Job.create(kube, namespace, manifest())
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    first = kubelet.pod_of(namespace, job.child(ATTEMPT))
    first.runs()
    job.wait_for_reason("Training")
    suspend(job, ATTEMPT)
    job.wait_for_reason("Suspended")
    pod = f"{PODS.format(namespace)}/{first.name}"
    wait_for("its pod to be deleted", lambda: "deletionTimestamp" in kube.get(pod)["metadata"])
    suspend(job, ATTEMPT, False)
    path = f"{BATCH_JOBS.format(namespace)}/{job.child(ATTEMPT)}"
    wait_for(
        "the Job to go on",
        lambda: kube.get(path)["status"].get("conditions", []),
        lambda conditions: ("Suspended", "False") in [(each["type"], each["status"]) for each in conditions],
    )
    wait_for("its old pod to count", lambda: kube.get(path)["status"].get("terminating") == 1)
    assert pods_of_attempt(job)() == [first.name]

    first.is_gone()
    wait_for("another pod", pods_of_attempt(job), lambda pods: pods and pods != [first.name])
    kubelet.play(namespace, job.is_complete)


def test_a_preflight_in_a_queue_says_which_it_waits_for(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    queued: Object = deepcopy(PROFILE)
    queued["metadata"]["name"] = namespace
    queued["spec"]["pods"] = {"preflight": {"queueName": "cpu"}}
    kube.create(PROFILES, queued)
    job = Job.create(kube, namespace, manifest(profileName=namespace))
    preflight = wait_for("the preflight", lambda: job.batch_jobs().get(PREFLIGHT))
    assert preflight["metadata"]["labels"][names.LABEL_QUEUE] == "cpu"

    suspend(job, PREFLIGHT)
    status = job.wait_for_reason("Suspended")
    assert (status["state"], status["stage"]) == ("Queued", "Preflight")
    assert "and waits for admission by its queue cpu." in job.ready()["message"]
    suspend(job, PREFLIGHT, False)
    kubelet.play(namespace, job.is_complete)
    kube.delete(f"{PROFILES}/{namespace}")


def test_a_pod_that_is_gone_before_it_is_seen_leaves_its_reason(
    kube: Kube, namespace: str, kubelet: Kubelet, operator: OperatorProcess
) -> None:
    job = Job.create(kube, namespace, manifest())
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    pod = kubelet.pod_of(namespace, job.child(ATTEMPT))
    pod.runs()
    job.wait_for_reason("Training")
    operator.stop()
    pod.says_it_failed(FailureReason.LOSS_DIVERGED, NAN)
    pod.is_gone()
    wait_for("the pod to go", pods_of_attempt(job), lambda left: not left)
    operator.start()

    job.assert_failed(FailureReason.LOSS_DIVERGED, NAN)
    assert job.status()["attempts"][0]["reason"] == "LossDiverged"


def test_a_job_that_is_gone_before_it_is_seen_leaves_its_reason(
    kube: Kube, namespace: str, kubelet: Kubelet, operator: OperatorProcess
) -> None:
    """As where a time to live removes Jobs that have ended."""
    job = Job.create(kube, namespace, manifest())
    pod = kubelet.pod_of(namespace, job.child(PREFLIGHT))
    pod.runs()
    job.wait_for_reason("Validating")
    operator.stop()
    pod.says_the_data_is_bad(FailureReason.DATASET_INVALID, "Row 17 has no completion.")
    pod.fails(FailureReason.DATASET_INVALID, "Row 17 has no completion.")
    kube.delete(f"{BATCH_JOBS.format(namespace)}/{job.child(PREFLIGHT)}")
    wait_for("the Job to go", job.batch_jobs, lambda left: not left)
    operator.start()

    job.assert_failed(FailureReason.DATASET_INVALID, "Row 17 has no completion.")
    assert job.batch_jobs() == {}


@pytest.mark.thorough
def test_a_preflight_that_a_sidecar_keeps_running_is_over(slow: dict[str, Job]) -> None:
    job = slow["sidecar"]
    job.wait_for_reason("WaitingForGPU", runs.SIDECAR_GRACE.total_seconds() + 30)
    wait_for("its Job to go", job.batch_jobs, lambda jobs: list(jobs) == [ATTEMPT])


def test_a_trainer_that_failed_beside_a_sidecar_ends_the_job_and_its_pod(
    slow: dict[str, Job], kubelet: Kubelet
) -> None:
    job = slow["failed-beside-one"]
    job.wait_for_reason(FailureReason.LOSS_DIVERGED, runs.SIDECAR_GRACE.total_seconds() + 30)
    wait_for("its Job to go", job.batch_jobs, lambda jobs: ATTEMPT not in jobs)
    wait_for(
        "its pod to be asked to stop",
        job.pods,
        lambda pods: all("deletionTimestamp" in pod["metadata"] for pod in pods if is_of_attempt(pod)),
    )
    kubelet.play(job.namespace, lambda: not pods_of_attempt(job)(), job.selector)
    job.assert_failed(FailureReason.LOSS_DIVERGED, NAN)
    assert "because container istio-proxy did not stop" in job.ready()["message"]


@pytest.mark.thorough
def test_a_failed_sandbox_is_reported_with_thekubelets_message(slow: dict[str, Job]) -> None:
    job = slow["sandbox"]
    wait_for(
        "the kubelet's word",
        lambda: f"cannot start: FailedCreatePodSandBox: {SANDBOX}." in job.ready().get("message", ""),
        timeout=starting.STUCK_AFTER.total_seconds() + 60,
    )
    assert job.status()["state"] == "Pending"


@pytest.fixture
def unqueued_jobs_are_held(kube: Kube, namespace: str) -> Iterator[None]:
    """As Kueue's webhook does with manageJobsWithoutQueueName."""
    with jobs_are_held(kube, namespace):
        yield


@pytest.mark.usefixtures("unqueued_jobs_are_held")
def test_a_preflight_that_a_queue_controller_holds_back_is_told_where_to_name_a_queue(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job = Job.create(kube, namespace, manifest())

    assert job.wait_for_reason("Suspended")["state"] == "Queued"
    assert "was suspended when it was created, and it has no queue name" in job.ready()["message"]
    assert "for the preflight in spec.pods.preflight.queueName of the FineTuneProfile." in job.ready()["message"]
    suspend(job, PREFLIGHT, False)
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    wait_for("the attempt", lambda: ATTEMPT in job.batch_jobs())
    suspend(job, ATTEMPT, False)
    kubelet.play(namespace, job.is_complete)
