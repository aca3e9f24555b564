"""Clones a FineTuneJob with its children in etcd, below the API server.

10,000 jobs are 60,000 objects and 110,000 requests, which take an API server with two cores ten minutes. So only the
first copy goes through the API server. A clone has the same bytes in etcd: the same statuses and field managers. Only
names and uids differ. They have the same lengths, because most values are protobuf, which contains lengths."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

from benchmarks.operator.client import BATCH_JOBS, CONFIG_MAPS, JOBS, PODS, Client, Object, RefusedError
from benchmarks.operator.copies import Original
from benchmarks.operator.etcd import MOST_PUTS, Etcd
from finetune_api import names
from finetune_trainer.pod.progress import Progress

SEEN_SECONDS = 120
"""How long the API server may take to read the clones from etcd."""
_FOLDERS = {JOBS: f"{names.GROUP}/{names.JOBS}", CONFIG_MAPS: "configmaps", BATCH_JOBS: "jobs", PODS: "pods"}
"""Where etcd has a kind, by its path in the API."""
Name = tuple[str, str]
"""Namespace and name of a FineTuneJob."""


async def clone(etcd: Etcd, admin: Client, seed: Original, targets: Sequence[Name]) -> list[Object]:
    """Writes a clone of `seed` for each target, and waits until the API server has them all.

    Returns the FineTuneJobs with namespace, name and uid only. Raises ValueError if a name is not as long as the
    seed's."""
    if not targets:
        return []
    progress = Progress("  cloning", "objects", len(targets) * len(_objects(seed)))
    pairs = [_pairs(seed, target) for target in targets]
    for key in _keys(seed):  # one after another, so that the API server reads the last clone last
        value = await etcd.get(key)
        for start in range(0, len(pairs), MOST_PUTS):
            part = pairs[start : start + MOST_PUTS]
            await etcd.put({renamed(key.encode(), pair).decode(): renamed(value, pair) for pair in part})
            progress.advance(len(part))
    for path in _paths(seed):
        await _seen(admin, renamed(path.encode(), pairs[-1]).decode())
    uid = seed.job["metadata"]["uid"].encode()
    clones = zip(targets, pairs, strict=True)
    return [{"metadata": {"namespace": ns, "name": name, "uid": p[uid].decode()}} for (ns, name), p in clones]


def renamed(value: bytes, pairs: dict[bytes, bytes]) -> bytes:
    """Returns the value with these texts replaced, in this order."""
    for old, new in pairs.items():
        value = value.replace(old, new)
    return value


def _pairs(seed: Original, target: Name) -> dict[bytes, bytes]:
    """Returns the texts of a clone by those of the seed, in the order in which they must be replaced."""
    metadata = seed.job["metadata"]
    uids = {body["metadata"]["uid"]: str(uuid4()) for _, body in _objects(seed)}
    namespace, name = target
    prefixes = {names.child_prefix(metadata["name"], metadata["uid"]): names.child_prefix(name, uids[metadata["uid"]])}
    pairs = uids | prefixes | {metadata["name"]: name, metadata["namespace"]: namespace}
    if different := [old for old, new in pairs.items() if len(old) != len(new)]:
        raise ValueError(f"A clone must have names as long as {different}.")
    return {old.encode(): new.encode() for old, new in pairs.items()}


def _objects(job: Original) -> list[tuple[str, Object]]:
    """Returns the objects of a job, owners first, because the garbage collector looks up unknown owners.

    Each comes with the path of its kind in the API."""
    children = {CONFIG_MAPS: job.config_maps, BATCH_JOBS: job.batch_jobs, PODS: job.pods}
    return [(JOBS, job.job), *((path, body) for path, bodies in children.items() for body in bodies)]


def _keys(job: Original) -> list[str]:
    """Returns the keys of a job's objects in etcd."""
    return [
        f"/registry/{_FOLDERS[path]}/{body['metadata']['namespace']}/{body['metadata']['name']}"
        for path, body in _objects(job)
    ]


def _paths(job: Original) -> list[str]:
    """Returns the paths of a job's objects in the API."""
    found = [(path, body["metadata"]) for path, body in _objects(job)]
    return [f"{path.format(metadata['namespace'])}/{metadata['name']}" for path, metadata in found]


async def _seen(admin: Client, path: str) -> None:
    """Waits until the API server has read this object from etcd into its watch cache."""
    async with asyncio.timeout(SEEN_SECONDS):
        while True:
            try:
                await admin.get(path, resourceVersion="0")
                return
            except RefusedError as error:
                if error.status != 404:
                    raise
            await asyncio.sleep(0.2)
