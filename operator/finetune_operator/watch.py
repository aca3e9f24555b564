"""kopf: watches FineTuneJobs and their Jobs and Pods, and turns every event into a key for the queue.

The only module that knows kopf. Its handlers decide nothing; kopf gives the watch streams, the process and the probe.
No finalizers and no annotations are written on users' objects: `on.event` handlers keep no state there.
"""

import asyncio
import logging
from typing import Any

import kopf

from finetune_api import names
from finetune_operator import loop
from finetune_operator.api import KubernetesApi
from finetune_operator.queue import WorkQueue


def run(liveness: str | None) -> None:
    """Run the operator until a signal. `liveness`: URL to serve the probe on, such as http://0.0.0.0:8080/healthz."""
    queue = WorkQueue()
    kopf.run(
        registry=_registry(queue),
        clusterwide=True,
        standalone=True,
        liveness_endpoint=liveness,
    )


def _registry(queue: WorkQueue) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    tasks: set[asyncio.Task[None]] = set()

    @kopf.on.login(registry=registry)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**arguments)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.watching.label_selectors["batch/v1", "jobs"] = names.LABEL_JOB_UID
        settings.watching.label_selectors["v1", "pods"] = names.LABEL_JOB_UID
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
        workers = asyncio.create_task(loop.run(KubernetesApi(), queue))
        workers.add_done_callback(_stop_the_process)
        tasks.add(workers)

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        for task in tasks:
            task.remove_done_callback(_stop_the_process)
            task.cancel()

    @kopf.on.event(names.GROUP, names.VERSION, names.JOBS, registry=registry)
    async def on_job(namespace: str | None, name: str | None, status: Any, **_: Any) -> None:
        if namespace and name and not loop.has_ended(status):
            queue.add((namespace, name))

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    @kopf.on.event("v1", "pods", registry=registry)
    async def on_child(namespace: str | None, labels: Any, **_: Any) -> None:
        if namespace and (owner := labels.get(names.LABEL_JOB_NAME)):
            queue.add((namespace, owner))

    return registry


def _stop_the_process(task: asyncio.Task[None]) -> None:
    """Without its workers the operator would look alive and do nothing."""
    if not task.cancelled() and task.exception() is not None:
        logging.getLogger(__name__).critical("the workers stopped", exc_info=task.exception())
        asyncio.get_running_loop().call_soon(_interrupt)


def _interrupt() -> None:
    raise SystemExit(1)
