"""How many bytes a live job needs in etcd, from the metrics of the API server."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

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
"""The API server updates its metrics at least once in this time (--etcd-count-metric-poll-period is one minute)."""
REPORTS = 10
OBJECTS, FILE = "apiserver_resource_size_estimate_bytes", "apiserver_storage_size_bytes"
MEMORY = "process_resident_memory_bytes"


@dataclass(frozen=True)
class Sizes:
    """Bytes, from the metrics of the API server."""

    objects: dict[str, float]
    """All objects in etcd, by resource."""
    file: float
    """etcd's file, with old versions and free pages."""
    memory: float
    """Resident memory of the API server."""

    @classmethod
    def of(cls, metrics: Iterable[Metric]) -> "Sizes":
        """Returns the sizes. A metric that is missing counts as 0."""
        samples = {metric.name: metric.samples for metric in metrics if metric.name in (OBJECTS, FILE, MEMORY)}
        objects = {sample.labels["resource"]: sample.value for sample in samples.get(OBJECTS, [])}
        file, memory = (sum(sample.value for sample in samples.get(name, [])) for name in (FILE, MEMORY))
        return cls(objects, file, memory)


async def stored(plane: Plane, jobs: int) -> AsyncIterator[Figure]:
    """Case: the size of `jobs` live jobs in etcd and in the API server."""
    template = await original(plane, Reached.TRAINING)
    empty = await _sizes(plane.admin)
    async with node.ready(plane.admin):
        made = await populate(plane, template, jobs)
        full = await _sizes(plane.admin)
        await _report(plane.admin, made)
        reported = await _sizes(plane.admin)
    by_resource = {name: (full.objects.get(name, 0) - empty.objects.get(name, 0)) / jobs for name in RESOURCES}
    yield Figure("size in etcd", sum(by_resource.values()), "bytes/job")
    for name, size in by_resource.items():
        yield Figure(f"  {name}", size, "bytes/job")
    yield Figure("growth of etcd's file, with old versions", (full.file - empty.file) / jobs, "bytes/job")
    yield Figure("growth of etcd's file by reports", (reported.file - full.file) / jobs / REPORTS, "bytes/report")
    yield Figure("growth of the API server's memory", (full.memory - empty.memory) / jobs, "bytes/job")


async def _report(admin: Client, trainers: list[Object]) -> None:
    """Writes `REPORTS` reports of progress for each trainer."""

    async def report(number: int) -> None:
        metadata = trainers[number % len(trainers)]["metadata"]
        said = {"training": node.progress(number // len(trainers) + 1)}
        await node.report(admin, metadata["namespace"], metadata["name"], attempt_manager(1), said)

    await for_each("reports", "reports", range(REPORTS * len(trainers)), report)


async def _sizes(admin: Client) -> Sizes:
    await asyncio.sleep(POLL_SECONDS)
    return Sizes.of(text_string_to_metric_families(await admin.text("/metrics")))
