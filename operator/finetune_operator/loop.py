"""Workers: take a key, observe, reconcile, apply. And a slow resync, so that a lost event is only a delay."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from finetune_api import names
from finetune_api.status import State
from finetune_operator.api import Api, ApiError
from finetune_operator.apply import RefusedError, apply
from finetune_operator.observe import observe
from finetune_operator.queue import Key, WorkQueue
from finetune_operator.reconcile import reconcile, refused

WORKERS = 4
RESYNC = timedelta(minutes=5)

logger = logging.getLogger(__name__)


async def run(api: Api, queue: WorkQueue) -> None:
    """Work until cancelled. An error outside a single key's work ends the process: a restart is the cure."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_resync(api, queue))
        for _ in range(WORKERS):
            tasks.create_task(_work(api, queue))


async def _work(api: Api, queue: WorkQueue) -> None:
    while True:
        key = await queue.get()
        try:
            again = await asyncio.to_thread(_once, api, key)
        except Exception as error:
            pause = queue.failed(key)
            outdated = isinstance(error, ApiError) and error.status == 409  # a pod wrote meanwhile: look again
            logger.log(
                logging.DEBUG if outdated else logging.WARNING,
                "%s/%s: %s; again in %.1f s",
                *key,
                error,
                pause.total_seconds(),
            )
            logger.debug("that was", exc_info=True)
            continue
        queue.done(key)
        if again is not None:
            queue.add_after(key, again)


def _once(api: Api, key: Key) -> timedelta | None:
    """One round for one job; returns when to look again, if that is known."""
    world = observe(api, key)
    if world is None:
        return None
    now = datetime.now(UTC).replace(microsecond=0)
    plan = reconcile(world, now)
    try:
        apply(api, world, plan, now)
    except RefusedError as refusal:
        apply(api, world, refused(world, str(refusal), now), now)
        raise
    for event in plan.events:
        logger.info("%s/%s: %s: %s", *key, event.reason, event.message)
    return plan.requeue_after


async def _resync(api: Api, queue: WorkQueue) -> None:
    """First of all, and every few minutes: every job that has not ended."""
    while True:
        try:
            jobs = await asyncio.to_thread(api.list, names.JOB_KIND)
        except Exception as error:
            logger.warning("cannot list FineTuneJobs: %s", error)
            await asyncio.sleep(5)
            continue
        for job in jobs:
            if not has_ended(job.get("status", {})):
                queue.add((job["metadata"]["namespace"], job["metadata"]["name"]))
        await asyncio.sleep(RESYNC.total_seconds())


def has_ended(status: dict[str, object]) -> bool:
    """Whether nothing can happen to this job any more: such a job costs no read."""
    return status.get("state") in (State.COMPLETE, State.FAILED)
