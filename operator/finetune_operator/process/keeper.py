"""Keeps the store in step with the cluster: it gates the first decision, and repairs now and then."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable
from datetime import timedelta

from finetune_operator.cluster.api import Api
from finetune_operator.cluster.repair import Survey, deleted, fetch, missing, survey
from finetune_operator.process.metrics import DRIFT
from finetune_operator.store.store import Store

REPAIR = timedelta(minutes=10)
ASK_AGAIN = timedelta(seconds=5)
"""Pause after a survey that failed."""
LAG = timedelta(seconds=10)
"""How long a watch may take to show what a list shows already."""
SETTLE = timedelta(seconds=2)
"""From a watch's new list to the repair that follows it."""
PROGRESS, STALLED = timedelta(seconds=0.2), timedelta(seconds=3)
"""Interval of looks at the watches' first lists, and after how long without progress the cluster is surveyed again: an
object may have been deleted meanwhile."""

logger = logging.getLogger(__name__)


class Keeper:
    """`restart_watches` is called with a sentence when the watches have missed objects."""

    def __init__(
        self, api: Api, store: Store, namespaces: tuple[str, ...], restart_watches: Callable[[str], None]
    ) -> None:
        self._api, self._store, self._namespaces = api, store, namespaces
        self._restart_watches = restart_watches
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = asyncio.Event()
        self.waits_for: str | None = "The operator has not listed the cluster yet."

    def listed(self) -> None:
        """Note, from any thread, that a watch has listed its objects anew: it does not report what was deleted."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._is_due.set)

    async def fill(self) -> None:
        """Return once the store contains everything that existed at the start."""
        left = -1
        while left != 0:
            found = await self._survey()
            left = await self._shown(found)
        gc.collect()
        gc.freeze()  # otherwise each full search for garbage stops all threads for as long as it goes over the store
        logger.info("The operator has read the cluster: %s.", self._sizes())
        self.waits_for = None

    async def _shown(self, found: Survey) -> int:
        """Wait until the watches have shown all objects of a survey, or show no more of them. Return what is left."""
        loop = asyncio.get_running_loop()
        total, since = len(found.found), loop.time()
        while found.found and loop.time() - since < STALLED.total_seconds():
            left = {ref.uid: ref for ref in missing(self._store, found)}  # what was shown once is not looked at again
            since = loop.time() if len(left) < len(found.found) else since
            found = found._replace(found=left)
            self.waits_for = f"The operator has read {total - len(left)} of {total} objects."
            await asyncio.sleep(PROGRESS.total_seconds() if left else 0)
        return len(found.found)

    async def keep(self) -> None:
        """Repair the store every few minutes, and soon after a watch has listed its objects anew."""
        self._loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_due.wait(), REPAIR.total_seconds())
                await asyncio.sleep(SETTLE.total_seconds())
            self._is_due.clear()
            await self.repair()

    async def repair(self) -> None:
        """Compare the store with the cluster once. Differences are repaired, counted and logged."""
        found = await self._survey()
        gone = list(deleted(self._store, found))
        for kind, uid in gone:
            self._store.remove(kind, uid)
            DRIFT.labels(kind, "deleted").inc()
        if any(missing(self._store, found)):
            await asyncio.sleep(LAG.total_seconds())
        missed = list(missing(self._store, found))
        for ref in missed:
            await asyncio.to_thread(fetch, self._api, self._store, ref)
            DRIFT.labels(ref.kind, "missed").inc()
        if gone or missed:
            logger.warning("The watches missed %d deletions and %d changes. They are repaired.", len(gone), len(missed))
        if missed:
            self._restart_watches(f"they missed {len(missed)} changes")

    async def _survey(self) -> Survey:
        while True:
            try:
                return await asyncio.to_thread(survey, self._api, self._namespaces)
            except Exception as error:
                logger.warning("The cluster cannot be listed: %s", error)
                await asyncio.sleep(ASK_AGAIN.total_seconds())

    def _sizes(self) -> str:
        return ", ".join(f"{count} {kind}s" for kind, count in self._store.sizes().items())
