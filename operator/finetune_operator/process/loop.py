"""Workers: take a key, observe, reconcile, apply. And a slow resync, so that a lost event is only a delay."""

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
"""A round for one job makes a dozen requests. Each ends within two minutes, with the client's own retries."""

logger = logging.getLogger(__name__)


class Workers:
    """The workers and the resync. Every job is looked at when its key is added and every few minutes."""

    name = "the worker pool"

    def __init__(self, api: Api) -> None:
        self._api, self._queue = api, WorkQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None

    def add(self, key: Key) -> None:
        """Ask for `key` to be worked on, from any thread. Before the workers run and when they have ended it is lost:
        the first resync finds it."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.add, key)

    async def run(self, ending: Callable[[str], None]) -> None:
        """Work until `stop`. An error outside a single key's work ends the process: a restart is the cure."""
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        async with asyncio.TaskGroup() as tasks:
            for name, work in [("resync", _resync), *((f"worker {i}", _work) for i in range(WORKERS))]:
                task = tasks.create_task(work(self._api, self._queue), name=name)
                task.add_done_callback(lambda task: ending(ended(task)))

    def stop(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def fault(self) -> str | None:
        """A worker that has not finished with its key in `LONGEST_WORK`: no call to the API server takes so long."""
        key, since = self._queue.longest_work()
        return f"a worker has been stuck on {'/'.join(key)} for {since}" if key and since > LONGEST_WORK else None

    def waits_for(self) -> str | None:
        return None


async def _work(api: Api, queue: WorkQueue) -> None:
    while True:
        key = await queue.get()
        try:
            again = await asyncio.to_thread(_once, api, key)
        except NamespaceGoneError as error:
            # The job goes with its namespace. Until then an event or the resync brings it back, but no pause does.
            logger.info("%s/%s: nothing more is created for this job: %s", *key, error.message)
            again = None
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
