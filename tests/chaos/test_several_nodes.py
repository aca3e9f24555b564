"""Trainings on two nodes of the cluster, with a pod on each. The pods of an attempt end together, also where one of
them, or the network between them, fails."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from tests.chaos.pods import process_of
from tests.chaos.scene import Lane, Scene
from tests.integration.jobs import GPU, Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.thorough

AT_ONCE = 2
"""How many jobs run side by side. More would only wait for each other on two cores."""
END_SECONDS = 60.0
"""Longest from a harm to the end of all pods."""
LONG: Object = {"maxSteps": 4000, "epochs": 100, "globalBatchSize": 2, "checkpoint": {"every": 5}}
Pods = dict[int, Object]
"""The training pods of an attempt, by their index."""


@dataclass(frozen=True)
class Harmed:
    """A job that was harmed once both pods trained. `pods`: of the first attempt. `ended`: the record of this attempt.
    `status`: of the job at its end; empty if nobody waited for it."""

    pods: Pods
    ended: Object
    status: Object


def pods_of(job: Job, attempt: int = 1) -> Pods:
    labels = [(pod["metadata"]["labels"], pod) for pod in job.pods()]
    found = [(own, pod) for own, pod in labels if own.get(names.LABEL_ATTEMPT) == str(attempt)]
    return {int(own[names.LABEL_INDEX]): pod for own, pod in found}


def at_work(job: Job) -> Pods:
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


def kill(lane: Lane, pod: Object, other: Object) -> None:
    pid = process_of(pod)
    assert pid
    os.kill(pid, signal.SIGKILL)


def cut_off(lane: Lane, pod: Object, other: Object) -> None:
    pid, address = process_of(pod), other["status"]["podIP"]
    for rule in (["INPUT", "--source", address], ["OUTPUT", "--destination", address]):
        command = ["nsenter", "--target", str(pid), "--net", "iptables", "--append", *rule, "--jump", "DROP"]
        subprocess.run(command, check=True)


def delete(lane: Lane, pod: Object, other: Object) -> None:
    metadata = pod["metadata"]
    lane.scene.cluster.kubectl("delete", "pod", "-n", metadata["namespace"], metadata["name"], "--wait=false")


def harmed(
    lane: Lane, name: str, harm: Callable[[Lane, Object, Object], None], steps: int | None = None, gpus: int = 1
) -> Harmed:
    """Starts a job, and harms its second pod. `steps`: of a job that shall reach its end. `gpus`: of each pod. Deletes
    the job."""
    training = LONG | ({"maxSteps": steps} if steps else {})
    compute = {"nodes": 2, "gpusPerNode": gpus, "cpu": "250m", "memory": "2Gi"}
    job = lane.start(name, compute=compute, training=training)
    try:
        pods = at_work(job)
        harm(lane, pods[1], pods[0])
        ended = first_end(job)
        return Harmed(pods, ended, lane.tenant.end_of(job) if steps else {})
    finally:
        job.kube.delete(job.path)


@pytest.fixture(scope="module")
def shown(scene: Scene) -> Iterator[dict[str, Future[Harmed]]]:
    """What the jobs of this module show, by their names. Each has its own lane. The longest is the first."""
    lanes = scene.lanes
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            "deleted-pod": pool.submit(harmed, lanes[0], "deleted-pod", delete, steps=300, gpus=2),
            "cut-network": pool.submit(harmed, lanes[1], "cut-network", cut_off),
            "killed-pod": pool.submit(harmed, lanes[2], "killed-pod", kill),
        }


def test_a_pod_that_is_deleted_stops_both_after_the_same_step(shown: dict[str, Future[Harmed]]) -> None:
    found = shown["deleted-pod"].result()

    assert found.ended["reason"] in (FailureReason.PREEMPTED, FailureReason.EVICTED), found.ended
    assert found.ended["checkpointStep"] == found.ended["lastStep"]
    _, second = found.status["attempts"]
    assert second["resumedFromStep"] == found.ended["checkpointStep"]


def test_four_ranks_in_two_pods_on_two_nodes_publish_one_adapter(
    scene: Scene, shown: dict[str, Future[Harmed]]
) -> None:
    found = shown["deleted-pod"].result()
    status = found.status

    limits = [pod["spec"]["containers"][0]["resources"]["limits"][GPU] for pod in found.pods.values()]
    assert limits == ["2", "2"]
    assert status["state"] == "Complete", status
    attempts = status["attempts"]
    assert {pod["nodeName"] for pod in attempts[-1]["pods"]} == {"node", "node-2"}
    assert attempts[-1]["reason"] == "Succeeded"
    assert status["gpuSeconds"] == sum(attempt["gpuSeconds"] for attempt in attempts)
    keys = scene.lanes[0].tenant.objects("results", "deleted-pod/")
    assert "deleted-pod/manifest.json" in keys
    assert "deleted-pod/adapter/adapter_model.safetensors" in keys


def test_a_network_that_is_cut_between_the_pods_ends_both(shown: dict[str, Future[Harmed]]) -> None:
    ended = shown["cut-network"].result().ended

    assert ended["reason"] == FailureReason.PEER_LOST, ended
    assert " from 0) was lost: nothing was heard of it for 20 s." in ended["message"]


def test_a_pod_that_is_killed_ends_the_other_one_and_is_the_cause(shown: dict[str, Future[Harmed]]) -> None:
    found = shown["killed-pod"].result()

    name, node = found.pods[1]["metadata"]["name"], found.pods[1]["spec"]["nodeName"]
    assert found.ended["reason"] == FailureReason.KILLED, found.ended
    assert found.ended["message"].startswith(f"Pod {name} on node {node}: ")
    assert found.ended["checkpointStep"]
