"""Decides which models leave the cache so that another one has room."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A model in the cache."""

    key: str
    size: int
    """In bytes."""
    used: float
    """When a pod took the model last, in seconds."""
    in_use: bool = False
    """Whether a pod copies it now."""


def to_evict(entries: Iterable[Entry], needed: int, free: int, most: int | None) -> list[str] | None:
    """Returns the keys of the entries that must go, the least recently used first; None if there is no room even then.

    `needed`: bytes of the new model. `free`: free bytes of the volume. `most`: bytes that all entries together may
    have, or None. An entry in use stays."""
    known = list(entries)
    over = needed - free
    if most is not None:
        over = max(over, sum(entry.size for entry in known) + needed - most)
    chosen: list[str] = []
    for entry in sorted(known, key=lambda entry: entry.used):
        if over <= 0:
            break
        if not entry.in_use:
            chosen.append(entry.key)
            over -= entry.size
    return chosen if over <= 0 else None
