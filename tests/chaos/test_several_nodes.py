"""A training on two nodes of the cluster, with a pod on each. Its pods end together, also where one of them, or the
network between them, fails."""

import os
import signal
import subprocess
import time
from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from tests.chaos.pods import process_of
from tests.chaos.scene import Lane, Scene
from tests.integration.jobs import Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for

END_SECONDS = 60.0
"""Longest from a harm to the end of all pods."""
LONG = {"maxSteps": 4000, "epochs": 100, "globalBatchSize": 2, "checkpoint": {"every": 5}}


@pytest.fixture
def lane(scene: Scene) -> Lane:
    return scene.lanes[0]


def start(lane: Lane, name: str, **spec: Any) -> Job:
    return lane.start(name, compute={"nodes": 2, "cpu": "250m", "memory": "2Gi"}, **spec)


def pods_of(job: Job, attempt: int = 1) -> dict[int, Object]:
    """The training pods of an attempt, by their index."""
    labels = [(pod["metadata"]["labels"], pod) for pod in job.pods()]
    found = [(own, pod) for own, pod in labels if own.get(names.LABEL_ATTEMPT) == str(attempt)]
    return {int(own[names.LABEL_INDEX]): pod for own, pod in found}


def at_work(job: Job) -> dict[int, Object]:
    """The pods of the first attempt, once it has taken ten steps."""
    wait_for("some steps", job.status, lambda now: now.get("training", {}).get("step", 0) >= 10, timeout=240)
    return pods_of(job)


def is_over(pod: Object) -> bool:
    states = [status["state"] for status in pod["status"].get("containerStatuses", [])]
    return all("terminated" in state for state in states)


def first_end(job: Job) -> Object:
    """The record of the first attempt, once all its pods have ended and the status says why. It must not take long."""
    began = time.monotonic()
    wait_for("all pods to end", lambda: pods_of(job), lambda found: all(map(is_over, found.values())), END_SECONDS)
    assert time.monotonic() - began < END_SECONDS

    def record() -> Object:
        return next((a for a in job.status().get("attempts", []) if a["number"] == 1), {})

    return wait_for("the reason", record, lambda found: "reason" in found, END_SECONDS)


def finish(job: Job) -> None:
    """Lets the test go on without the job: it was asked to train for long."""
    job.kube.delete(job.path)


def test_two_pods_on_two_nodes_publish_one_adapter(lane: Lane) -> None:
    job = start(lane, "two-nodes")

    status = lane.tenant.end_of(job)

    assert status["state"] == "Complete", status
    (attempt,) = status["attempts"]
    assert {pod["nodeName"] for pod in attempt["pods"]} == {"node", "node-2"}
    assert attempt["reason"] == "Succeeded"
    assert status["gpuSeconds"] == attempt["gpuSeconds"]
    keys = lane.tenant.objects("results", "two-nodes/")
    assert "two-nodes/manifest.json" in keys
    assert "two-nodes/adapter/adapter_model.safetensors" in keys


def test_a_pod_that_is_killed_ends_the_other_one_and_is_the_cause(lane: Lane) -> None:
    job = start(lane, "killed-pod", training=LONG)
    pods = at_work(job)
    pid = process_of(pods[1])
    assert pid
    os.kill(pid, signal.SIGKILL)

    ended = first_end(job)

    name, node = pods[1]["metadata"]["name"], pods[1]["spec"]["nodeName"]
    assert ended["reason"] == FailureReason.KILLED, ended
    assert ended["message"].startswith(f"Pod {name} on node {node}: ")
    assert ended["checkpointStep"]
    finish(job)


def test_a_network_that_is_cut_between_the_pods_ends_both(lane: Lane) -> None:
    job = start(lane, "cut-network", training=LONG)
    pods = at_work(job)
    pid, other = process_of(pods[1]), pods[0]["status"]["podIP"]
    for rule in (["INPUT", "--source", other], ["OUTPUT", "--destination", other]):
        command = ["nsenter", "--target", str(pid), "--net", "iptables", "--append", *rule, "--jump", "DROP"]
        subprocess.run(command, check=True)

    ended = first_end(job)

    assert ended["reason"] == FailureReason.PEER_LOST, ended
    assert " from 0) was lost: nothing was heard of it for 20 s." in ended["message"]
    finish(job)


def test_a_pod_that_is_deleted_stops_both_after_the_same_step(lane: Lane) -> None:
    job = start(lane, "deleted-pod", training=LONG)
    lane.scene.cluster.kubectl(
        "delete", "pod", "-n", lane.tenant.namespace, at_work(job)[1]["metadata"]["name"], "--wait=false"
    )

    ended = first_end(job)

    assert ended["reason"] in (FailureReason.PREEMPTED, FailureReason.EVICTED), ended
    assert ended["checkpointStep"] == ended["lastStep"]
    resumed = wait_for(
        "the next attempt to go on",
        lambda: job.status().get("training", {}),
        lambda found: found.get("attempt") == 2 and found.get("resumedFromStep"),
        timeout=240,
    )
    assert resumed["resumedFromStep"] == ended["checkpointStep"]
    finish(job)
