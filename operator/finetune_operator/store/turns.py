"""Which jobs may create their cleanup, and did not yet. The callers hold the lock of the store."""

import time

TURN_SECONDS = 60.0
"""How long a job may take from its turn to the creation of its cleanup."""


class Turns:
    """A turn that is not used is taken back after TURN_SECONDS."""

    def __init__(self) -> None:
        self._taken: dict[str, float] = {}
        """time.monotonic() by the uid of each job."""

    def take(self, uid: str) -> None:
        """Give the job a turn that begins now."""
        self._taken[uid] = time.monotonic()

    def use(self, uid: str) -> None:
        """End the turn of a job, whose cleanup exists."""
        self._taken.pop(uid, None)

    def has(self, uid: str) -> bool:
        """Whether the job has a turn."""
        return self._taken.get(uid, float("-inf")) > time.monotonic() - TURN_SECONDS

    def uids(self) -> set[str]:
        """Return the jobs that have a turn. Forgets turns that were not used."""
        self._taken = {uid: taken for uid, taken in self._taken.items() if self.has(uid)}
        return set(self._taken)
