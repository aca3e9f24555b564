"""What can go wrong in the hub and in its storage."""

from dataclasses import dataclass, field
from threading import Barrier, Lock


@dataclass
class Faults:
    """What goes wrong. Each count is used up by the requests that it harms."""

    busy: int = 0
    """Requests that are answered with 429."""
    retry_after: int = 0
    """Retry-After of those answers."""
    broken: int = 0
    """Requests that are answered with 503."""
    cuts: int = 0
    """Contents of the storage of more than one byte whose connection is cut after half of the bytes."""
    broken_pages: int = 0
    """Requests for a page of a list after the first one that are answered with 503."""
    cut_pages: int = 0
    """Pages of a list after the first one whose connection is cut after half of the bytes."""
    endless: bool = False
    """Whether the last page of a list names itself as the next one."""
    unlisted: bool = False
    """Whether the hub has no lists of files."""
    list: str | None = None
    """The answer to every request for a list."""
    expired: int = 0
    """Requests to the storage that are refused as if their signature had expired."""
    together: Barrier | None = None
    """What the refused requests wait for before they are answered, so that all are answered at the same time."""
    whole: bool = False
    """Whether ranges are ignored."""
    silent: bool = False
    """Whether the answers to ranges have no content."""
    page: str | None = None
    """A page that is the answer to every request to the hub, as a login page of a network."""
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def used_up(self, fault: str) -> bool:
        """Whether this request has the fault, of which there is then one less."""
        with self._lock:
            left = getattr(self, fault)
            setattr(self, fault, max(0, left - 1))
            return bool(left)
