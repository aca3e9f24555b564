"""Faults of one pod: its process, its memory, its disk, and the objects that it hangs on."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from finetune_api import names
from tests.chaos.harms import stand_in
from tests.chaos.pods import process_of, running, volume_of
from tests.chaos.scene import SECOND_NODE, Lane
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job
from tests.integration.kube import BATCH_JOBS, PODS, PROFILES, Object
from tests.integration.waiting import wait_for

TAKEN_OVER_SECONDS = 360.0
"""How long it may take until another node works for a job whose node is lost."""
_MIB = 2**20
_OVER_THE_LIMIT = 2 * 2**30 + 64 * _MIB
"""More bytes than the pod's volume `tmp` may hold."""


def kill(lane: Lane, job: Job, number: signal.Signals) -> None:
    """Sends a signal to the trainer's process."""
    _, pid = running(job)
    os.kill(pid, number)


def out_of_memory(lane: Lane, job: Job) -> None:
    """Lowers the limit of the container's cgroup until the kernel kills the trainer. Raises AssertionError if the
    trainer ends by itself before."""
    pod, pid = running(job)
    limit = _memory_limit(pid)
    usage = limit.parent / ("memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes")

    def leave(room: int) -> None:
        with suppress(OSError):  # Version 1 refuses a limit that it cannot reach by freeing caches.
            limit.write_text(str(int(usage.read_text()) + room))

    def killed() -> bool:
        leave(-_MIB)
        return process_of(pod) is None

    leave(_MIB // 4)  # Version 1 kills at the next allocation above it, version 2 at a limit below the usage.

    wait_for("the kernel to kill the trainer", killed, timeout=60)
    assert wait_for("its exit code", lambda: _exit_code(job, pod), lambda code: code is not None, timeout=30) != 0


def preflight_out_of_memory(lane: Lane, job: Job) -> None:
    """Does the same to the preflight. Raises AssertionError if the attempt runs already."""
    pod, _ = running(job)
    assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == job.child(PREFLIGHT)
    out_of_memory(lane, job)


def fill_the_disk(lane: Lane, job: Job) -> None:
    """Writes more into the pod's volume /tmp than its size limit. The kubelet looks every ten seconds, so the steps are
    slowed down."""
    order(lane, job, "slow")
    pod, _ = running(job)
    with (volume_of(lane.scene, pod, "tmp") / "filling").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _OVER_THE_LIMIT)


def order(lane: Lane, job: Job, word: str) -> None:
    """Lets the stand-in in the trainer's image do what the word says at its next step."""
    pod, _ = running(job)
    place = volume_of(lane.scene, pod, "tmp")
    draft = place / f"{stand_in.FILE}.new"
    draft.write_text(word)
    draft.rename(place / stand_in.FILE)


def delete_pod(lane: Lane, job: Job) -> None:
    """Deletes the pod, as `kubectl delete pod` does."""
    pod, _ = running(job)
    job.kube.delete(f"{PODS.format(job.namespace)}/{pod['metadata']['name']}")


def delete_child_job(lane: Lane, job: Job) -> None:
    """Deletes the batch Job of the phase."""
    child = ATTEMPT if ATTEMPT in job.batch_jobs() else PREFLIGHT
    job.kube.delete(f"{BATCH_JOBS.format(job.namespace)}/{job.child(child)}")


def delete_groundwork(lane: Lane, job: Job) -> None:
    """Deletes the bundle's ConfigMap, and the namespace's ServiceAccount and RoleBinding."""
    account = names.TRAINER_SERVICE_ACCOUNT
    core, rights = f"/api/v1/namespaces/{job.namespace}", "/apis/rbac.authorization.k8s.io/v1/namespaces"
    for config_map in job.config_maps():
        job.kube.delete(f"{core}/configmaps/{config_map['metadata']['name']}")
    job.kube.delete(f"{core}/serviceaccounts/{account}")
    job.kube.delete(f"{rights}/{job.namespace}/rolebindings/{account}")


def make_again(lane: Lane, job: Job) -> Job:
    """Deletes the FineTuneJob and makes it again under its name while its pod still runs. Returns the new one."""
    body = job.read()
    job.kube.delete(job.path)
    wait_for("the name to be free", lambda: job.kube.find(job.path) is None)
    fresh = {key: body[key] for key in ("apiVersion", "kind", "spec")}
    return Job.create(job.kube, job.namespace, {**fresh, "metadata": {"name": job.name}})


def change_profile(lane: Lane, job: Job) -> None:
    """Changes the profile's image to one that no pod could use, and back once the job has ended."""
    name = job.read()["spec"]["profileName"]
    path = f"{PROFILES}/{name}"
    before = job.kube.get(path)["spec"]
    job.kube.merge(path, {"spec": {"trainer": {"image": "localhost/nothing:here"}}})
    lane.later(lambda: job.kube.merge(path, {"spec": {"trainer": before["trainer"]}}))


def lose_the_node(lane: Lane, job: Job) -> None:
    """Powers off the second node, where the pods are, and on again once another node does their work."""
    _off_and_on(lane, job, lane.scene.outages.power_off, lane.scene.outages.power_on)


def part_the_node(lane: Lane, job: Job) -> None:
    """Takes the second node, where the pods are, off the network while they go on, and back once another node does
    their work."""
    _off_and_on(lane, job, lane.scene.outages.disconnect, lane.scene.outages.connect)


def _off_and_on(lane: Lane, job: Job, off: Callable[[str], None], on: Callable[[str], None]) -> None:
    # The pod of the job may run without having told the API server. The node would come back before it is lost.
    left = [job, *_jobs_on_second_node(lane)]
    lane.later(lambda: on(SECOND_NODE))
    off(SECOND_NODE)
    wait_for("the node to be lost", lambda: _ready(lane, SECOND_NODE), lambda ready: ready != "True", 90)

    def all_taken_over() -> bool:
        left[:] = [each for each in left if not _is_taken_over(each)]
        return not left

    # The node comes back while its work is done elsewhere. A node that is parted still has the old pods then.
    with suppress(AssertionError):
        wait_for("other pods to take over", all_taken_over, timeout=TAKEN_OVER_SECONDS)
    lane.mend()


def _ready(lane: Lane, node: str) -> str:
    path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return lane.scene.cluster.kubectl("get", "node", node, "-o", path)


def _jobs_on_second_node(lane: Lane) -> list[Job]:
    """Returns the jobs of all lanes that have a pod at work there."""
    found = []
    for tenant in (each.tenant for each in lane.scene.lanes):
        for pod in tenant.kube.list(PODS.format(tenant.namespace)):
            if pod["status"].get("phase") == "Running" and pod["spec"]["nodeName"] == SECOND_NODE:
                labels = pod["metadata"]["labels"]
                name, uid = labels[names.LABEL_JOB_NAME], labels[names.LABEL_JOB_UID]
                found.append(Job(tenant.kube, tenant.namespace, name, uid))
    return found


def _is_taken_over(job: Job) -> bool:
    running = [pod for pod in job.pods() if pod["status"].get("phase") == "Running"]
    elsewhere = any(pod["spec"]["nodeName"] != SECOND_NODE for pod in running)
    return elsewhere or job.status().get("state") in ("Complete", "Failed")


def _exit_code(job: Job, pod: Object) -> int | None:
    found = job.kube.get(f"{PODS.format(job.namespace)}/{pod['metadata']['name']}")
    ends = [each["state"].get("terminated") for each in found["status"].get("containerStatuses", [])]
    return next((end["exitCode"] for end in ends if end), None)


def _memory_limit(pid: int) -> Path:
    """Returns the file of the memory limit of the process's cgroup, of version 1 or 2."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
    return Path(f"/sys/fs/cgroup{next(path for number, _, path in lines if number == '0')}/memory.max")
