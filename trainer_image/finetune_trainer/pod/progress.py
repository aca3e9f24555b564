"""Prints the progress of long work to the pod's log."""

import time

from finetune_trainer.pod.liveness.heartbeat import beat

INTERVAL_SECONDS = 10.0
MEGABYTE = 1_000_000
"""A divisor for counts of bytes."""


class Progress:
    """Prints `what: done [of total] unit, elapsed` at most every ten seconds. Shorter work prints nothing.

    `divisor`: the counts of `advance` and `total` are divided by it to get the `unit`."""

    def __init__(self, what: str, unit: str, total: int | None = None, divisor: int = 1) -> None:
        self._what, self._unit, self._total, self._divisor = what, unit, total, divisor
        self._done = 0
        self._started = self._printed = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        """Adds `amount` to the work that is done. May be called from any thread; a printed count can then be slightly
        too low."""
        self._done += amount
        beat()
        now = time.monotonic()
        if now - self._printed >= INTERVAL_SECONDS:
            self._printed = now
            total = f" of {self._total // self._divisor:,}" if self._total else ""
            elapsed = now - self._started
            print(f"{self._what}: {self._done // self._divisor:,}{total} {self._unit}, {elapsed:.0f} s", flush=True)
