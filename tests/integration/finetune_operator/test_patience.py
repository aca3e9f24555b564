"""What may still come right is waited for, and ends the job when it does not.

These jobs (fixture `doomed`) are created with the first test of the session, so that their graces are over by now.
"""

import pytest

from finetune_api.reasons import FailureReason
from finetune_operator.decisions import admission
from finetune_operator.observed.causes import starting
from tests.integration.finetune_operator.manifests import FAILED, outcome
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job
from tests.integration.waiting import wait_for


@pytest.mark.parametrize("name", FAILED)
def test_a_job_that_cannot_start_fails_before_its_first_pod(name: str, doomed: dict[str, Job]) -> None:
    word, parts = outcome(FAILED[name])
    reason = FailureReason(word.removeprefix("failed "))
    job = doomed[name]
    job.assert_failed(reason, parts[0], admission.GRACE.total_seconds() + 30)
    assert [part for part in parts if part not in job.ready()["message"]] == []
    validated = next(c for c in job.status()["conditions"] if c["type"] == "Validated")
    assert (validated["status"], validated["reason"]) == ("False", reason)
    assert job.children() == {}


@pytest.mark.parametrize("step", [PREFLIGHT, ATTEMPT])
def test_an_image_that_cannot_be_pulled_ends_the_job_and_its_pod(step: str, doomed: dict[str, Job]) -> None:
    job = doomed[f"image-{step}"]
    job.assert_failed(
        FailureReason.IMAGE_PULL_FAILED,
        "cannot start: ImagePullBackOff: Back-off pulling image",
        starting.IMAGE_GRACE.total_seconds() + 30,
    )
    wait_for("its Job to go", job.batch_jobs, lambda jobs: step not in jobs)
