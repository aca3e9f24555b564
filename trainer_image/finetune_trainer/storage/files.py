"""The interface of every kind of storage, and the failure reasons for each use of a URI."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure

COPY_BYTES = 8 * 1024 * 1024
"""Bytes of a file that are in memory at a time while it is copied."""
PATIENCE_SECONDS = 900.0
"""The time without progress after which the storage counts as stalled. A request fails earlier, after its own retries
and its wait for renewed keys, and with a better reason."""


@dataclass(frozen=True)
class Place:
    """The use of a URI. It decides the failure reason for a missing file and for denied access."""

    missing: FailureReason
    denied: FailureReason


DATASET = Place(FailureReason.DATASET_NOT_FOUND, FailureReason.STORAGE_ACCESS_DENIED)
MODEL = Place(FailureReason.MODEL_NOT_FOUND, FailureReason.STORAGE_ACCESS_DENIED)
OUTPUT = Place(FailureReason.OUTPUT_NOT_WRITABLE, FailureReason.OUTPUT_NOT_WRITABLE)


def everywhere(folder: str) -> bool:
    """Says that the files of every folder are wanted."""
    return True


class Files(Protocol):
    """One kind of storage. All arguments are whole URIs (or paths).

    A method raises the errors of the storage's library. `failure` converts such an error to a TrainerFailure."""

    def size(self, uri: str) -> int | None:
        """Returns the size of the file in bytes, or None if the file does not exist."""

    def identity(self, uri: str, exact: bool = False) -> str:
        """Returns a text that changes when the content of the file changes. Needs the permission to read the file.

        `exact`: also if a large file in a claim keeps its size and the time of its last change, as `rsync --times` can
        do. A copy of such a file has another text then."""

    def read(self, uri: str, start: int, length: int | None) -> bytes:
        """Returns `length` bytes of the file from `start`, or all bytes from `start` if `length` is None."""

    def open(self, uri: str) -> BinaryIO:
        """Returns the file as a seekable stream."""

    def list(
        self,
        prefix: str,
        enters: Callable[[str], Hashable] = everywhere,
        takes: Callable[[str], object] | None = None,
    ) -> Iterator[tuple[str, int]]:
        """Yields the URI and the size in bytes of every file whose URI begins with `prefix`, sorted by URI.

        `enters`: whether files in the folder with this URI are wanted. `takes`: whether the file with this URI is
        wanted. A storage without folders may yield the others too. Where a file can have several names, because of
        links, a listing with `takes` yields it once. `enters` then returns equal values only for two folders in which
        files of the same names are wanted."""

    def download(self, uri: str, to: Path, advance: Callable[[int], None]) -> None:
        """Copies the file to a local path. Calls `advance` from any thread with the number of bytes received."""

    def write(self, uri: str, data: bytes, if_absent: bool) -> bool:
        """Writes the file atomically. With `if_absent`, only if the file does not exist. Returns whether it was
        written, also if the answer of the storage was lost and the request was repeated."""

    def upload(self, path: Path, uri: str, advance: Callable[[int], None]) -> None:
        """Uploads a local file of any size. Calls `advance` from any thread with the number of bytes sent."""

    def send(self, open: Callable[[], BinaryIO], uri: str, advance: Callable[[int], None]) -> None:
        """Uploads the seekable stream that `open` returns, of any size. Calls `advance` with the number of bytes sent,
        from any thread if the stream is large. If `advance` raises an exception, the upload ends with it and leaves no
        file."""

    def copy(self, uri: str, to: str, advance: Callable[[int], None]) -> None:
        """Copies a file of any size within the storage. A reader finds the copy whole or not at all. Calls `advance`
        from any thread with the number of bytes copied."""

    def delete(self, uris: Iterable[str]) -> None:
        """Deletes the files. A missing file is not an error."""

    def delete_leftovers(self, uri: str, is_unfinished: Callable[[bytes], bool]) -> None:
        """Deletes the partial files of other pods of the job, and the document `uri` if it stays unfinished because its
        writer was killed. A storage whose files are whole or not there has nothing to do."""

    def prune(self, folder: str) -> None:
        """Deletes the folder, given with a slash at its end, if no file is left in it, and the empty folders in it. A
        storage whose folders are only parts of names has nothing to do."""

    def failure(self, error: Exception, uri: str, place: Place) -> TrainerFailure | None:
        """Returns the failure for an error, or None if the error does not come from the storage."""
