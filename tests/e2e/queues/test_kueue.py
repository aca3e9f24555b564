"""Kueue decides when an attempt runs: the job waits for quota, gives way to a more urgent Job, and comes back."""

from typing import Any

import pytest

from finetune_api import names
from tests.e2e.queues.queue import IN_QUEUE, QUEUE, URGENT, Queue, trainers
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import ATTEMPT, GPU, PREFLIGHT, Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for

KUEUES_LABELS = (names.LABEL_QUEUE, names.LABEL_PRIORITY_CLASS)
STEPS = 250
"""Enough that the job still trains when it is evicted."""
START_SECONDS = 120.0
"""Longest a preflight and the start of the training may take on two busy cores."""


@pytest.fixture
def train(tenant: Tenant) -> str:
    return tenant.put_rows("queued.jsonl", sums(60))


def create(tenant: Tenant, train: str, name: str, labels: dict[str, str], **training: Any) -> Job:
    sources = {"train": [{"uri": train, "columns": SUMS_COLUMNS}]}
    return tenant.create(name, train, labels=labels, dataset=sources, training={"maxSteps": 3, **training})


def child(job: Job, step: str) -> Object:
    return job.batch_jobs()[step]


def kueues_labels(child: Object) -> dict[str, str]:
    return {name: value for name, value in child["metadata"]["labels"].items() if name in KUEUES_LABELS}


def managers_of_suspend(child: Object) -> set[str]:
    """Who has last written spec.suspend of a Job."""
    entries = child["metadata"]["managedFields"]
    return {entry["manager"] for entry in entries if "f:suspend" in entry["fieldsV1"].get("f:spec", {})}


def step(job: Job) -> int:
    """The last step that the job has reported."""
    return int(job.status().get("training", {}).get("step", 0))


def waiting_for_quota(job: Job, text: str, timeout: float = START_SECONDS) -> Object:
    """The status, once the job waits for quota with these words of Kueue."""
    wait_for(
        f"{job.name} to say {text!r}",
        job.ready,
        lambda ready: ready.get("reason") == "WaitingForQuota" and text in ready["message"],
        timeout,
    )
    return job.status()


def test_a_job_without_quota_is_queued_with_kueues_own_words_until_there_is_some(
    tenant: Tenant, queue: Queue, train: str
) -> None:
    queue.has_room_for(gpus=0)
    job = create(tenant, train, "queued", IN_QUEUE)

    status = waiting_for_quota(job, "insufficient quota for nvidia.com/gpu in flavor any")

    said = queue.workload_of(child(job, ATTEMPT)["metadata"]["uid"])["status"]["conditions"]
    (reserved,) = [c["message"] for c in said if c["type"] == "QuotaReserved"]
    assert "> maximum capacity (0)" in reserved
    helps = "Waiting does not help: ask the platform team for more quota, or request less: "
    assert message(status).startswith(f"Waiting for quota in queue {QUEUE}: {reserved}. {helps}")
    assert message(status).endswith(" The job requests GPU type any.")
    assert status["state"] == "Queued"
    assert kueues_labels(child(job, ATTEMPT)) == IN_QUEUE
    assert kueues_labels(child(job, PREFLIGHT)) == {}
    assert child(job, ATTEMPT)["spec"]["suspend"] is True

    queue.has_room_for(gpus=1)

    status = tenant.end_of(job)
    assert (status["state"], status["counts"]) == ("Complete", {"attempts": 1}), message(status)
    assert managers_of_suspend(child(job, ATTEMPT)) == {"kueue"}
    assert [event["reason"] for event in job.events()] == ["Succeeded"]


@pytest.mark.thorough
@pytest.mark.parametrize("gpus", [1, 2])
def test_the_gpus_of_all_nodes_of_a_job_need_quota_together(
    tenant: Tenant, queue: Queue, train: str, gpus: int
) -> None:
    queue.has_room_for(gpus=2 * gpus - 1)
    sources = {"train": [{"uri": train, "columns": SUMS_COLUMNS}]}
    compute = {"nodes": 2, "gpusPerNode": gpus, "cpu": "100m", "memory": "1Gi"}
    job = tenant.create("two-nodes", train, labels=IN_QUEUE, dataset=sources, compute=compute)

    waiting_for_quota(job, "insufficient quota for nvidia.com/gpu in flavor any")

    uid = child(job, ATTEMPT)["metadata"]["uid"]
    (pods,) = queue.workload_of(uid)["spec"]["podSets"]
    (container,) = pods["template"]["spec"]["containers"]
    assert (pods["count"], container["resources"]["limits"][GPU]) == (2, str(gpus))
    assert trainers(job) == [], "no pod holds a GPU while it waits for the other one"

    queue.has_room_for(gpus=2 * gpus)

    admission = wait_for(
        "the quota", lambda: queue.workload_of(uid).get("status", {}).get("admission"), timeout=START_SECONDS
    )
    (taken,) = admission["podSetAssignments"]
    assert (taken["count"], taken["resourceUsage"][GPU]) == (2, str(2 * gpus))

    told = wait_for(
        "the wait for a second node",
        lambda: message(job.status()),
        lambda said: "The pod waits for a node: 0/1 nodes are available: " in said and "1 of the 2 pods" in said,
        START_SECONDS,
    )
    assert "It gives its GPUs back at " in told
    tenant.kube.delete(job.path)


def test_a_job_that_is_evicted_waits_and_goes_on_at_its_checkpoint_once_the_same_job_runs_again(
    tenant: Tenant, queue: Queue, train: str
) -> None:
    queue.has_room_for(gpus=1)
    job = create(tenant, train, "evicted", IN_QUEUE, maxSteps=STEPS, epochs=100)
    taken = wait_for("it to take steps", lambda: step(job), lambda taken: taken > 0, START_SECONDS)
    before, (first,) = child(job, ATTEMPT), trainers(job)

    other = queue.take("urgent", URGENT)

    status = waiting_for_quota(job, "Preempted")
    assert (status["state"], status["counts"]) == ("Queued", {"attempts": 1})
    wait_for("the urgent Job to run", lambda: tenant.kube.get(other), lambda o: o["status"].get("active"))
    assert job.status()["state"] == "Queued"
    tenant.kube.delete(other)

    status = tenant.end_of(job)
    assert (status["state"], status["counts"]) == ("Complete", {"attempts": 1}), message(status)
    after, (second,) = child(job, ATTEMPT), trainers(job)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["metadata"]["labels"] == first["metadata"]["labels"]
    assert taken <= status["training"]["resumedFromStep"] < STEPS


def test_a_queue_that_does_not_exist_is_named_with_what_to_do(tenant: Tenant, queue: Queue, train: str) -> None:
    job = create(tenant, train, "nowhere", {names.LABEL_QUEUE: "nowhere"})

    status = waiting_for_quota(job, "LocalQueue nowhere doesn't exist")

    assert status["state"] == "Queued"
    assert "kubectl get localqueues" in message(status)
    tenant.kube.delete(job.path)


@pytest.mark.thorough
def test_a_preflight_waits_in_the_queue_that_its_profile_names_until_somebody_creates_it(
    tenant: Tenant, queue: Queue, train: str
) -> None:
    queue.has_room_for(gpus=1)
    sources = {"train": [{"uri": train, "columns": SUMS_COLUMNS}]}
    profile = tenant.profile_with_preflight_queue("later")
    job = tenant.create("queued-preflight", train, labels=IN_QUEUE, dataset=sources, profileName=profile)

    status = waiting_for_quota(job, "LocalQueue later doesn't exist")
    assert (status["state"], status["stage"]) == ("Queued", "Preflight")
    assert kueues_labels(child(job, PREFLIGHT)) == {**IN_QUEUE, names.LABEL_QUEUE: "later"}
    assert ATTEMPT not in job.batch_jobs()

    queue.open_for_preflights("later")

    status = tenant.end_of(job)
    assert status["state"] == "Complete", message(status)
