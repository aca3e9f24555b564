"""Keeps the watches of kopf up: each run of kopf that ends is followed by the next one.

kopf ends when one of its watches fails, or hangs while it tries. Meanwhile the store and the workers go on.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from finetune_operator.process import metrics
from finetune_operator.process.kopf_run import PAUSES_SECONDS, KopfRun
from finetune_operator.store.store import KINDS, Store

STEADY_SECONDS = 5.0
"""After a run of kopf that lasted so long, the pauses start over."""
DOWN_SECONDS = 600.0
"""How long the watches may be down before the process counts as unhealthy."""
UNSEEN_SECONDS = 120.0
"""How long a watch may take to show a write of this operator. kopf gives a silent watch up after 70 s."""

logger = logging.getLogger(__name__)


class Watches:
    """The watch streams of the named namespaces, or of all. They are started again whenever they fail."""

    name = "the watches"

    def __init__(
        self, store: Store, namespaces: tuple[str, ...] = (), listed: Callable[[], None] = lambda: None
    ) -> None:
        """`listed` is called for each object that is listed, which happens when a watch starts anew."""
        self._store, self._namespaces, self._listed = store, namespaces, listed
        self._run: KopfRun | None = None
        self._stopped = asyncio.Event()
        self._up = time.monotonic()
        """When all watches were last known to be up."""

    async def run(self, ending: Callable[[str], None]) -> None:
        """Watch until `stop`."""
        failures = 0
        while not self._stopped.is_set():
            begun = time.monotonic()
            self._run = KopfRun(self._store, self._namespaces, self._listed)
            self._run.start()
            reason = await self._end_of(self._run)
            if self._stopped.is_set():
                return
            failures = 0 if time.monotonic() - begun > STEADY_SECONDS else failures
            pause = PAUSES_SECONDS[min(failures, len(PAUSES_SECONDS) - 1)]
            failures += 1
            metrics.RESTARTS.inc()
            logger.warning("The watches failed: %s. They start again in %.1f s.", reason, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause)

    def stop(self) -> None:
        self._stopped.set()
        if self._run is not None:
            self._run.stop("the operator stops")

    def restart(self, reason: str) -> None:
        """Start the watches anew, from any thread. They then list everything again."""
        if self._run is not None:
            self._run.stop(reason)

    def fault(self) -> str | None:
        """Report watches that have been down for long though they were started again and again."""
        if self.waits_for() is None:
            self._up = time.monotonic()
        down = time.monotonic() - self._up
        return f"the watches have been down for {down:.0f} s" if down > DOWN_SECONDS else None

    def waits_for(self) -> str | None:
        missing = self._run.missing if self._run is not None else sorted(KINDS)
        return f"The watch of {', '.join(missing)} has not started yet." if missing else None

    async def _end_of(self, run: KopfRun) -> str:
        """Wait until this run of kopf has ended, or must be left behind. Return why."""
        while True:
            if self._store.longest_unseen() > UNSEEN_SECONDS:
                self._store.forget_unseen()
                run.stop(f"they have not shown a write of this operator for {UNSEEN_SECONDS:.0f} s")
            if (reason := run.outcome()) is not None:
                return reason
            await asyncio.sleep(0.1)
