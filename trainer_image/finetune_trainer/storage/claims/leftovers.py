"""Removes what killed pods have left in the volume of a claim, where no cleanup would remove it in time.

A file system without hard links cannot give a whole file a name that must not exist yet. So a small document of which
the first one counts has its name first and its content afterwards (`writes.put` with `if_absent`). If its writer is
killed in between, it stays unfinished for ever."""

from collections.abc import Callable
from time import monotonic, sleep

from finetune_trainer.storage.claims.paths import Volume
from finetune_trainer.storage.claims.writes import new_partial, placed_as_new, removed

WRITING_SECONDS = 10.0
"""How long a document must stay unfinished before its writer counts as killed."""
PAUSE_SECONDS = 0.5


def delete_unfinished(volume: Volume, path: str, work: str, is_unfinished: Callable[[bytes], bool]) -> None:
    """Deletes the document at `path` if it stays unfinished for WRITING_SECONDS.

    It is taken away first, and looked at again then: its writer may live, and may have finished it at the last moment.
    A finished one is put back, unless there is a new one. A writer that goes on after this finds that its document is
    not at its place (`writes`)."""
    deadline = monotonic() + WRITING_SECONDS
    while _is_at(volume, path, is_unfinished):
        if monotonic() > deadline:
            _delete(volume, path, work, is_unfinished)
            return
        sleep(PAUSE_SECONDS)


def _is_at(volume: Volume, path: str, is_unfinished: Callable[[bytes], bool]) -> bool:
    place = volume.entry(path)
    if place.is_symlink() or not place.is_file():
        return False
    try:
        return is_unfinished(place.read_bytes())
    except FileNotFoundError:
        return False


def _delete(volume: Volume, path: str, work: str, is_unfinished: Callable[[bytes], bool]) -> None:
    place, folder = volume.entry(path), volume.place(work)
    taken = new_partial(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place.rename(taken)
        if not is_unfinished(taken.read_bytes()):
            placed_as_new(taken, place)
    except FileNotFoundError:
        return  # another pod has deleted it
    finally:
        taken.unlink(missing_ok=True)
        _ = removed(folder) and removed(folder.parent)
