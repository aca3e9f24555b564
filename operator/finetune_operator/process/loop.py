"""Workers that observe, reconcile and apply one job at a time, and a slow resync that makes up for lost events."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from finetune_api import names
from finetune_api.status.job import State
from finetune_operator.cluster.api import Api, ApiError, NamespaceGoneError
from finetune_operator.cluster.apply import RefusedError, apply
from finetune_operator.cluster.observe import observe
from finetune_operator.decisions.reconcile import reconcile, refused
from finetune_operator.observed.world import Key
from finetune_operator.process.queue import WorkQueue
from finetune_operator.process.supervise import ended

WORKERS = 4
RESYNC = timedelta(minutes=5)
LONGEST_WORK = timedelta(minutes=10)
"""Longest time for one round of one job: a dozen requests, each of at most two minutes with retries."""

logger = logging.getLogger(__name__)


class Workers:
    """The workers and the resync. Every job is reconciled when its key is added and every few minutes."""

    name = "the worker pool"

    def __init__(self, api: Api) -> None:
        self._api, self._queue = api, WorkQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None

    def add(self, key: Key) -> None:
        """Add `key` to the queue, from any thread.

        A key that is added before the workers run, or after they ended, is ignored: the first resync adds it."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.add, key)

    async def run(self, ending: Callable[[str], None]) -> None:
        """Work until `stop`. An error outside the work on one key ends the process, and the kubelet restarts it."""
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        async with asyncio.TaskGroup() as tasks:
            for name, work in [("resync", _resync), *((f"worker {i}", _work) for i in range(WORKERS))]:
                task = tasks.create_task(work(self._api, self._queue), name=name)
                task.add_done_callback(lambda task: ending(ended(task)))

    def stop(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def fault(self) -> str | None:
        """Report a worker that has worked on one key for more than `LONGEST_WORK`. No API call takes that long."""
        key, since = self._queue.longest_work()
        return (
            f"a worker has been working on {'/'.join(key)} for {since}, longer than {LONGEST_WORK}"
            if key and since > LONGEST_WORK
            else None
        )

    def waits_for(self) -> str | None:
        return None


async def _work(api: Api, queue: WorkQueue) -> None:
    while True:
        key = await queue.get()
        try:
            again = await asyncio.to_thread(_once, api, key)
        except NamespaceGoneError as error:
            # The job is deleted with its namespace. Events and the resync still add its key, so no retry is needed.
            logger.info(
                "%s/%s: the namespace is being deleted, so nothing is created for this job: %s", *key, error.message
            )
            again = None
        except Exception as error:
            pause = queue.failed(key)
            outdated = (
                isinstance(error, ApiError) and error.status == 409
            )  # a pod wrote the job meanwhile: observe it again
            logger.log(
                logging.DEBUG if outdated else logging.WARNING,
                "%s/%s: %s; trying again in %.1f s",
                *key,
                error,
                pause.total_seconds(),
            )
            logger.debug("Details of this error:", exc_info=True)
            continue
        queue.done(key)
        if again is not None:
            queue.add_after(key, again)


def _once(api: Api, key: Key) -> timedelta | None:
    """Observe, reconcile and apply one job. Return the delay until the next round, or None."""
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
    """Add the key of every unfinished job, at the start and then every RESYNC."""
    while True:
        try:
            jobs = await asyncio.to_thread(api.list, names.JOB_KIND)
        except Exception as error:
            logger.warning("Cannot list FineTuneJobs: %s", error)
            await asyncio.sleep(5)
            continue
        for job in jobs:
            if not has_ended(job.get("status", {})):
                queue.add((job["metadata"]["namespace"], job["metadata"]["name"]))
        await asyncio.sleep(RESYNC.total_seconds())


def has_ended(status: dict[str, object]) -> bool:
    """Whether the job has ended. Jobs that have ended are not read again."""
    return status.get("state") in (State.COMPLETE, State.FAILED)
