"""Rows of .csv and .parquet files, read a few at a time."""

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from finetune_api.reasons import FailureReason
from finetune_trainer.data_files import BOM, LINE_BYTES, lines
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.findings import InvalidRow

BATCH = 256
"""Rows of a Parquet file that are Python objects at a time."""
DELIMITERS = ",;\t"


def csv_rows(stream: BinaryIO, uri: str) -> Iterator[tuple[int, Any]]:
    """The rows as text by column name, with the line each begins at. The first line names the columns, and is told
    from: columns stand apart by comma, semicolon or tab. Quoting as in RFC 4180; a quoted field may hold line ends.

    Raises TrainerFailure DatasetInvalid where the first line names no columns."""
    csv.field_size_limit(LINE_BYTES)
    source = _csv_lines(stream, uri)
    first = next(source, "")
    header = next(csv.reader([first], delimiter=(delimiter := max(DELIMITERS, key=first.count))), [])
    if not all(header) or len(set(header)) != len(header) or not header:
        raise TrainerFailure(
            FailureReason.DATASET_INVALID, f"{uri} line 1 has to name every column of a .csv file, each once."
        )
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    begin = 2
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield begin, InvalidRow("not CSV", str(error))
        else:
            if fields:
                yield begin, _csv_row(header, fields)
        begin = reader.line_num + 2


def _csv_row(header: list[str], fields: list[str]) -> dict[str, str] | InvalidRow:
    if len(fields) != len(header):
        return InvalidRow("another number of fields than columns", f"{len(fields)} fields, {len(header)} columns")
    if not all(field.isascii() or _encodable(field) for field in fields):
        return InvalidRow("not UTF-8")
    return dict(zip(header, fields, strict=True))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_lines(stream: BinaryIO, uri: str) -> Iterator[str]:
    for number, line in lines(stream, uri):
        if line is None:
            # A row may go on over lines, so that what is left of it cannot be told from the next.
            raise TrainerFailure(
                FailureReason.DATASET_INVALID, f"{uri} line {number} is longer than {LINE_BYTES >> 20} MiB."
            )
        # What is not UTF-8 becomes half surrogate pairs, which are found in the row.
        yield (line.removeprefix(BOM) if number == 1 else line).decode(errors="surrogateescape")


def parquet_rows(stream: BinaryIO, uri: str) -> Iterator[tuple[int, Any]]:
    """The rows, numbered from 1. Raises TrainerFailure DatasetInvalid where it is no Parquet file."""
    try:
        file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
        number = 0
        for batch in file.iter_batches(BATCH, use_threads=False):
            for value in _values(batch):
                number += 1
                yield number, value
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's own
            raise
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"{uri} is no Parquet file, or broken: {str(error).splitlines()[0][:200]}",
        ) from error


def _values(batch: pyarrow.RecordBatch) -> list[Any]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [InvalidRow("not UTF-8")]
        return [value for row in range(len(batch)) for value in _values(batch.slice(row, 1))]
