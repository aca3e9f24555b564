"""The one place where tests of a cluster wait: for a condition, with a deadline, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_SECONDS = 60.0
_PAUSE_SECONDS = (0.03, 0.2)
_SHARE = 20
"""Long waits look less often, because each look takes processor time from what is waited for. So a wait is at most a
twentieth, and at most a fifth of a second, longer than it must be."""


def wait_for(
    what: str, read: Callable[[], T], until: Callable[[T], object] = bool, timeout: float = TIMEOUT_SECONDS
) -> T:
    """The first value `read` gives for which `until` holds. Raises AssertionError with `what` and the last value after
    `timeout` seconds."""
    began, (shortest, longest) = time.monotonic(), _PAUSE_SECONDS
    while not until(value := read()):
        waited = time.monotonic() - began
        assert waited < timeout, f"waited {timeout:.0f} s for {what}; last seen: {value!r}"
        time.sleep(min(longest, max(shortest, waited / _SHARE)))
    return value
