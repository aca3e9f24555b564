"""What pods that store models in the cache tell each other: who needs how much room, and who stores which model.

A pod has a folder below partial/ for the model that it stores. An empty file in it is the reservation. Its name has the
bytes and the key of the model, and the clock of the volume dates it. Reservations have an order: that of their times,
and of their folders' names if the times are equal. Of several pods that reserve one model, the first one stores it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RESERVED, GONE = "reserved-", "gone-"
"""Beginnings of the names of a reservation, and of a folder of partial/ that is being deleted."""


@dataclass(frozen=True, order=True)
class Reservation:
    """What a pod has taken of the cache for a model. A folder without the file that says so has no key and no size."""

    made: int
    """Time in nanoseconds by the clock of the volume."""
    folder: str
    """Name of the pod's folder below partial/."""
    key: str = ""
    """Key of the model."""
    size: int = 0
    """Bytes of the model."""
    written: int = 0
    """Bytes of the model that are written."""


def reserve(part: Path, key: str, size: int) -> tuple[Path, Reservation]:
    """Reserves `size` bytes for the model `key`, which is written to the folder `part`. Returns the file that says
    so, and the reservation."""
    file = part / f"{RESERVED}{size}-{key}"
    file.touch()
    return file, Reservation(file.stat().st_mtime_ns, part.name, key, size)


def reservations(partial: Path) -> list[Reservation]:
    """Returns all reservations in their order."""
    found = []
    for folder in partial.iterdir():
        if folder.name.startswith(GONE):
            continue
        try:
            files = {path.name: path.stat() for path in folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):  # renamed or removed by its pod
            continue
        written = sum(about.st_size for about in files.values())
        name = next((name for name in files if name.startswith(RESERVED)), None)
        if name is None:
            found.append(Reservation(0, folder.name, written=written))
            continue
        size, _, key = name.removeprefix(RESERVED).partition("-")
        found.append(Reservation(files[name].st_mtime_ns, folder.name, key, int(size), written))
    return sorted(found)


def before(own: Reservation, found: Iterable[Reservation]) -> list[Reservation]:
    """Returns those of `found` that `own` has to count. Younger ones count `own`. One of the same model does not count:
    only one of the two pods stores it."""
    return [each for each in found if each.made <= own.made and each.folder != own.folder and each.key != own.key]


def to_come(counted: Iterable[Reservation], stored: Iterable[str]) -> list[Reservation]:
    """Returns those of `counted`, which are in their order, whose models come beside the `stored` ones. Only the first
    reservation of a model does, and none if the model is stored: the pods of the others write nothing."""
    known, found = set(stored), []
    for each in counted:
        if not each.key or each.key not in known:
            found.append(each)
        known.add(each.key)
    return found
