"""Plays the kubelet and the trainer for one FineTuneJob, because the control plane has no node.

Pods change as on a node: bound, creating the container, running, ended. The trainer's part of the status is written
under the field managers of the trainer. A real stage takes minutes, so `live` lets the operator come to rest between
two changes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum

from benchmarks.operator.client import JOBS, PODS, Client, Object
from finetune_api import names
from finetune_api.status.job import PREFLIGHT_MANAGER, attempt_manager

NODE = "stand-in"
MOMENT = "2026-01-02T03:04:05Z"
PREFLIGHT: Object = {
    "preflight": {
        "rows": 250,
        "invalid": 0,
        "duplicates": 10,
        "tokens": 20_000,
        "supervisedTokens": 9_000,
        "splits": {"train": 190, "test": 50},
        "digest": "c0ffee",
        "observedTime": MOMENT,
    },
    "resolved": {
        "method": "LoRA",
        "learningRate": 0.001,
        "warmupSteps": 2,
        "totalSteps": 24,
        "maxSequenceLength": 128,
        "microBatchTokens": 2048,
        "maxNewTokens": 96,
        "promptFormat": "ChatTemplate",
        "parameters": 134_515_008,
    },
}
EVALUATION: Object = {
    "rows": 50,
    "base": {"loss": 3.0, "perplexity": 20.1, "exactMatch": 0.0},
    "tuned": {"loss": 0.1, "perplexity": 1.1, "exactMatch": 0.94},
    "decision": {"metric": "ExactMatch", "over": "Base", "baseline": 0.0, "tuned": 0.94, "outcome": "Better"},
    "verdict": "Tuning was worth it: exact match rose from 0.00 to 0.94 on 50 held-out rows.",
    "observedTime": MOMENT,
}
ARTIFACTS: Object = {
    "adapter": "s3://acme-models/tickets/adapter",
    "report": "s3://acme-models/tickets/report.html",
    "manifest": "s3://acme-models/tickets/manifest.json",
    "digest": "beef",
}


class Reached(StrEnum):
    """Points in the life of a job."""

    PENDING = "the preflight Job exists"
    TRAINING = "the attempt trains"
    COMPLETE = "the job has ended"


async def live(admin: Client, job: Object, settle: Callable[[], Awaitable[None]], until: Reached) -> None:
    """Takes a new job to this point of its life, while the operator runs. `settle` is called after each change."""
    async for point in _life(admin, job):
        await settle()
        if point is until:
            return


@asynccontextmanager
async def ready(admin: Client) -> AsyncIterator[None]:
    """Creates the node and keeps it ready. Otherwise the controller-manager deletes its pods."""
    await admin.apply(f"/api/v1/nodes/{NODE}", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}, "node")
    async with asyncio.TaskGroup() as tasks:
        beat = tasks.create_task(_beat(admin))
        try:
            yield
        finally:
            beat.cancel()


async def _beat(admin: Client) -> None:
    while True:
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": _now()}
        await admin.merge(f"/api/v1/nodes/{NODE}/status", {"status": {"conditions": [ready]}})
        await asyncio.sleep(10)


def progress(step: int) -> Object:
    """Returns the status field `training` as a trainer reports it at this optimizer step."""
    return {"attempt": 1, "device": "H100", "step": step, "totalSteps": 10_000, "loss": 0.25, "observedTime": _now()}


async def report(admin: Client, namespace: str, name: str, manager: str, status: Object) -> None:
    """Writes the trainer's part of the status. It has to be complete: an apply removes what it leaves out."""
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "metadata": {"namespace": namespace, "name": name},
        "status": status,
    }
    await admin.apply(f"{JOBS.format(namespace)}/{name}/status", body, manager)


async def _life(admin: Client, job: Object) -> AsyncIterator[Reached | None]:
    namespace, name, uid = (job["metadata"][key] for key in ("namespace", "name", "uid"))
    pod = await _pod_of(admin, namespace, names.preflight_name(name, uid))
    yield Reached.PENDING
    async for _ in _start(admin, pod):
        yield None
    conditions = [_condition("Validated", "Valid", "240 rows are good.")]
    await report(admin, namespace, name, PREFLIGHT_MANAGER, {"conditions": conditions, **PREFLIGHT})
    yield None
    await _end(admin, pod)
    yield None

    pod = await _pod_of(admin, namespace, names.attempt_name(name, uid, 1))
    yield None
    async for _ in _start(admin, pod):
        yield None
    said: Object = {"training": progress(0)}
    await report(admin, namespace, name, attempt_manager(1), said)
    yield Reached.TRAINING
    said |= {"conditions": [_condition("Trained", "Trained", "24 of 24 steps are done.")], "training": progress(24)}
    await report(admin, namespace, name, attempt_manager(1), said)
    yield None
    said["conditions"] = [*said["conditions"], _condition("Evaluated", "Evaluated", EVALUATION["verdict"])]
    said["evaluation"] = EVALUATION
    await report(admin, namespace, name, attempt_manager(1), said)
    yield None
    await report(admin, namespace, name, attempt_manager(1), said | {"artifacts": ARTIFACTS})
    yield None
    await _end(admin, pod)
    yield Reached.COMPLETE


async def _pod_of(admin: Client, namespace: str, job: str) -> Object:
    """Returns the pod of a batch Job, once the Job controller has created it."""
    async with asyncio.timeout(120):
        while True:
            query = {"labelSelector": f"batch.kubernetes.io/job-name={job}"}
            pods: list[Object] = (await admin.get(PODS.format(namespace), **query))["items"]
            if pods:
                return pods[0]
            await asyncio.sleep(0.05)


async def _start(admin: Client, pod: Object) -> AsyncIterator[None]:
    path = _path(pod)
    metadata = {"name": pod["metadata"]["name"]}
    target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
    await admin.create(
        f"{path}/binding", {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target}
    )
    yield
    await _write(admin, path, "Pending", {"waiting": {"reason": "ContainerCreating"}})
    yield
    await _write(admin, path, "Running", {"running": {"startedAt": _now()}})
    yield


async def _end(admin: Client, pod: Object) -> None:
    ended = {"exitCode": 0, "reason": "Completed", "message": '{"reason":"Succeeded","message":"Done."}'}
    moments = {"startedAt": pod["metadata"]["creationTimestamp"], "finishedAt": _now()}
    await _write(admin, _path(pod), "Succeeded", {"terminated": ended | moments})


async def _write(admin: Client, path: str, phase: str, state: Object) -> None:
    running = "running" in state
    container = {"name": names.CONTAINER, "image": "trainer", "imageID": "", "restartCount": 0, "state": state}
    status = {"phase": phase, "containerStatuses": [container | {"ready": running, "started": running}]}
    await admin.merge(f"{path}/status", {"status": status})


def _path(pod: Object) -> str:
    return f"{PODS.format(pod['metadata']['namespace'])}/{pod['metadata']['name']}"


def _condition(type: str, reason: str, message: str) -> Object:
    return {
        "type": type,
        "status": "True",
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
