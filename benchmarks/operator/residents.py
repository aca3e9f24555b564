"""What jobs cost that are already there: a restart, reports of progress, new jobs beside them, and ended jobs."""

import asyncio
import time
from collections.abc import AsyncIterator

from benchmarks.operator import audit, node
from benchmarks.operator.client import Object
from benchmarks.operator.figures import Figure
from benchmarks.operator.latency import latency
from benchmarks.operator.node import Reached
from benchmarks.operator.plane import Plane
from benchmarks.operator.population import original, populate
from finetune_api.status.job import attempt_manager
from finetune_trainer.pod.progress import Progress

STEADY_SECONDS, MOST_MIB = 60, 256
STEADY_TIMEOUT_SECONDS = 560
MOST_TRAINERS, REPORT_SECONDS, ROUNDS = 1000, 10, 4
MOST_REPORTING_SHARE, MOST_IDLE_SHARE = 20, 1
"""Percent of a core."""
IDLE_SECONDS = 40


async def residents(plane: Plane, jobs: int) -> AsyncIterator[Figure]:
    """Case: a restart with `jobs` jobs that train, their reports of progress, and new jobs beside them."""
    template = await original(plane, Reached.TRAINING)
    async with node.ready(plane.admin):
        made = await populate(plane, template, jobs)
        for part in (restart(plane), _reporting(plane, made[:MOST_TRAINERS]), latency(plane, jobs)):
            async for figure in part:
                yield figure


async def ended(plane: Plane, jobs: int) -> AsyncIterator[Figure]:
    """Case: `jobs` jobs have ended, and nothing happens."""
    await populate(plane, await original(plane, Reached.COMPLETE), jobs)
    plane.operator.start()
    await plane.operator.steady(STEADY_TIMEOUT_SECONDS)
    plane.requests.restart()
    share = await _share(plane, IDLE_SECONDS)
    yield Figure("idle", share, "% of a core", MOST_IDLE_SHARE)
    yield Figure("requests while idle", plane.requests.requests().total() * 60 / IDLE_SECONDS, "/minute")
    yield Figure("memory", plane.operator.resident_mib(), "MiB", MOST_MIB)


async def restart(plane: Plane) -> AsyncIterator[Figure]:
    plane.requests.restart()
    plane.operator.start()
    await plane.operator.ready()
    yield Figure("restart, until ready", time.monotonic() - plane.operator.started, "s")
    steady = await plane.operator.steady(STEADY_TIMEOUT_SECONDS)
    yield Figure("restart, until steady", steady - plane.operator.started, "s", STEADY_SECONDS)
    requests = plane.requests.requests()
    wrote = audit.writes(requests)
    yield Figure("restart, requests", requests.total(), "requests", more=dict(requests))
    yield Figure("restart, writes", wrote, "requests", 0, gated=True)
    yield Figure("restart, peak memory", plane.operator.resident_mib(peak=True), "MiB", MOST_MIB, gated=True)
    yield Figure("restart, steady memory", plane.operator.resident_mib(), "MiB")


async def _reporting(plane: Plane, trainers: list[Object]) -> AsyncIterator[Figure]:
    """Each trainer writes its progress every `REPORT_SECONDS`."""
    plane.requests.restart()
    begun, cpu = time.monotonic(), plane.operator.cpu_seconds()
    reports = await _report(plane, trainers)
    elapsed = time.monotonic() - begun
    share = 100 * (plane.operator.cpu_seconds() - cpu) / elapsed
    requests = plane.requests.requests()
    what = f"{len(trainers):,} trainers report every {REPORT_SECONDS} s"
    yield Figure(f"{what}, processor", share, "% of a core", MOST_REPORTING_SHARE)
    yield Figure(f"{what}, writes", audit.writes(requests), "requests", 0, gated=True)
    yield Figure(f"{what}, requests", requests.total() / reports, "/report", gated=True, more=dict(requests))
    yield Figure("reports", reports / elapsed, "/s")


async def _report(plane: Plane, trainers: list[Object]) -> int:
    """Writes `ROUNDS` reports for each trainer, evenly over the time. Returns how many were written."""
    begun, pause = time.monotonic(), REPORT_SECONDS / len(trainers)
    progress = Progress("  reports", "reports", ROUNDS * len(trainers))
    async with asyncio.TaskGroup() as tasks:
        for number in range(ROUNDS * len(trainers)):
            await asyncio.sleep(max(0.0, begun + number * pause - time.monotonic()))
            round, trainer = divmod(number, len(trainers))
            metadata = trainers[trainer]["metadata"]
            said = {"training": node.progress(round + 1)}
            where = (metadata["namespace"], metadata["name"])
            tasks.create_task(node.report(plane.admin, *where, attempt_manager(1), said))
            progress.advance()
    return ROUNDS * len(trainers)


async def _share(plane: Plane, seconds: float) -> float:
    """Returns the percent of a core that the operator uses in this time."""
    begun, cpu = time.monotonic(), plane.operator.cpu_seconds()
    await asyncio.sleep(seconds)
    return 100 * (plane.operator.cpu_seconds() - cpu) / (time.monotonic() - begun)
