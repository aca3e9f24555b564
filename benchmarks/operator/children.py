"""Sees when each FineTuneJob gets its first child Job, with a watch."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from benchmarks.operator.client import ALL_BATCH_JOBS, Client
from finetune_api import names
from finetune_trainer.pod.progress import Progress


class Children:
    """The time of the first child Job by the uid of its FineTuneJob, in seconds of time.monotonic."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    async def wait_for(self, uids: Collection[str], patience: float) -> bool:
        """Waits until each of these has a child Job. Returns False after `patience` seconds."""
        progress, done = Progress("  child Jobs", "jobs", len(uids)), 0
        deadline = time.monotonic() + patience
        while (count := sum(uid in self.seen for uid in uids)) < len(uids):
            if time.monotonic() > deadline:
                return False
            progress.advance(count - done)
            done = count
            await asyncio.sleep(0.2)
        return True


@asynccontextmanager
async def watched(admin: Client) -> AsyncIterator[Children]:
    """Watches from now on. If the API server ends the watch, the block is cancelled."""
    children = Children()
    async with asyncio.TaskGroup() as tasks:
        version = (await admin.get(ALL_BATCH_JOBS, limit="1"))["metadata"]["resourceVersion"]
        task = tasks.create_task(_watch(admin, children, version))
        try:
            yield children
        finally:
            task.cancel()


async def _watch(admin: Client, children: Children, version: str) -> None:
    query = {"labelSelector": names.LABEL_JOB_UID, "resourceVersion": version, "timeoutSeconds": "7200"}
    async for event in admin.watch(ALL_BATCH_JOBS, **query):
        if event["type"] == "ERROR":
            break
        children.seen.setdefault(event["object"]["metadata"]["labels"][names.LABEL_JOB_UID], time.monotonic())
    raise ConnectionError("The API server ended the benchmark's watch of Jobs.")
