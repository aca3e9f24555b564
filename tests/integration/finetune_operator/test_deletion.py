"""A FineTuneJob deleted in any phase takes everything of it along, and nothing is made again.

The real garbage collector does it, by owner references: the operator has no part in it and no finalizer.
"""

from collections.abc import Callable

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from tests.integration.api_proxy import ApiProxy
from tests.integration.conftest import make_namespace
from tests.integration.faults import Fault
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.finetune_operator.looking import nudge
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import Kube
from tests.integration.waiting import wait_for

GRACE_AND_THIRTY_SECONDS = 120 + 30


def preflight_runs(job: Job, kubelet: Kubelet) -> None:
    kubelet.pod_of(job.namespace, job.child(PREFLIGHT)).runs()
    job.wait_for_reason("Validating")


def queued(job: Job, kubelet: Kubelet) -> None:
    kubelet.pod_of(job.namespace, job.child(PREFLIGHT)).validates()
    kubelet.pod_of(job.namespace, job.child(ATTEMPT))
    job.wait_for_reason("WaitingForGPU")


def training(job: Job, kubelet: Kubelet) -> None:
    queued(job, kubelet)
    kubelet.pod_of(job.namespace, job.child(ATTEMPT)).runs()
    job.wait_for_reason("Training")


def complete(job: Job, kubelet: Kubelet) -> None:
    kubelet.play(job.namespace, job.is_complete)


def failed(job: Job, kubelet: Kubelet) -> None:
    training(job, kubelet)
    kubelet.pod_of(job.namespace, job.child(ATTEMPT)).fails(FailureReason.LOSS_DIVERGED, "Loss is NaN.")
    job.wait_for_reason(FailureReason.LOSS_DIVERGED)


PHASES: dict[str, Callable[[Job, Kubelet], object]] = {
    "waiting for its profile": lambda job, kubelet: job.wait_for_reason("WaitingForDependency"),
    "preflight pending": lambda job, kubelet: kubelet.pod_of(job.namespace, job.child(PREFLIGHT)),
    "preflight running": preflight_runs,
    "queued": queued,
    "training": training,
    "complete": complete,
    "failed": failed,
}


@pytest.mark.thorough_for("*-Background")
@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
@pytest.mark.parametrize("phase", PHASES)
def test_nothing_is_left_of_a_deleted_job(
    phase: str,
    propagation: str,
    kube: Kube,
    namespace: str,
    operator: OperatorProcess,
    kubelet: Kubelet,
    proxy: ApiProxy,
) -> None:
    profile = {"profileName": "none"} if phase.endswith("profile") else {}
    job = Job.create(kube, namespace, manifest(**profile))
    PHASES[phase](job, kubelet)
    kube.delete(job.path, propagationPolicy=propagation)
    deleted = len(proxy.calls)

    def left() -> dict[str, str]:
        for pod in job.pods():
            if "deletionTimestamp" in pod["metadata"]:
                kubelet.played(pod).is_gone()
        return job.children() | ({"itself": job.uid} if kube.find(job.path) else {})

    wait_for("everything to be gone", left, lambda found: not found, GRACE_AND_THIRTY_SECONDS)
    # Whatever the operator still had to do comes before what it does for the next job.
    Job.create(kube, namespace, manifest("next", profileName="none")).wait_for_reason("WaitingForDependency")
    wait_for("what was under way to be gone too", left, lambda found: not found)
    assert [call for call in proxy.calls[deleted:] if call.makes("jobs") and job.uid in str(call.body)] == []


def test_the_preflight_of_a_deleted_job_is_not_created_again_if_the_watch_of_jobs_is_late(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    job = Job.create(kube, namespace, manifest())
    preflight_runs(job, kubelet)
    path = f"/apis/{names.API_VERSION}/{names.JOBS}"
    proxy.break_watches({path: Fault.STALLED})
    wait_for("the watch to stall", lambda: proxy.broken[path])
    looks = proxy.reads(job.path)
    kube.delete(job.path)
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).is_gone()

    wait_for("the operator to look for the job", lambda: proxy.reads(job.path), lambda count: count > looks)
    wait_for("the children to be gone", job.children, lambda found: not found)
    operator.kill()  # its watch would stand still for a minute after the test
    made = [call for call in proxy.calls if call.makes("jobs") and job.uid in str(call.body)]
    assert [call.status for call in made] == [201], "only the first one"


def test_a_job_recreated_under_its_name_starts_anew(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    first = Job.create(kube, namespace, manifest())
    training(first, kubelet)
    kube.delete(first.path)
    second = Job.create(kube, namespace, manifest())
    kubelet.play(namespace, second.is_complete, second.selector)
    assert second.status()["counts"] == {"attempts": 1}
    kubelet.pod_of(namespace, first.child(ATTEMPT)).is_gone()
    wait_for("the first job's children to go", first.children, lambda found: not found)


def test_a_namespace_that_is_being_deleted_ends_the_work_on_its_jobs(
    kube: Kube, operator: OperatorProcess, proxy: ApiProxy
) -> None:
    namespace = make_namespace(kube)
    path = f"/api/v1/namespaces/{namespace}"

    def delete_namespace() -> None:
        kube.delete(path)
        wait_for("the namespace to terminate", lambda: kube.get(path)["status"]["phase"] == "Terminating")

    log = operator.log.read_text()
    proxy.hold(lambda call: call.makes("configmaps") and namespace in call.path, delete_namespace)
    body = manifest()
    body["metadata"]["finalizers"] = ["tests.finetune.dev/hold"]  # so that the job outlives what is made for it
    job = Job.create(kube, namespace, body)
    wait_for("the job to be deleted", job.read, lambda read: "deletionTimestamp" in read["metadata"])
    said = "nothing is created for this job"
    wait_for("the operator to be told", lambda: operator.log.read_text()[len(log) :], lambda text: said in text)
    nudge(job)

    refused = [call for call in proxy.calls if call.status == 403 and namespace in call.path]
    # Once, and once more for each of the trainer's ServiceAccount and RoleBinding, which the deletion takes along.
    assert 1 <= len(refused) <= 5
    assert {call.method for call in refused} == {"POST"}
    assert [line for line in operator.log.read_text()[len(log) :].splitlines() if "WARNING" in line] == []
    kube.merge(job.path, {"metadata": {"finalizers": None}})
    wait_for("the namespace to be gone", lambda: kube.find(path) is None)
