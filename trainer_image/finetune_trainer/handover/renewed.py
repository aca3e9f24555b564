"""When data is old enough to be written again, so that no lifecycle rule deletes it while a job needs it."""

from datetime import datetime, timedelta

RENEWED_AFTER = timedelta(days=1)
"""Age at which data is written again. A lifecycle rule counts whole days from then on."""


def is_young(written: datetime, now: datetime) -> bool:
    """Returns whether no lifecycle rule can delete soon what was written at the time `written`.

    The two times may be of the clocks of two nodes. Data from a future that is further away than a clock may be wrong
    counts as old: with a wrong clock of its writer, or of this pod, it would otherwise never be written again."""
    return abs(now - written) < RENEWED_AFTER
