"""How long a new FineTuneJob waits for its child Job, on a calm cluster and behind another tenant's jobs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from benchmarks.operator.children import Children, watched
from benchmarks.operator.client import for_each
from benchmarks.operator.figures import Figure, percentile
from benchmarks.operator.plane import Plane
from finetune_trainer.pod.progress import Progress

RATE = 20
"""New jobs per second."""
SECONDS = 30
MOST_P99_SECONDS = 1
LONE_RATE = 4
MOST_LONE = 60
MOST_LONE_P99_SECONDS = 2
TIMEOUT_SECONDS = 300


@dataclass
class Arrivals:
    """Jobs that are created at a steady rate."""

    created: dict[str, float] = field(default_factory=dict)
    """When the creation of each job was sent, by uid, in seconds of time.monotonic."""
    late: float = 0
    """Longest delay of a creation against its plan, in seconds. If it is long, the rate was not reached."""

    async def create(self, plane: Plane, namespace: str, rate: float, most: int, ended: Callable[[], bool]) -> None:
        """Creates up to `most` jobs, `rate` per second, until `ended`."""
        begun, progress = time.monotonic(), Progress("  new jobs", "jobs", most)

        async def one(number: int) -> None:
            sent = time.monotonic()
            job = await plane.job(namespace, f"new-{number:05}")
            self.created[job["metadata"]["uid"]] = sent
            progress.advance()

        async with asyncio.TaskGroup() as tasks:
            for number in range(most):
                await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
                if ended():
                    break
                self.late = max(self.late, time.monotonic() - begun - number / rate)
                tasks.create_task(one(number))

    def latencies(self, children: Children) -> list[float]:
        """Returns the seconds from creation to child Job. A job without a child Job counts as `TIMEOUT_SECONDS`."""
        return [
            children.seen[uid] - sent if uid in children.seen else TIMEOUT_SECONDS for uid, sent in self.created.items()
        ]


async def latency(plane: Plane, residents: int, seconds: float = SECONDS) -> AsyncIterator[Figure]:
    """New jobs at a steady rate, while the operator runs and is idle. `residents` jobs are there already."""
    await plane.operator.steady()
    arrivals, most = Arrivals(), int(RATE * seconds)
    async with watched(plane.admin) as children:
        cpu, begun = plane.operator.cpu_seconds(), time.monotonic()
        await arrivals.create(plane, await plane.namespace(), RATE, most, lambda: False)
        await children.wait_for(arrivals.created.keys(), TIMEOUT_SECONDS)
        share = 100 * (plane.operator.cpu_seconds() - cpu) / (time.monotonic() - begun)
    found, beside = arrivals.latencies(children), f"{residents:,} residents"
    more = {"jobs": len(found), "latest creation": arrivals.late}
    yield Figure(f"create to child Job at {RATE}/s, {beside}, median", percentile(found, 50), "s", more=more)
    yield Figure(f"create to child Job at {RATE}/s, {beside}, p99", percentile(found, 99), "s", MOST_P99_SECONDS)
    yield Figure(f"processor meanwhile, {beside}", share, "% of a core")


async def alone(plane: Plane) -> AsyncIterator[Figure]:
    """Case: latency without residents."""
    plane.operator.start()
    async for figure in latency(plane, 0):
        yield figure


async def neighbour(plane: Plane, jobs: int) -> AsyncIterator[Figure]:
    """Case: another tenant creates `jobs` jobs as fast as it can. A lone tenant creates jobs while they wait."""
    plane.operator.start()
    await plane.operator.steady()
    many, lone = await plane.namespace("many"), await plane.namespace("lone")
    theirs: set[str] = set()

    async def create(number: int) -> None:
        theirs.add((await plane.job(many, f"job-{number:05}"))["metadata"]["uid"])

    async with watched(plane.admin) as children:
        await for_each("the other tenant's jobs", "jobs", range(jobs), create)
        arrivals = Arrivals()
        waiting = len(theirs - children.seen.keys())
        await arrivals.create(plane, lone, LONE_RATE, MOST_LONE, lambda: theirs <= children.seen.keys())
        await children.wait_for(arrivals.created.keys(), TIMEOUT_SECONDS)
    yield Figure("the other tenant's jobs that waited at the first try", waiting, "jobs")
    if not arrivals.created:
        return
    found = arrivals.latencies(children)
    yield Figure("tries", len(found), "jobs")
    yield Figure("lone tenant, create to child Job, median", percentile(found, 50), "s")
    yield Figure("lone tenant, create to child Job, p99", percentile(found, 99), "s", MOST_LONE_P99_SECONDS)
