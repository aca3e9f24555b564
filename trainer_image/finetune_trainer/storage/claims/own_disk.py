"""Tells an error of the pod's own disk from one of the volume, in a copy from one to the other."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import BinaryIO, TypeVar

from finetune_trainer.storage.files import COPY_BYTES

T = TypeVar("T")


class OwnDiskError(OSError):
    """An error of the system that does not come from the volume. It has the number and the file of its cause."""


def of_own_disk(work: Callable[[], T]) -> T:
    """Returns the result of `work`, which does not use the volume. Raises OwnDiskError if it raises OSError."""
    try:
        return work()
    except OSError as error:
        raise OwnDiskError(error.errno, error.strerror, error.filename) from error


def parts_of(open: Callable[[], BinaryIO]) -> Iterator[bytes]:
    """Yields the content of a file on the pod's own disk. Raises OwnDiskError."""
    with closing(of_own_disk(open)) as stream:
        while data := of_own_disk(lambda: stream.read(COPY_BYTES)):
            yield data
