"""The rate from FineTuneJobs to their child Jobs, beside a bare client with the same writes."""

import time
from collections.abc import AsyncIterator

from benchmarks.operator import audit, copies
from benchmarks.operator.children import watched
from benchmarks.operator.client import Object, for_each
from benchmarks.operator.copies import Original
from benchmarks.operator.figures import Better, Figure
from benchmarks.operator.node import Reached
from benchmarks.operator.plane import Plane
from benchmarks.operator.population import original

MOST_BARE = 1000
"""Jobs for which the bare client writes, before and after the operator."""
WARM_UP = 50
"""Jobs of the bare client that do not count. The first requests of an API server and of a client are slower."""
PATIENCE_SECONDS = 500
LEAST_RATIO = 50
"""Percent of the rate of the bare client."""


async def throughput(plane: Plane, jobs: int) -> AsyncIterator[Figure]:
    """`jobs` FineTuneJobs are there when the operator starts. The clock runs from its first write to the last Job."""
    template = await original(plane, Reached.PENDING)
    plane.operator.stop()
    await _bare(plane, template, WARM_UP)
    before = await _bare(plane, template, min(jobs, MOST_BARE))
    yield Figure("bare client before", before, "jobs/s", better=Better.HIGHER)

    created = await _create(plane, template, jobs)
    uids = {job["metadata"]["uid"] for job in created}
    plane.requests.restart()
    async with watched(plane.admin) as children:
        plane.operator.start()
        complete = await children.wait_for(uids, PATIENCE_SECONDS)
        cpu, requests = plane.operator.cpu_seconds(), plane.requests.requests()
        begun = plane.requests.first_write()
        plane.operator.stop()
    seen = sorted(children.seen[uid] for uid in uids if uid in children.seen)
    if begun is None or not seen:
        raise TimeoutError(f"No job has a child Job after {PATIENCE_SECONDS} s.")
    begun += time.monotonic() - time.time()
    rate = len(seen) / (seen[-1] - begun)
    after = await _bare(plane, template, min(jobs, MOST_BARE))
    yield Figure("bare client after", after, "jobs/s", better=Better.HIGHER)
    yield Figure("operator", rate, "jobs/s", better=Better.HIGHER)
    ratio = 100 * rate / ((before + after) / 2)
    yield Figure("operator / bare client", ratio, "%", LEAST_RATIO, Better.HIGHER, gated=True)
    yield Figure("from the start of the process to its first write", begun - plane.operator.started, "s")
    yield Figure("processor time, with the start", 1000 * cpu / len(seen), "ms/job")
    total = sum(requests.values())
    yield Figure("requests up to the child Job", total / len(seen), "/job", gated=True, more=dict(requests))
    yield Figure("of them writes", audit.writes(requests) / len(seen), "/job", gated=True)
    if not complete:
        raise TimeoutError(f"The figures are for {len(seen)} of {jobs} jobs. The others have no child Job yet.")


async def _bare(plane: Plane, template: Original, jobs: int) -> float:
    """Returns the jobs per second of the client whose requests are the writes of the operator and no others."""
    created = await _create(plane, template, jobs)

    async def write(job: Object) -> None:
        await copies.write_as_operator(plane.as_operator, template, job)

    rate = jobs / await for_each("bare client", "jobs", created, write)
    await for_each("hiding these jobs", "jobs", created, lambda job: copies.hide(plane.admin, job))
    return rate


async def _create(plane: Plane, template: Original, jobs: int) -> list[Object]:
    """Creates FineTuneJobs in a new namespace."""
    namespace = await plane.namespace()
    await copies.prepare(plane.admin, template, namespace)
    created: list[Object] = []

    async def create(number: int) -> None:
        created.append(await copies.copy_job(plane.admin, template, namespace, f"job-{number:05}"))

    await for_each("creating FineTuneJobs", "jobs", range(1, jobs + 1), create)
    return created
