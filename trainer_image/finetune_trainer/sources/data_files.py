"""Reads data files as streams: the kind of a file from its name, its decompressed bytes, and its lines."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, BinaryIO, cast

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage

READ_BYTES = 1 << 20
LINE_BYTES = 16 * 1024 * 1024
"""Most bytes of a line. Without a limit, a file that does not consist of lines would fill the memory."""
BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


SAME_KIND = {"ndjson": "jsonl", "tsv": "csv"}
"""Other endings of the same kinds of files."""


def kind_of_file(uri: str) -> str:
    """Returns the kind of a file from its name, without its compression: jsonl, json, csv or parquet."""
    ending = ending_of(uri)
    return SAME_KIND.get(ending, ending)


def ending_of(uri: str) -> str:
    """Returns the ending of the name without its compression, such as csv or tsv."""
    return uri.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]


@contextmanager
def open_data(storage: JobStorage, uri: str) -> Iterator[BinaryIO]:
    """Opens a file and decompresses it while it is read. Raises TrainerFailure DatasetInvalid if it cannot be
    decompressed."""
    with storage.open(uri) as stream:
        try:
            yield _decompressed(stream, uri)
        except (gzip.BadGzipFile, zlib.error, EOFError, _BrokenZstd) as error:
            format = "gzip" if uri.endswith(".gz") else "Zstandard"
            raise TrainerFailure(
                FailureReason.DATASET_INVALID,
                f"{uri} cannot be decompressed: it is not a {format} file, or it is incomplete.",
                "Replace that file, or use an intact copy.",
            ) from error


def lines(stream: BinaryIO, uri: str) -> Iterator[tuple[int, bytes | None]]:
    """Yields each line with its number, from 1, and with its line end. Yields None for a line over LINE_BYTES.

    Raises TrainerFailure DatasetInvalid for UTF-16."""
    for number in count(1):
        line = stream.readline(LINE_BYTES + 1)
        if not line:
            return
        if number == 1:
            refuse_utf_16(line, uri)
        if len(line) <= LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(LINE_BYTES)
        yield number, None


def refuse_utf_16(beginning: bytes, uri: str) -> None:
    """Raises TrainerFailure DatasetInvalid if the beginning of a file has the byte order mark of UTF-16."""
    if beginning.startswith(UTF_16):
        raise TrainerFailure(FailureReason.DATASET_INVALID, f"{uri} is UTF-16 text.", "Save it as UTF-8.")


def _decompressed(stream: BinaryIO, uri: str) -> BinaryIO:
    if uri.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb"))
    if uri.endswith(".zst"):
        return io.BufferedReader(_Zstd(stream), READ_BYTES)
    return stream


class _BrokenZstd(Exception):  # noqa: N818 - becomes a TrainerFailure above
    """Arrow cannot decompress a file: it is not Zstandard, or it is incomplete."""


class _Zstd(io.RawIOBase):
    """A stream that Arrow decompresses. Python itself supports Zstandard only since version 3.14."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        import pyarrow

        self._stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if error.errno is not None:  # an error of the file system
                raise
            raise _BrokenZstd from error
        buffer[: len(data)] = data
        return len(data)
