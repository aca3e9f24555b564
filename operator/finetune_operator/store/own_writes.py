"""Which own writes no watch has shown yet. The callers hold the lock of the store."""

import time


class OwnWrites:
    """The writes of this operator that a watch is still expected to show."""

    def __init__(self) -> None:
        self._unseen: dict[str, tuple[int, float]] = {}
        """Version and time.monotonic() by uid."""

    def written(self, uid: str, version: int) -> None:
        """Expect a watch to show this version of the object."""
        self._unseen[uid] = (version, time.monotonic())

    def shown(self, uid: str, version: int) -> None:
        """Expect the object no longer if a watch has shown the written version or a later one."""
        if uid in self._unseen and self._unseen[uid][0] <= version:
            del self._unseen[uid]

    def forget(self, uid: str) -> None:
        """Expect nothing of an object that is gone."""
        self._unseen.pop(uid, None)

    def forget_all(self) -> None:
        """Expect nothing any more."""
        self._unseen.clear()

    def longest(self) -> float:
        """Return for how many seconds the oldest write has not been shown; 0 if there is none."""
        oldest = min((since for _, since in self._unseen.values()), default=None)
        return time.monotonic() - oldest if oldest is not None else 0.0
