"""A training on two nodes in a queue of Kueue: both pods get quota together, give way together, and come back."""

from collections.abc import Iterator

import pytest

from tests.chaos.scene import Lane, Scene
from tests.e2e.queues.queue import IN_QUEUE, URGENT, Queue, open_queue, trainers
from tests.e2e.tenant import message
from tests.integration.jobs import ATTEMPT, Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.thorough

STEPS = 400
"""Enough that the job still trains when it is evicted. The status shows the first step, then one every ten seconds."""
SECONDS = 240.0
"""Longest that two busy cores may take for the start or the end of two pods."""


@pytest.fixture(scope="module")
def lane(scene: Scene) -> Lane:
    return scene.lanes[0]


@pytest.fixture(scope="module")
def queue(scene: Scene, lane: Lane) -> Iterator[Queue]:
    with open_queue(scene.cluster, lane.tenant) as queue:
        yield queue


def ends(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def is_over(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def waits_for_quota(job: Job) -> None:
    wait_for(f"{job.name} to wait for quota", job.ready, lambda r: r.get("reason") == "WaitingForQuota", SECONDS)


def test_two_pods_are_admitted_evicted_and_resumed_together(lane: Lane, queue: Queue) -> None:
    queue.has_room_for(gpus=1)
    job = lane.start(
        "two-in-a-queue",
        labels=IN_QUEUE,
        compute={"nodes": 2, "cpu": "250m", "memory": "2Gi"},
        training={"maxSteps": STEPS, "epochs": 100, "globalBatchSize": 2, "checkpoint": {"every": 5}},
    )
    waits_for_quota(job)
    assert trainers(job) == [], "no pod holds a GPU while it waits for the other one"

    queue.has_room_for(gpus=2)
    wait_for("a step", job.status, lambda status: status.get("training", {}).get("step", 0) > 0, SECONDS)
    first = trainers(job)
    assert {pod["spec"]["nodeName"] for pod in first} == {"node", "node-2"}

    other = queue.take("urgent", URGENT)
    waits_for_quota(job)
    wait_for("the urgent Job to run", lambda: lane.tenant.kube.get(other), lambda o: o["status"].get("active"))
    assert [pod for pod in trainers(job) if not (ends(pod) or is_over(pod))] == [], "Kueue stops both pods"
    lane.tenant.kube.delete(other)

    status = lane.tenant.end_of(job)
    assert (status["state"], status["counts"]) == ("Complete", {"attempts": 1}), message(status)
    (attempt,) = status["attempts"]
    assert len(attempt["pods"]) == 4
    second = [pod for pod in trainers(job) if pod["metadata"]["uid"] not in {old["metadata"]["uid"] for old in first}]
    assert {pod["spec"]["nodeName"] for pod in second} == {"node", "node-2"}
    assert 0 < status["training"]["resumedFromStep"] < STEPS
    assert job.batch_jobs()[ATTEMPT]["spec"]["suspend"] is False
