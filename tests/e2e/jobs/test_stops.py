"""A tenant suspends, limits and continues a job with kubectl. Real pods store checkpoints and go on from them."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from devcluster import Cluster
from finetune_api import names
from finetune_api.reasons import FailureReason
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, gpus_asked_for, message, sums, truth
from tests.integration.jobs import ATTEMPT, GPU, Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for

STEPS = 500
"""Enough for three attempts that are stopped before the last step: a stopped pod trains on for two seconds."""
TRAINING = {"maxSteps": STEPS, "epochs": 100, "checkpoint": {"every": 10}}
"""The status shows the first step of an attempt, and then one step every ten seconds."""
SECONDS = 120.0
"""How long two busy cores may take for the start or the end of a pod."""
DELETED = "CheckpointsDeleted"
SAME = 0.01
"""Largest difference of the matrices that begin at zero, as a part of their norm, after hundreds of steps on one and on
two GPUs, whose sums have another order. Trainings over other rows have nothing in common."""


def create(tenant: Tenant, name: str, **spec: Any) -> Job:
    rows = tenant.put_rows("stops.jsonl", sums(60))
    dataset = {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}
    return tenant.create(name, rows, **{"dataset": dataset, "training": TRAINING, **spec})


@dataclass(frozen=True)
class Desk:
    """Where the tenant types: `kubectl patch` of a job."""

    cluster: Cluster

    def change(self, job: Job, **spec: Any) -> None:
        patch = json.dumps({"spec": spec})
        self.cluster.kubectl("patch", "finetunejob", job.name, "-n", job.namespace, "--type=merge", f"--patch={patch}")


@pytest.fixture(scope="module")
def desk(installed: Cluster) -> Desk:
    return Desk(installed)


@dataclass(frozen=True)
class Story:
    """What a job showed that was stopped three times: when it was created suspended, and at each stop."""

    job: Job
    created: dict[str, str]
    suspended: Object
    over_budget: Object
    ended: Object


@pytest.fixture(scope="module")
def story(tenant: Tenant, desk: Desk) -> Story:
    """A job that is created suspended, is suspended while it trains, reaches its budget, and then its deadline."""
    job = create(tenant, "stopped", suspend=True)
    job.wait_for_reason("Suspended")
    created = job.children()

    desk.change(job, suspend=False)
    goes_on(job, attempt=1)
    desk.change(job, suspend=True)
    suspended = stopped(job, "Suspended", attempt=1)

    desk.change(job, suspend=False)
    goes_on(job, attempt=2)
    desk.change(job, runPolicy={"budget": {"gpuHours": used_soon(job)}})
    over_budget = stopped(job, "BudgetExceeded", attempt=2)

    desk.change(job, runPolicy={"budget": {"gpuHours": 100}})
    goes_on(job, attempt=3)
    desk.change(job, runPolicy={"activeDeadlineSeconds": 1})
    return Story(job, created, suspended, over_budget, tenant.end_of(job))


def goes_on(job: Job, attempt: int) -> None:
    """Waits until this attempt has taken steps of its own."""

    def took_steps(training: Object) -> bool:
        return training.get("attempt") == attempt and training["step"] > training.get("resumedFromStep", 0)

    wait_for(f"attempt {attempt} to take steps", lambda: job.status().get("training", {}), took_steps, SECONDS)
    job.wait_for_reason("Training", SECONDS)  # the operator has seen it too


def used_soon(job: Job) -> float:
    """Returns the GPU hours that the job will have used in a second."""
    status = job.status()
    running = datetime.now(UTC) - datetime.fromisoformat(status["attempts"][-1]["startTime"])
    return float((status["gpuSeconds"] + running.total_seconds() + 1) / 3600)


def stopped(job: Job, reason: str, attempt: int) -> Object:
    """The status, once the job is suspended for this reason and the pod of this attempt has ended."""
    job.wait_for_reason(reason, SECONDS)

    def has_ended(status: Object) -> bool:
        return "completionTime" in status["attempts"][attempt - 1]

    return wait_for("the pod's end to be recorded", job.status, has_ended, SECONDS)


def test_a_job_that_is_created_suspended_has_no_pod(story: Story) -> None:
    assert story.created == {}


def test_a_suspended_job_stores_a_checkpoint_of_its_last_step(story: Story) -> None:
    status, (attempt,) = story.suspended, story.suspended["attempts"]

    assert (status["state"], truth(status)["Suspended"], status["counts"]["attempts"]) == ("Suspended", "True", 1)
    assert attempt["reason"] == "Suspended"
    assert 0 < attempt["lastStep"] == attempt["checkpointStep"] < STEPS
    assert status["gpuSeconds"] == attempt["gpuSeconds"] > 0


def test_a_job_over_its_budget_is_suspended_and_says_which_field_to_raise(story: Story) -> None:
    status, (_, attempt) = story.over_budget, story.over_budget["attempts"]

    assert (status["state"], truth(status)["Suspended"]) == ("Suspended", "True")
    assert "GPU hours (spec.runPolicy.budget.gpuHours). Raise this field" in message(status)
    assert attempt["reason"] == "BudgetExceeded"
    assert status["gpuSeconds"] == sum(each["gpuSeconds"] for each in status["attempts"])


def test_a_deadline_lets_the_pod_store_a_checkpoint_and_fails_the_job(story: Story) -> None:
    status = story.ended

    assert (status["state"], truth(status)["Failed"]) == ("Failed", "True")
    assert "1 s after its first training pod was scheduled (spec.runPolicy.activeDeadlineSeconds)" in message(status)
    assert status["attempts"][-1]["reason"] == FailureReason.DEADLINE_EXCEEDED


def test_every_attempt_goes_on_at_the_last_step_of_the_one_before_it(story: Story) -> None:
    attempts = story.ended["attempts"]

    assert [each["reason"] for each in attempts] == ["Suspended", "BudgetExceeded", "DeadlineExceeded"]
    assert [each.get("resumedFromStep", 0) for each in attempts] == [0, *(each["lastStep"] for each in attempts[:2])]
    assert [each["checkpointStep"] for each in attempts] == [each["lastStep"] for each in attempts]
    assert {"retries", "interruptions"} & story.ended["counts"].keys() == set()


@pytest.fixture(scope="module")
def followers(tenant: Tenant, story: Story) -> dict[str, Job]:
    """Four jobs over the same rows, by name, once they have ended. `continued`, `two-gpus` and `other-batch` resume
    from the failed job, the last one with another batch size. `whole` is never interrupted."""
    resume = {"resumeFrom": {"name": story.job.name}}
    specs: dict[str, Object] = {
        "continued": resume,
        "two-gpus": {**resume, "compute": {"cpu": "500m", "memory": "2Gi", "gpusPerNode": 2}},
        "other-batch": {**resume, "training": {**TRAINING, "globalBatchSize": 4}},
        "whole": {},
    }
    jobs = {name: create(tenant, name, **spec) for name, spec in specs.items()}
    for job in jobs.values():
        tenant.end_of(job)
    return jobs


@pytest.mark.thorough
def test_a_later_job_continues_from_the_checkpoint_of_the_failed_one(
    tenant: Tenant, story: Story, followers: dict[str, Job]
) -> None:
    status, last = followers["continued"].status(), story.ended["attempts"][-1]

    assert status["state"] == "Complete", message(status)
    assert status["training"]["resumedFromStep"] == last["checkpointStep"]
    assert (status["training"]["step"], status["counts"]) == (STEPS, {"attempts": 1})
    assert weights(tenant, "continued") == weights(tenant, "whole"), "another training than without the stops"


@pytest.mark.thorough
def test_a_later_job_continues_with_more_gpus_and_trains_the_same_weights(
    tenant: Tenant, story: Story, followers: dict[str, Job]
) -> None:
    status, last = followers["two-gpus"].status(), story.ended["attempts"][-1]

    assert status["state"] == "Complete", message(status)
    assert status["training"]["resumedFromStep"] == last["checkpointStep"]
    found, expected = load(weights(tenant, "two-gpus")), load(weights(tenant, "whole"))
    trained = [name for name in expected if "lora_B" in name]
    apart = sum(float(np.square(found[name] - expected[name]).sum()) for name in trained)
    length = sum(float(np.square(expected[name]).sum()) for name in trained)
    assert (apart / length) ** 0.5 < SAME, "another training than on one GPU"


def weights(tenant: Tenant, output: str) -> bytes:
    """Returns the published adapter."""
    key = f"{output}/adapter/adapter_model.safetensors"
    return bytes(tenant.s3.get_object(Bucket="results", Key=key)["Body"].read())


@pytest.mark.thorough
def test_a_later_job_with_another_batch_size_is_refused_before_it_requests_a_gpu(followers: dict[str, Job]) -> None:
    job = followers["other-batch"]

    assert job.status()["state"] == "Failed"
    assert "spec.training.globalBatchSize" in message(job.status())
    assert gpus_asked_for(job) == []


def left_of(tenant: Tenant, job: Job) -> list[str]:
    """Returns the temporary objects of a job."""
    return tenant.objects("results", f"{job.name}/{names.WORK_FOLDER}/{job.uid}/")


def cleaned_up(job: Job) -> Object:
    """The condition that tells the end of the cleanup."""

    def told() -> list[Object]:
        return [condition for condition in job.status()["conditions"] if condition["type"] == DELETED]

    return dict(wait_for(f"the checkpoints of {job.name} to be deleted", told, timeout=SECONDS)[0])


@pytest.mark.thorough
def test_a_pod_with_the_tenants_account_deletes_the_checkpoints_when_they_are_no_longer_kept(
    tenant: Tenant, desk: Desk, story: Story, followers: dict[str, Job]
) -> None:
    job = story.job
    before = left_of(tenant, job)
    desk.change(job, runPolicy={"keepCheckpointsSeconds": 0})

    told = cleaned_up(job)

    assert (told["status"], told["reason"]) == ("True", "Deleted")
    assert told["message"].startswith(f"Deleted {len(before)} objects ")
    assert any("/checkpoints/" in key for key in before)
    assert left_of(tenant, job) == []
    (pod,) = [pod for pod in job.pods() if pod["metadata"]["labels"][names.LABEL_STEP] == names.CLEANUP]
    assert (pod["spec"]["serviceAccountName"], pod["status"]["phase"]) == (names.TRAINER_SERVICE_ACCOUNT, "Succeeded")
    assert GPU not in str(pod["spec"])
    assert job.status()["state"] == "Failed"


def test_the_checkpoints_and_the_children_of_a_failed_job_go_in_their_time_and_the_job_stays(tenant: Tenant) -> None:
    limits = {"activeDeadlineSeconds": 1, "keepCheckpointsSeconds": 3, "ttlSecondsAfterFinished": 1}
    job = create(tenant, "short-lived", runPolicy=limits)

    status = tenant.end_of(job)
    assert (status["state"], status["attempts"][0]["reason"]) == ("Failed", FailureReason.DEADLINE_EXCEEDED)
    told = cleaned_up(job)

    assert (told["status"], left_of(tenant, job)) == ("True", []), told
    wait_for("its children to go", job.children, lambda left: not left, SECONDS)
    assert job.status()["attempts"] == status["attempts"]


def test_the_results_of_a_complete_job_outlive_its_children(
    tenant: Tenant, desk: Desk, followers: dict[str, Job]
) -> None:
    job = followers["continued"]
    assert ATTEMPT in job.batch_jobs()
    desk.change(job, runPolicy={"ttlSecondsAfterFinished": 0})

    wait_for("its children to go", job.children, lambda left: not left, SECONDS)
    assert job.status()["state"] == "Complete"
    assert "continued/manifest.json" in tenant.objects("results", "continued/")
