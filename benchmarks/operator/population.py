"""Fills the control plane with jobs that the operator has already seen."""

from benchmarks.operator import copies, node
from benchmarks.operator.client import Object
from benchmarks.operator.clones import clone
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
    """Makes copies with their children, `A_TENANT` in each namespace. Returns their FineTuneJobs.

    Of each object only the metadata with namespace, name and uid is reliable."""
    namespaces = [await plane.namespace() for _ in range(0, jobs, A_TENANT)]
    for namespace in namespaces:
        await copies.prepare(plane.admin, template, namespace)
    first, *others = [(namespaces[number // A_TENANT], f"resident-{number:05}") for number in range(jobs)]
    copy = await copies.copy_whole(plane.admin, template, *first)
    seed = await copies.read(plane.admin, *first)
    return [copy, *await clone(plane.etcd, plane.admin, seed, others)]
