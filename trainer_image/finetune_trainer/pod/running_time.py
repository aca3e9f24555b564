"""A clock that stands still while its process is frozen, for example with its pod or its node."""

from time import monotonic


class RunningTime:
    """Seconds for which the process has run, by a clock that is asked again and again."""

    def __init__(self, most: float) -> None:
        """`most`: the longest time between two calls of a process that runs. A longer one counts as this time."""
        self._most, self._asked, self._seconds = most, monotonic(), 0.0

    def __call__(self) -> float:
        """Returns the seconds since the clock was made."""
        now = monotonic()
        self._seconds, self._asked = self._seconds + min(now - self._asked, self._most), now
        return self._seconds
