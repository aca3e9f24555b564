"""A limit of requests per second."""

import time
from collections.abc import Callable
from threading import Lock


class Bucket:
    """A token bucket, as client-go's `qps` and `burst`: so many requests a second on average, so many at once."""

    def __init__(self, qps: float, burst: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self._qps, self._burst, self._sleep = qps, burst, sleep
        self._tokens, self._at = float(burst), time.monotonic()
        self._lock = Lock()

    def take(self) -> None:
        """Wait until one more request may be sent."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._qps) - 1
            self._at = now
            wait = -self._tokens / self._qps
        if wait > 0:
            self._sleep(wait)
