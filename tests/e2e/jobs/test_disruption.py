"""What happens to a job when something is taken away under it: memory, its pod, the operator, the job itself."""

from collections.abc import Callable

import pytest

from devcluster import Cluster
from tests.e2e.setting import SYSTEM
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import ATTEMPT, Job
from tests.integration.kube import BATCH_JOBS, PODS
from tests.integration.waiting import wait_for

GRACE_SECONDS = 120.0
"""terminationGracePeriodSeconds of a training pod."""
STEPS = 250
"""Enough that a job still trains when its pod stops."""


@pytest.fixture
def start(tenant: Tenant) -> Callable[..., Job]:
    """Creates a job over a few rows; with so many steps that it would train for a long time."""
    train = tenant.put_rows("long.jsonl", sums(60))

    def create(name: str, **spec: object) -> Job:
        sources = {"train": [{"uri": train, "columns": SUMS_COLUMNS}]}
        return tenant.create(name, train, **{"dataset": sources, "training": {"epochs": 100, "maxSteps": 700}, **spec})

    return create


def in_state(job: Job, state: str) -> None:
    wait_for(f"{job.name} to be {state}", job.status, lambda s: s.get("state") == state, 120)


def learning(job: Job) -> None:
    wait_for(f"{job.name} to take steps", job.status, lambda s: s.get("training", {}).get("step", 0) > 0, 120)


def test_more_memory_than_its_limit_is_said_so(tenant: Tenant, start: Callable[..., Job]) -> None:
    job = start("oom", compute={"cpu": "500m", "memory": "150Mi"})

    status = tenant.end_of(job)

    assert [attempt["reason"] for attempt in status["attempts"]] == ["HostOutOfMemory"] * 2, message(status)
    assert "compute.memory" in message(status)


def test_a_pod_that_is_deleted_is_followed_by_another_that_ends_the_job_well(
    tenant: Tenant, start: Callable[..., Job]
) -> None:
    job = start("pod-deleted", training={"maxSteps": STEPS, "epochs": 100})
    learning(job)

    (pod,) = [p for p in job.pods() if "-a1-" in p["metadata"]["name"]]
    tenant.kube.delete(f"{PODS.format(job.namespace)}/{pod['metadata']['name']}")

    status = tenant.end_of(job)
    first, second = (attempt["reason"] for attempt in status["attempts"])
    assert (first in ("Preempted", "Evicted"), second) == (True, "Succeeded"), message(status)
    assert (status["counts"]["interruptions"], status["counts"].get("retries")) == (1, None)


def test_a_job_that_is_suspended_while_it_trains_waits_and_ends_well_once_resumed(
    tenant: Tenant, start: Callable[..., Job]
) -> None:
    def suspend(suspended: bool) -> None:
        path = f"{BATCH_JOBS.format(job.namespace)}/{job.child(ATTEMPT)}"
        tenant.kube.merge(path, {"spec": {"suspend": suspended}})

    def trainers() -> set[str]:
        return {pod["metadata"]["name"] for pod in job.pods() if "-a1-" in pod["metadata"]["name"]}

    job = start("suspended", training={"maxSteps": STEPS, "epochs": 100})
    learning(job)
    first = trainers()
    suspend(True)

    status = job.wait_for_reason("Suspended")
    assert (status["state"], status["counts"]) == ("Queued", {"attempts": 1})
    wait_for("its pod to go", trainers, lambda left: not left, GRACE_SECONDS + 30)
    assert job.ready()["reason"] == "Suspended"
    suspend(False)

    status = tenant.end_of(job)
    assert (status["state"], status["counts"]) == ("Complete", {"attempts": 1}), message(status)
    assert (len(trainers()), trainers() & first) == (1, set())


def test_an_operator_that_is_killed_goes_on_where_it_was(
    tenant: Tenant, start: Callable[..., Job], installed: Cluster
) -> None:
    job = start("operator-killed", training={"maxSteps": 60, "epochs": 100})
    in_state(job, "Running")
    before = job.children()

    installed.kubectl("delete", "pod", "-n", SYSTEM, "--all", "--force", "--grace-period=0")

    status = tenant.end_of(job)
    assert status["state"] == "Complete", message(status)
    assert job.children() == before


def delete(tenant: Tenant, job: Job) -> None:
    """Deletes the job and waits until everything that was made for it is gone."""
    tenant.kube.delete(job.path)
    wait_for(f"the children of {job.name} to be gone", job.children, lambda left: not left, GRACE_SECONDS + 30)


def test_a_job_that_is_deleted_while_it_is_validated_leaves_nothing(tenant: Tenant, start: Callable[..., Job]) -> None:
    job = start("deleted-validating")
    in_state(job, "Validating")
    delete(tenant, job)


def test_jobs_that_are_deleted_while_they_wait_or_run_leave_nothing(tenant: Tenant, start: Callable[..., Job]) -> None:
    def state(job: Job) -> str:
        return str(job.status().get("state"))

    jobs = [start("deleted-1"), start("deleted-2")]
    wait_for("one to run", lambda: sorted(map(state, jobs)), lambda found: found == ["Queued", "Running"], 120)
    waiting, running = sorted(jobs, key=state)
    delete(tenant, waiting)
    assert state(running) == "Running"
    delete(tenant, running)


def test_a_complete_job_that_is_deleted_leaves_what_it_published(tenant: Tenant, start: Callable[..., Job]) -> None:
    job = start("deleted-complete", training={"maxSteps": 2})
    in_state(job, "Complete")
    published = tenant.objects("results", f"{job.name}/")
    delete(tenant, job)
    assert f"{job.name}/manifest.json" in published
    assert tenant.objects("results", f"{job.name}/") == published
