"""What every kind of storage can do, and how a failure is called by what its URI is for."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure


@dataclass(frozen=True)
class Place:
    """What a URI is for. It decides which reason a missing file and a refusal get."""

    missing: FailureReason
    denied: FailureReason


DATASET = Place(FailureReason.DATASET_NOT_FOUND, FailureReason.STORAGE_ACCESS_DENIED)
MODEL = Place(FailureReason.MODEL_NOT_FOUND, FailureReason.STORAGE_ACCESS_DENIED)
OUTPUT = Place(FailureReason.OUTPUT_NOT_WRITABLE, FailureReason.OUTPUT_NOT_WRITABLE)


class Files(Protocol):
    """One kind of storage. All arguments are whole URIs (or paths).

    A method raises whatever the storage's own library raises; `failure` says what such an error means."""

    def size(self, uri: str) -> int | None:
        """Bytes of the file; None where there is none."""

    def read(self, uri: str, start: int, length: int | None) -> bytes:
        """`length` bytes of the file from `start`, or all the rest."""

    def open(self, uri: str) -> BinaryIO:
        """The file as a stream that can seek."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """URI and bytes of every file whose URI begins with `prefix`, sorted by URI."""

    def download(self, uri: str, to: Path, advance: Callable[[int], None]) -> None:
        """Copies the file to a local path; `advance` is told of bytes as they arrive, from any thread."""

    def write(self, uri: str, data: bytes, if_absent: bool) -> bool:
        """Writes the file, with `if_absent` only if there is none, atomically. Returns whether it was written."""

    def upload(self, path: Path, uri: str, advance: Callable[[int], None]) -> None:
        """Copies a local file of any size; `advance` is told of bytes as they leave, from any thread."""

    def delete(self, uris: Iterable[str]) -> None:
        """Removes the files. They need not exist."""

    def failure(self, error: Exception, uri: str, place: Place) -> TrainerFailure | None:
        """The failure an error stands for; None where it is none of the storage's."""
