"""The one place where tests of a cluster wait: for a condition, with a deadline, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_SECONDS = 60.0
_PAUSE_SECONDS = 0.03


def wait_for(
    what: str, read: Callable[[], T], until: Callable[[T], object] = bool, timeout: float = TIMEOUT_SECONDS
) -> T:
    """The first value `read` gives for which `until` holds. Raises AssertionError with `what` and the last value after
    `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not until(value := read()):
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {what}; last seen: {value!r}"
        time.sleep(_PAUSE_SECONDS)
    return value
