"""A queue of keys for the workers: fair between namespaces, and without duplicates.

The namespaces take turns, so that one tenant's thousands of jobs do not delay another tenant's first job. Within a
namespace the order is first in, first out. Otherwise the semantics are those of client-go's workqueue: each key waits
at most once, only one worker has it, a key that is added during the work on it is worked on again, and the pauses
after failures grow.
"""

import asyncio
import time
from collections import OrderedDict, deque
from datetime import timedelta

from finetune_operator.observed.world import Key

FIRST_PAUSE = timedelta(milliseconds=200)
LONGEST_PAUSE = timedelta(minutes=1)


class _Turns:
    """Keys in the order in which workers get them: one key of each namespace in turn."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, deque[Key]] = OrderedDict()
        self._count = asyncio.Semaphore(0)

    def put(self, key: Key) -> None:
        self._keys.setdefault(key[0], deque()).append(key)
        self._count.release()

    async def get(self) -> Key:
        await self._count.acquire()
        namespace, keys = self._keys.popitem(last=False)
        key = keys.popleft()
        if keys:
            self._keys[namespace] = keys  # at the end of the line
        return key


class WorkQueue:
    """Work queue for use in a single event loop."""

    def __init__(self) -> None:
        self._ready = _Turns()
        self._waiting: dict[Key, float] = {}  # in _ready, or to be put there once its worker is done; since when
        self._working: dict[Key, float] = {}  # since when, in seconds of time.monotonic
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._moved = time.monotonic()
        """When a worker last took a key, or the queue was last empty."""

    def add(self, key: Key) -> None:
        """Add `key`, for the next free worker."""
        self._forget_timer(key)
        if key in self._waiting:
            return
        if not self._waiting:
            self._moved = time.monotonic()
        self._waiting[key] = time.monotonic()
        if key not in self._working:
            self._ready.put(key)

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
        del self._waiting[key]
        self._moved = time.monotonic()
        self._working[key] = time.monotonic()
        return key

    def done(self, key: Key) -> None:
        """Report that the worker has finished `key`."""
        self._failures.pop(key, None)
        self._release(key)

    def failed(self, key: Key, at_least: timedelta = timedelta(0)) -> timedelta:
        """Report that the work on `key` failed. Return the pause after which the key is added again."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        pause: timedelta = max(min(FIRST_PAUSE * (1 << min(count, 16)), LONGEST_PAUSE), at_least)
        self._release(key)
        if key not in self._waiting:
            self.add_after(key, pause)
        return pause

    def depth(self) -> int:
        """Return the number of keys that wait for a worker."""
        return len(self._waiting)

    def longest_wait(self) -> timedelta:
        """Return for how long the key that was added first has waited for a worker."""
        since = next(iter(list(self._waiting.values())), None)  # also from another thread
        return timedelta(seconds=time.monotonic() - since) if since is not None else timedelta()

    def longest_standstill(self) -> timedelta:
        """Return for how long no worker has taken a key though keys wait. A long queue that moves does not count."""
        return timedelta(seconds=time.monotonic() - self._moved) if self._waiting else timedelta()

    def longest_work(self) -> tuple[Key | None, timedelta]:
        """Return the key with the longest current work and its duration; None if no worker is busy."""
        key = min(self._working, key=self._working.__getitem__, default=None)
        return key, timedelta(seconds=time.monotonic() - self._working[key]) if key else timedelta()

    def _release(self, key: Key) -> None:
        self._working.pop(key, None)
        if key in self._waiting:
            self._ready.put(key)

    def _forget_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
