"""How many requests the operator sends in the whole life of a job, from its creation to Complete."""

from collections import Counter
from collections.abc import AsyncIterator

from benchmarks.operator import audit, node
from benchmarks.operator.figures import Figure
from benchmarks.operator.node import Reached
from benchmarks.operator.plane import Plane

LIVES = 3
MOST_REQUESTS = 15


async def life(plane: Plane, lives: int = LIVES) -> AsyncIterator[Figure]:
    """Jobs in one namespace, one after another. The first one, which also prepares the namespace, is counted apart."""
    plane.operator.start()
    await plane.operator.steady()
    namespace = await plane.namespace()
    counts, cpu = [], plane.operator.cpu_seconds()
    async with node.ready(plane.admin):
        for number in range(1 + lives):
            plane.requests.restart()
            job = await plane.job(namespace, f"job-{number}")
            await node.live(plane.admin, job, plane.quiet, Reached.COMPLETE)
            counts.append(plane.requests.requests())
    used = plane.operator.cpu_seconds() - cpu
    first, later = counts[0], sum(counts[1:], Counter[str]())
    yield Figure("requests in the first life in a namespace", first.total(), "requests", more=dict(first))
    mean = {request: sent / lives for request, sent in sorted(later.items())}
    yield Figure("requests in a later life", later.total() / lives, "requests", MOST_REQUESTS, gated=True, more=mean)
    yield Figure("of them writes", audit.writes(later) / lives, "requests", gated=True)
    for request, share in mean.items():
        yield Figure(f"  {request}", share, "requests")
    yield Figure("processor time in a life", 1000 * used / (1 + lives), "ms")
