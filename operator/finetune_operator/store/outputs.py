"""Finds jobs by their output: those that write to the same place, inside it or around it."""

from collections.abc import Iterator


class Outputs:
    """The outputs of jobs, each in its normal form (`finetune_api.conflicts.normal`), by uid. Not thread-safe."""

    def __init__(self) -> None:
        self._at: dict[str, set[str]] = {}
        """uids by output."""
        self._below: dict[str, set[str]] = {}
        """uids by each folder that is the output or contains it."""

    def add(self, uid: str, output: str) -> None:
        self._at.setdefault(output, set()).add(uid)
        for folder in _folders(output):
            self._below.setdefault(folder, set()).add(uid)

    def remove(self, uid: str, output: str) -> None:
        _discard(self._at, output, uid)
        for folder in _folders(output):
            _discard(self._below, folder, uid)

    def overlapping(self, output: str) -> set[str]:
        """Return the uids of the jobs whose output is `output`, inside of it, or a folder that contains it."""
        around = (self._at.get(folder, set()) for folder in _folders(output))
        return set().union(self._below.get(output, set()), *around)


def _folders(output: str) -> Iterator[str]:
    """Yield the output and the folders that contain it, up to its bucket."""
    start = output.find("://") + 3 if "://" in output else 0
    end = len(output)
    while end > start:
        yield output[:end]
        end = output.rfind("/", start, end)


def _discard(sets: dict[str, set[str]], name: str, uid: str) -> None:
    members = sets.get(name)
    if members is not None:
        members.discard(uid)
        if not members:
            del sets[name]
