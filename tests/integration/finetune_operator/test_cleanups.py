"""The checkpoints of a failed job are deleted in time and once, also if the operator was down."""

from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, kstatus, manifest
from tests.integration.kube import BATCH_JOBS, PODS, Kube, Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")
TOLD = "CheckpointsDeleted"


def failed(kube: Kube, namespace: str, kubelet: Kubelet, name: str = "tickets", **policy: Any) -> Job:
    """A job whose attempt has failed after its preflight wrote to the storage."""
    job = Job.create(kube, namespace, manifest(name, runPolicy=policy))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    pod = kubelet.pod_of(namespace, job.child(ATTEMPT))
    pod.runs()
    pod.fails(FailureReason.LOSS_DIVERGED, "The loss is not a number.")
    job.assert_failed(FailureReason.LOSS_DIVERGED, "The loss is not a number.")
    return job


def deleted(kubelet: Kubelet, job: Job) -> None:
    """The cleanup runs to its good end."""
    pod = kubelet.pod_of(job.namespace, job.child(names.CLEANUP))
    pod.runs()
    pod.succeeds()


def told(job: Job) -> Object:
    """The condition that tells how the cleanup ended."""
    found = wait_for(job.name, lambda: [c for c in job.status()["conditions"] if c["type"] == TOLD])
    return dict(found[0])


def test_the_checkpoints_of_a_failed_job_are_deleted_and_its_state_stays(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job = failed(kube, namespace, kubelet, keepCheckpointsSeconds=1)
    before = job.status()

    deleted(kubelet, job)

    assert (told(job)["status"], told(job)["message"]) == ("True", "Done.")
    after = job.status()
    assert [c for c in after.pop("conditions") if c["type"] != TOLD] == before.pop("conditions")
    assert (after, kstatus(job.read())) == (before, "Failed")
    spec = job.batch_jobs()[names.CLEANUP]["spec"]["template"]["spec"]
    assert spec["containers"][0]["args"][0] == names.CLEANUP
    assert spec["serviceAccountName"] == names.TRAINER_SERVICE_ACCOUNT


def test_a_cleanup_that_became_due_while_the_operator_was_down_happens_and_only_once(
    kube: Kube, namespace: str, kubelet: Kubelet, operator: OperatorProcess
) -> None:
    job = failed(kube, namespace, kubelet, keepCheckpointsSeconds=3600)
    operator.kill()
    kube.merge(job.path, {"spec": {"runPolicy": {"keepCheckpointsSeconds": 0}}})
    operator.start()
    deleted(kubelet, job)
    assert told(job)["status"] == "True"

    kube.delete(f"{BATCH_JOBS.format(namespace)}/{job.child(names.CLEANUP)}")
    operator.kill()
    operator.start()
    second = failed(kube, namespace, kubelet, "second", keepCheckpointsSeconds=0)  # decided after the first one
    deleted(kubelet, second)
    assert told(second)["status"] == "True"
    assert names.CLEANUP not in job.batch_jobs()


def test_the_bundle_outlives_the_time_to_live_until_the_checkpoints_are_deleted(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job = failed(kube, namespace, kubelet, keepCheckpointsSeconds=4, ttlSecondsAfterFinished=1)

    wait_for("the other Jobs to go", lambda: ATTEMPT not in job.batch_jobs())
    pod = kubelet.pod_of(namespace, job.child(names.CLEANUP))
    assert len(job.config_maps()) == 1
    pod.runs()
    pod.succeeds()

    assert told(job)["status"] == "True"
    wait_for("the cleanup and the bundle to go", lambda: not job.batch_jobs() and not job.config_maps())


def test_a_cleanup_that_does_not_succeed_is_told_in_a_warning_and_the_state_stays(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job = failed(kube, namespace, kubelet, keepCheckpointsSeconds=0)
    pod = kubelet.pod_of(namespace, job.child(names.CLEANUP))
    pod.runs()
    kube.merge(f"{BATCH_JOBS.format(namespace)}/{job.child(names.CLEANUP)}", {"spec": {"activeDeadlineSeconds": 1}})

    cleanup = f"{job.selector},{names.LABEL_STEP}={names.CLEANUP}"
    pods = PODS.format(namespace)
    wait_for(
        "its pod to be stopped",
        lambda: all("deletionTimestamp" in p["metadata"] for p in kube.list(pods, labelSelector=cleanup)),
    )
    pod.is_gone()

    assert (told(job)["status"], told(job)["reason"]) == ("False", "CleanupFailed")
    warning = next(event for event in job.events() if event["reason"] == "CleanupFailed")
    assert warning["type"] == "Warning"
    assert "had not ended when its time was over (activeDeadlineSeconds, " in warning["message"]
    assert (job.status()["state"], kstatus(job.read())) == ("Failed", "Failed")
