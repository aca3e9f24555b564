"""A queue of keys for the workers. Each key waits at most once, only one worker has it, and pauses grow after failures.

The semantics are those of client-go's workqueue: a key that is added during the work on it is worked on again.
"""

import asyncio
import time
from datetime import timedelta

from finetune_operator.observed.world import Key

FIRST_PAUSE = timedelta(milliseconds=200)
LONGEST_PAUSE = timedelta(minutes=1)


class WorkQueue:
    """Work queue for use in a single event loop."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()  # in _ready, or to be put there once its worker is done
        self._working: dict[Key, float] = {}  # since when, in seconds of time.monotonic
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def add(self, key: Key) -> None:
        """Add `key`, for the next free worker."""
        self._forget_timer(key)
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._working:
            self._ready.put_nowait(key)

    def add_after(self, key: Key, delay: timedelta) -> None:
        """Add `key` after a delay. The earlier of this and an existing timer counts."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay.total_seconds()
        present = self._timers.get(key)
        if present is not None and present.when() <= due:
            return
        self._forget_timer(key)
        self._timers[key] = loop.call_at(due, self.add, key)

    async def get(self) -> Key:
        """Return the next key. The caller must then call `done` or `failed`."""
        key = await self._ready.get()
        self._waiting.discard(key)
        self._working[key] = time.monotonic()
        return key

    def done(self, key: Key) -> None:
        """Report that the worker has finished `key`."""
        self._failures.pop(key, None)
        self._release(key)

    def failed(self, key: Key) -> timedelta:
        """Report that the work on `key` failed. Return the pause after which the key is added again."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        pause: timedelta = min(FIRST_PAUSE * (1 << min(count, 16)), LONGEST_PAUSE)
        self._release(key)
        if key not in self._waiting:
            self.add_after(key, pause)
        return pause

    def longest_work(self) -> tuple[Key | None, timedelta]:
        """Return the key with the longest current work and its duration; None if no worker is busy."""
        key = min(self._working, key=self._working.__getitem__, default=None)
        return key, timedelta(seconds=time.monotonic() - self._working[key]) if key else timedelta()

    def _release(self, key: Key) -> None:
        self._working.pop(key, None)
        if key in self._waiting:
            self._ready.put_nowait(key)

    def _forget_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
