"""What happens to a job when something is taken away under it: memory, its pod, the operator, the job itself."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from devcluster import Cluster
from tests.e2e.setting import SYSTEM
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import ATTEMPT, Job
from tests.integration.kube import BATCH_JOBS, PODS, Object
from tests.integration.waiting import wait_for

GRACE_SECONDS = 120.0
"""terminationGracePeriodSeconds of a training pod."""
STEPS = 250
"""Enough that a job still trains when its pod stops."""
Start = Callable[..., Job]


@pytest.fixture(scope="module")
def start(tenant: Tenant) -> Start:
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


def test_more_memory_than_its_limit_is_said_so(tenant: Tenant, start: Start) -> None:
    job = start("oom", compute={"cpu": "500m", "memory": "150Mi"})

    status = tenant.end_of(job)

    assert [attempt["reason"] for attempt in status["attempts"]] == ["HostOutOfMemory"] * 2, message(status)
    assert "compute.memory" in message(status)


@dataclass(frozen=True)
class Paused:
    """What a job showed whose training Job somebody else suspended, and then resumed. `first`, `second`: the names of
    its training pods before and after. `waiting`: its status meanwhile. `ready`: the condition once no pod was left."""

    first: set[str]
    second: set[str]
    waiting: Object
    ready: Object
    ended: Object


def trainers(job: Job) -> set[str]:
    return {pod["metadata"]["name"] for pod in job.pods() if "-a1-" in pod["metadata"]["name"]}


def without_its_pod(tenant: Tenant, job: Job) -> Object:
    """Deletes the pod while the job trains. Returns the status at the end."""
    learning(job)
    (pod,) = trainers(job)
    tenant.kube.delete(f"{PODS.format(job.namespace)}/{pod}")
    return tenant.end_of(job)


def paused(tenant: Tenant, job: Job) -> Paused:
    """Suspends the training Job while it trains, and resumes it."""
    path = f"{BATCH_JOBS.format(job.namespace)}/{job.child(ATTEMPT)}"
    learning(job)
    first = trainers(job)
    tenant.kube.merge(path, {"spec": {"suspend": True}})
    waiting = job.wait_for_reason("Suspended")
    wait_for("its pod to go", lambda: trainers(job), lambda left: not left, GRACE_SECONDS + 30)
    ready = job.ready()
    tenant.kube.merge(path, {"spec": {"suspend": False}})
    ended = tenant.end_of(job)
    return Paused(first, trainers(job), waiting, ready, ended)


class Both(NamedTuple):
    deleted: Future[Object]
    paused: Future[Paused]


@pytest.fixture(scope="module")
def both(tenant: Tenant, start: Start) -> Iterator[Both]:
    """Two jobs that are interrupted side by side, each on one of the two GPUs."""
    training = {"maxSteps": STEPS, "epochs": 100}
    jobs = [start(name, training=training) for name in ("pod-deleted", "suspended")]
    with ThreadPoolExecutor(2) as pool:
        yield Both(pool.submit(without_its_pod, tenant, jobs[0]), pool.submit(paused, tenant, jobs[1]))


@pytest.mark.thorough
def test_a_pod_that_is_deleted_is_followed_by_another_that_ends_the_job_well(both: Both) -> None:
    status = both.deleted.result()

    first, second = (attempt["reason"] for attempt in status["attempts"])
    assert (first in ("Preempted", "Evicted"), second) == (True, "Succeeded"), message(status)
    assert (status["counts"]["interruptions"], status["counts"].get("retries")) == (1, None)


def test_a_job_that_is_suspended_while_it_trains_waits_and_ends_well_once_resumed(both: Both) -> None:
    found = both.paused.result()

    assert (found.waiting["state"], found.waiting["counts"]) == ("Queued", {"attempts": 1})
    assert found.ready["reason"] == "Suspended"
    assert (found.ended["state"], found.ended["counts"]) == ("Complete", {"attempts": 1}), message(found.ended)
    assert (len(found.second), found.second & found.first) == (1, set())


def test_an_operator_that_is_killed_goes_on_where_it_was(tenant: Tenant, start: Start, installed: Cluster) -> None:
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


def test_a_job_that_is_deleted_while_it_is_validated_leaves_nothing(tenant: Tenant, start: Start) -> None:
    job = start("deleted-validating")
    in_state(job, "Validating")
    delete(tenant, job)


def test_jobs_that_are_deleted_while_they_wait_or_run_leave_nothing(
    tenant: Tenant, one_gpu: None, start: Start
) -> None:
    def state(job: Job) -> str:
        return str(job.status().get("state"))

    jobs = [start("deleted-1"), start("deleted-2")]
    wait_for("one to run", lambda: sorted(map(state, jobs)), lambda found: found == ["Queued", "Running"], 120)
    waiting, running = sorted(jobs, key=state)
    delete(tenant, waiting)
    assert state(running) == "Running"
    delete(tenant, running)


@pytest.mark.thorough
def test_a_complete_job_that_is_deleted_leaves_what_it_published(tenant: Tenant, start: Start) -> None:
    job = start("deleted-complete", training={"maxSteps": 2})
    in_state(job, "Complete")
    published = tenant.objects("results", f"{job.name}/")
    delete(tenant, job)
    assert f"{job.name}/manifest.json" in published
    assert tenant.objects("results", f"{job.name}/") == published
