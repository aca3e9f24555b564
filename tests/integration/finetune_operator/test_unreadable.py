"""A job that a later version of the CRDs has let in, and that this operator cannot read: nothing is done to it, nothing
is taken from it, and its status says why."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.finetune_operator.running import SECOND, training
from tests.integration.jobs import ATTEMPT, Job, manifest
from tests.integration.kube import JOBS, Kube, Object, RefusedError
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")
DEFINITION = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{names.JOBS}.{names.GROUP}"
LATER: Object = {"runPolicy": {"maxRetries": 500}, "training": {"scheduler": "Sawtooth"}}
"""What the later version accepts beside what this one does: a larger number in a field that can be changed while the
job trains, and another word in one that cannot."""
UNREAD = "This version of the operator cannot read the job: "


def widen(schema: Object) -> None:
    """Let this schema of spec accept LATER."""
    fields = schema["properties"]
    fields["runPolicy"]["properties"]["maxRetries"]["maximum"] = 1000
    fields["training"]["properties"]["scheduler"]["enum"].append("Sawtooth")


@contextmanager
def later_definition(kube: Kube, namespace: str) -> Iterator[None]:
    """The API server has the CRD of a later version."""
    before = kube.get(DEFINITION)["spec"]["versions"]
    after = kube.get(DEFINITION)["spec"]["versions"]
    for version in after:
        widen(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    kube.merge(DEFINITION, {"spec": {"versions": after}})
    try:
        wait_for("LATER to be accepted", lambda: accepts(kube, namespace, LATER))
        yield
    finally:
        kube.merge(DEFINITION, {"spec": {"versions": before}})
        wait_for("LATER to be refused", lambda: not accepts(kube, namespace, LATER))


def accepts(kube: Kube, namespace: str, spec: Object) -> bool:
    try:
        kube.create(f"{JOBS.format(namespace)}?dryRun=All", manifest("probe", **spec))
    except RefusedError:
        return False
    return True


def says(job: Job, reason: str, text: str) -> Object:
    """The status, once Ready says this."""
    wait_for(
        f"{job.name} to say {text!r}", job.ready, lambda c: c.get("reason") == reason and text in c.get("message", "")
    )
    return job.status()


def test_a_job_that_can_no_longer_be_read_trains_on_and_waits_for_the_next_attempt_until_it_can_be_read(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, first = training(kube, namespace, kubelet)
    with later_definition(kube, namespace):
        kube.merge(job.path, {"spec": {"runPolicy": LATER["runPolicy"], "suspend": True}})
        status = says(job, "Training", f"{UNREAD}spec.runPolicy.maxRetries: ")
        assert status["state"] == "Running"
        assert "spec.suspend and spec.runPolicy have no effect. Update the operator" in job.ready()["message"]
        assert (job.conditions()["Stalled"], ATTEMPT in job.batch_jobs()) == ("False", True)
        assert "deletionTimestamp" not in str(job.pods())

        first.fails(FailureReason.STORAGE_UNAVAILABLE, "S3 answered 503.")
        status = says(job, "WaitingForDependency", f"{UNREAD}spec.runPolicy.maxRetries: ")
        assert (status["state"], status["attempts"][0]["reason"]) == ("Pending", FailureReason.STORAGE_UNAVAILABLE)
        assert SECOND not in job.batch_jobs()

        kube.merge(job.path, {"spec": {"runPolicy": None, "suspend": False}})
        kubelet.pod_of(namespace, job.child(SECOND))
        kubelet.play(namespace, job.is_complete, job.selector)
    assert job.status()["counts"] == {"attempts": 2, "retries": 1, "reasons": {"StorageUnavailable": 1}}


def test_a_job_with_a_word_of_a_later_version_waits_and_names_the_field(kube: Kube, namespace: str) -> None:
    with later_definition(kube, namespace):
        job = Job.create(kube, namespace, manifest(training=LATER["training"]))
        assert says(job, "WaitingForDependency", f"{UNREAD}spec.training.scheduler: ")["state"] == "Pending"
        assert job.children() == {}
        kube.delete(job.path)
