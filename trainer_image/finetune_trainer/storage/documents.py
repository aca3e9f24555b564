"""Documents that several pods may write at once, and of which the first one counts.

On a file system without hard links such a document has its name before it has its content. So a reader may find it
empty or half, and has to read it again before it counts as damaged."""

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

from finetune_trainer.storage.job_storage import JobStorage

WRITING_SECONDS = 5.0
"""How long another pod may take to write a small document."""
PAUSE_SECONDS = 0.2
Parsed = TypeVar("Parsed")


def read_document(storage: JobStorage, uri: str, parse: Callable[[bytes], Parsed]) -> Parsed:
    """Returns what `parse` makes of the content. While it raises ValueError, the document is read again: another pod
    may be writing it.

    Raises the ValueError after WRITING_SECONDS, and TrainerFailure as JobStorage does."""
    deadline = monotonic() + WRITING_SECONDS
    while True:
        try:
            return parse(storage.read_bytes(uri))
        except ValueError:
            if monotonic() > deadline:
                raise
        sleep(PAUSE_SECONDS)
