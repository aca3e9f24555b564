"""Fills the control plane with jobs that the operator has already seen."""

from benchmarks.operator import copies, node
from benchmarks.operator.client import Object, for_each
from benchmarks.operator.copies import Original
from benchmarks.operator.node import Reached
from benchmarks.operator.plane import Plane

A_TENANT = 500
"""Jobs in one namespace."""
ORIGINAL = "exemplar-00000"
"""Name of the job that is copied. It occurs in no other text of the job, and is as long as the names of the copies."""


async def original(plane: Plane, until: Reached) -> Original:
    """Starts the operator, takes a job to this point of its life, and stops the operator. Returns the job."""
    plane.operator.start()
    await plane.operator.ready()
    try:
        async with node.ready(plane.admin):
            job = await plane.job(await plane.namespace(), ORIGINAL)
            await node.live(plane.admin, job, plane.quiet, until)
            return await copies.read(plane.admin, job["metadata"]["namespace"], job["metadata"]["name"])
    finally:
        plane.operator.stop()


async def populate(plane: Plane, template: Original, jobs: int) -> list[Object]:
    """Creates copies with their children, `A_TENANT` in each namespace. Returns their FineTuneJobs."""
    namespaces = [await plane.namespace() for _ in range(0, jobs, A_TENANT)]
    for namespace in namespaces:
        await copies.prepare(plane.admin, template, namespace)
    made: list[Object] = []

    async def copy(number: int) -> None:
        namespace = namespaces[number // A_TENANT]
        made.append(await copies.copy_whole(plane.admin, template, namespace, f"resident-{number:05}"))

    await for_each("populating", "jobs", range(jobs), copy)
    return made
