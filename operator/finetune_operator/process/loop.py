"""Workers that observe, reconcile and apply one job at a time."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from finetune_operator.cluster.accounts import Accounts
from finetune_operator.cluster.api import Api, ApiError, NamespaceGoneError
from finetune_operator.cluster.apply import OtherBundleError, OutdatedError, RefusedDeletionError, RefusedError, apply
from finetune_operator.cluster.bundles import having
from finetune_operator.cluster.observe import observe
from finetune_operator.cluster.workloads import Workloads
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile, refused
from finetune_operator.observed.world import Key, World
from finetune_operator.process import metrics
from finetune_operator.process.keeper import Keeper
from finetune_operator.process.queue import WorkQueue
from finetune_operator.process.supervise import ended
from finetune_operator.store.store import Store

LONGEST_WORK = timedelta(minutes=10)
"""Longest time for one round of one job: a dozen requests, each of at most two minutes with retries."""
LONGEST_STANDSTILL = timedelta(minutes=15)
"""Longest time without a worker that takes a key, though keys wait. With a low limit of requests the queue is long, but
it moves."""

logger = logging.getLogger(__name__)


class Workers:
    """`count` workers. They decide a job when its key is added, and first when `keeper` has filled the store."""

    name = "the worker pool"

    def __init__(self, api: Api, store: Store, keeper: Keeper, count: int, workloads: Workloads | None = None) -> None:
        """`workloads`: Kueue's, if the operator may read them."""
        self._api, self._store, self._keeper, self._count = api, store, keeper, count
        self._accounts, self._workloads = Accounts(api), workloads
        self.queue = WorkQueue()
        self._refused_deletions: dict[Key, str] = {}
        """What the API server said. No object of the cluster tells that a deletion was refused."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None

    def add(self, key: Key) -> None:
        """Add `key` to the queue, from any thread.

        A key that is added before the store is filled, or after the workers ended, is ignored: at the start the keys
        of all unfinished jobs are added."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.queue.add, key)

    async def run(self, ending: Callable[[str], None]) -> None:
        """Work until `stop`. An error outside the work on one key ends the process, and the kubelet restarts it."""
        loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        loop.set_default_executor(ThreadPoolExecutor(self._count + 1, thread_name_prefix="worker"))
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self._keep(tasks, ending), name="keeper")
            task.add_done_callback(lambda task: ending(ended(task)))

    def stop(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def fault(self) -> str | None:
        """Report a worker or a key that is stuck. No API call and no queue takes that long."""
        key, since = self.queue.longest_work()
        if key and since > LONGEST_WORK:
            return f"a worker has been working on {'/'.join(key)} for {since}, longer than {LONGEST_WORK}"
        still = self.queue.longest_standstill()
        if self._keeper.waits_for is None and still > LONGEST_STANDSTILL:
            return f"no worker has taken a job from the queue for {still}, longer than {LONGEST_STANDSTILL}"
        return None

    def waits_for(self) -> str | None:
        return self._keeper.waits_for

    async def _keep(self, tasks: asyncio.TaskGroup, ending: Callable[[str], None]) -> None:
        await self._keeper.fill()
        self._loop = asyncio.get_running_loop()
        for key in self._store.unsettled():
            self.queue.add(key)
        for i in range(self._count):
            task = tasks.create_task(self._work(), name=f"worker {i}")
            task.add_done_callback(lambda task: ending(ended(task)))
        await self._keeper.keep()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            begun = time.monotonic()
            try:
                again = await asyncio.to_thread(self._once, key)
            except OutdatedError:
                logger.debug("%s/%s: the job has changed meanwhile; deciding it again", *key)
                again = timedelta(0)
            except NamespaceGoneError as error:
                # The job is deleted with its namespace. Events still add its key, so no retry is needed.
                logger.info(
                    "%s/%s: the namespace is being deleted, so nothing is created for this job: %s", *key, error.message
                )
                again = None
            except Exception as error:
                self._failed(key, error)
                continue
            finally:
                metrics.RECONCILE_SECONDS.observe(time.monotonic() - begun)
            self.queue.done(key)
            if again is not None:
                self.queue.add_after(key, again)

    def _failed(self, key: Key, error: Exception) -> None:
        metrics.RECONCILE_ERRORS.inc()
        wish = (error.retry_after if isinstance(error, ApiError) else None) or 0
        pause = self.queue.failed(key, timedelta(seconds=wish))
        logger.warning("%s/%s: %s; trying again in %.1f s", *key, error, pause.total_seconds())
        logger.debug("Details of this error:", exc_info=error)

    def _once(self, key: Key) -> timedelta | None:
        """Observe, reconcile and apply one job. Return the delay until the next round, or None."""
        world = observe(self._api, self._store, self._accounts, key, self._workloads)
        if world is None:
            self._refused_deletions.pop(key, None)
            return None
        world = replace(world, refused_deletion=self._refused_deletions.get(key, ""))
        now = datetime.now(UTC).replace(microsecond=0)
        try:
            plan = self._carry_out(world, now)
        except RefusedDeletionError as refusal:
            self._refused_deletions[key] = str(refusal)
            if world.is_over or not refusal.is_told:
                apply(self._api, self._store, world, refused(world, str(refusal), now, "DeletionRefused"), now)
            raise
        except RefusedError as refusal:
            apply(self._api, self._store, world, refused(world, str(refusal), now), now)
            raise
        metrics.count_written(world, plan)
        for event in plan.events:
            logger.info("%s/%s: %s: %s", *key, event.reason, event.message)
        if self._refused_deletions.pop(key, None):
            return timedelta(0)  # to write the status without it
        # What was created can be another object than the one that was asked for: a webhook may have suspended it.
        return timedelta(0) if plan.create else plan.requeue_after

    def _carry_out(self, world: World, now: datetime) -> Plan:
        """Decide, and carry the plan out. Return it. A bundle that the plan did not know makes another plan."""
        plan = reconcile(world, now)
        try:
            apply(self._api, self._store, world, plan, now)
        except OtherBundleError as found:
            known = having(world, found.config_map)
            plan = reconcile(known, now)
            apply(self._api, self._store, known, plan, now)
        return plan
