"""A pod that runs and writes nothing in the status is ended after hours, which its node says have passed."""

from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.reasons import FailureReason, with_remedy
from finetune_operator.decisions.attempts import silence
from finetune_operator.observed.causes import remedies
from tests.integration import sample_status
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.finetune_operator.looking import nudge
from tests.integration.finetune_operator.running import starting
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import Kube
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")
STALL = timedelta(hours=3)
POLICY = {"maxRetries": 0, "stallTimeoutSeconds": int(STALL.total_seconds())}
LEFT = timedelta(seconds=3)
"""What is left of a limit when the pod is seen to run. The operator has to look again by itself."""


def test_a_training_pod_that_writes_nothing_for_three_times_the_stall_timeout_ends_its_attempt(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, pod = starting(kube, namespace, kubelet, runPolicy=POLICY)
    pod.runs(since=datetime.now(UTC) - silence.STALLS * STALL + LEFT)

    wait_for("its Job to go", lambda: ATTEMPT not in job.batch_jobs())
    wait_for("it to be asked to stop", lambda: any("deletionTimestamp" in p["metadata"] for p in job.pods()))
    pod.is_gone()
    finding = "The training pod has run for 9 hours without writing its progress in the status."
    told = with_remedy(finding, remedies.SILENT_ATTEMPT)
    job.assert_failed(FailureReason.TRAINING_STALLED, told)
    (attempt,) = job.status()["attempts"]
    assert (attempt["reason"], attempt["message"]) == (FailureReason.TRAINING_STALLED, told)


def test_a_training_pod_that_has_written_progress_lately_goes_on_however_long_it_runs(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, pod = starting(kube, namespace, kubelet, runPolicy=POLICY)
    now = datetime.now(UTC)
    pod.writer.result(training=sample_status.TRAINING.model_copy(update={"observed_time": now}))
    pod.runs(since=now - 2 * silence.STALLS * STALL)
    job.wait_for_reason("Training")

    nudge(job)
    assert job.ready()["reason"] == "Training"
    assert "deletionTimestamp" not in str(job.pods())
    kubelet.play(namespace, job.is_complete, job.selector)
    assert job.status()["counts"] == {"attempts": 1}


def test_a_preflight_pod_that_writes_nothing_for_a_day_is_ended(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job = Job.create(kube, namespace, manifest(runPolicy={"maxRetries": 0}))
    pod = kubelet.pod_of(namespace, job.child(PREFLIGHT))
    pod.runs(since=datetime.now(UTC) - silence.PREFLIGHT_SILENCE + LEFT)

    job.assert_failed(
        FailureReason.TRAINING_STALLED,
        "The preflight pod has run for 24 hours without writing its result in the status.",
    )
    wait_for("its Job to go", lambda: not job.batch_jobs())
    assert job.status().get("attempts") is None
