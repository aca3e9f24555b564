"""How many bytes a live job needs in etcd, from the metrics of the API server."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.operator import node
from benchmarks.operator.client import Client, Object, for_each
from benchmarks.operator.figures import Figure
from benchmarks.operator.node import Reached
from benchmarks.operator.plane import Plane
from benchmarks.operator.population import original, populate
from finetune_api import names
from finetune_api.status.job import attempt_manager

RESOURCES = (names.JOBS, "jobs", "pods", "configmaps")
"""The resources of a job's objects."""
POLL_SECONDS = 75
"""The API server updates both metrics at least once in this time (--etcd-count-metric-poll-period is one minute)."""
REPORTS = 10
OBJECTS, FILE = "apiserver_resource_size_estimate_bytes", "apiserver_storage_size_bytes"


async def stored(plane: Plane, jobs: int) -> AsyncIterator[Figure]:
    """Case: the size of `jobs` live jobs in etcd."""
    template = await original(plane, Reached.TRAINING)
    before, file_before = await _sizes(plane.admin)
    async with node.ready(plane.admin):
        made = await populate(plane, template, jobs)
    after, file_after = await _sizes(plane.admin)
    by_resource = {name: (after.get(name, 0) - before.get(name, 0)) / jobs for name in RESOURCES}
    yield Figure("size in etcd", sum(by_resource.values()), "bytes/job", more=by_resource)
    for name, size in by_resource.items():
        yield Figure(f"  {name}", size, "bytes/job")
    yield Figure("growth of etcd's file, with old versions", (file_after - file_before) / jobs, "bytes/job")
    await _report(plane.admin, made)
    _, file_reported = await _sizes(plane.admin)
    yield Figure("growth of etcd's file by reports", (file_reported - file_after) / jobs / REPORTS, "bytes/report")


async def _report(admin: Client, trainers: list[Object]) -> None:
    """Writes `REPORTS` reports of progress for each trainer."""

    async def report(number: int) -> None:
        metadata = trainers[number % len(trainers)]["metadata"]
        said = {"training": node.progress(number // len(trainers) + 1)}
        await node.report(admin, metadata["namespace"], metadata["name"], attempt_manager(1), said)

    await for_each("reports", "reports", range(REPORTS * len(trainers)), report)


async def _sizes(admin: Client) -> tuple[dict[str, float], float]:
    await asyncio.sleep(POLL_SECONDS)
    return sizes(text_string_to_metric_families(await admin.text("/metrics")))


def sizes(metrics: Iterable[Metric]) -> tuple[dict[str, float], float]:
    """Returns the bytes of all objects by resource, and the bytes of etcd's file, from metrics of the API server."""
    samples = {metric.name: metric.samples for metric in metrics if metric.name in (OBJECTS, FILE)}
    objects = {sample.labels["resource"]: sample.value for sample in samples.get(OBJECTS, [])}
    return objects, sum(sample.value for sample in samples.get(FILE, []))
