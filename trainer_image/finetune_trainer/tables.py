"""Rows of .csv and .parquet files, read a few at a time."""

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from finetune_api.reasons import FailureReason
from finetune_trainer.data_files import BOM, LINE_BYTES, lines
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.findings import InvalidRow, name_shown

BATCH = 256
"""Rows of a Parquet file that are Python objects at a time."""
DELIMITERS = ",;\t"
NOT_HELD = (ValueError, OverflowError, KeyError, pyarrow.ArrowException)
"""What Arrow raises for a value that no Python type holds: nanoseconds, years after 9999, an unknown time zone (a
KeyError by zoneinfo or pytz, whichever the version of Arrow asks)."""


def csv_rows(stream: BinaryIO, uri: str) -> Iterator[tuple[int, Any]]:
    """The rows as text by column name, with the line each begins at. The first line names the columns, and is told
    from: columns stand apart by comma, semicolon or tab. Quoting as in RFC 4180; a quoted field may hold line ends.

    Raises TrainerFailure DatasetInvalid where the first line names no columns, and where rows cannot be told apart."""
    csv.field_size_limit(LINE_BYTES)
    source = _csv_lines(stream, uri)
    header, delimiter = _header(next(source, ""), uri)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    begin = 2
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num + 1 > begin:  # the lines between may be rows
                raise _refusal(
                    f"{uri} line {begin}: a quoted field of the row that begins here does not end as RFC 4180 has it, "
                    'and what follows cannot be told from it. Close its quote; one within a field is written twice: "".'
                ) from error
            yield begin, InvalidRow("not CSV", str(error))
        else:
            if fields:
                yield begin, _csv_row(header, fields, begin, reader.line_num + 1)
        begin = reader.line_num + 2


def _header(line: str, uri: str) -> tuple[list[str], str]:
    """The columns' names, and the delimiter between them."""
    if not _encodable(line):
        raise _refusal(f'{uri} line 1 is not UTF-8: save the table as "CSV UTF-8".')
    if "\r" in line.rstrip("\r\n"):
        raise _refusal(f'{uri} ends lines with a carriage return alone: save the table as "CSV UTF-8".')
    delimiter = max(DELIMITERS, key=line.count)
    try:
        header = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        header = []
    if not all(header) or len(set(header)) != len(header) or not header:
        raise _refusal(f"{uri} line 1 has to name every column of a .csv file, each once.")
    return header, delimiter


def _csv_row(header: list[str], fields: list[str], begin: int, end: int) -> dict[str, str] | InvalidRow:
    if len(fields) != len(header):
        lines = f", lines {begin} to {end}" if end > begin else ""  # a quote too many takes rows in
        return InvalidRow(
            "another number of fields than columns", f"{len(fields)} fields, {len(header)} columns{lines}"
        )
    if not all(map(_encodable, fields)):
        return InvalidRow("not UTF-8")
    return dict(zip(header, fields, strict=True))


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_lines(stream: BinaryIO, uri: str) -> Iterator[str]:
    for number, line in lines(stream, uri):
        if line is None:
            # A row may go on over lines, so that what is left of it cannot be told from the next.
            raise _refusal(
                f"{uri} line {number} is longer than {LINE_BYTES >> 20} MiB: make several rows of it, and end each "
                "with a line feed."
            )
        # What is not UTF-8 becomes half surrogate pairs, which are found in the row.
        yield (line.removeprefix(BOM) if number == 1 else line).decode(errors="surrogateescape")


def parquet_rows(stream: BinaryIO, uri: str) -> Iterator[tuple[int, Any]]:
    """The rows, numbered from 1. Raises TrainerFailure DatasetInvalid where it is no Parquet file, or names a column
    twice."""
    try:
        file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
        _refuse_names_twice(pyarrow.struct(file.schema_arrow), uri)
        number = 0
        for batch in file.iter_batches(BATCH, use_threads=False):
            for value in _values(batch):
                number += 1
                yield number, value
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's own
            raise
        why = str(error).partition("\n")[0][:200]
        raise _refusal(f"{uri} is no Parquet file, or broken ({why}): write or upload it again.") from error


def _refuse_names_twice(type: pyarrow.DataType, uri: str, above: str = "") -> None:
    names = set()
    for field in map(type.field, range(type.num_fields)):
        name = above + field.name
        if name in names:
            raise _refusal(f"{uri} has two columns {name_shown(name)}: which one holds is not defined. Rename one.")
        names.add(name)
        _refuse_names_twice(field.type, uri, f"{name}.")


def _values(batch: pyarrow.RecordBatch) -> list[Any]:
    try:
        return list(batch.to_pylist())
    except NOT_HELD:
        return [_row(batch, number) for number in range(len(batch))]


def _row(batch: pyarrow.RecordBatch, number: int) -> dict[str, Any] | InvalidRow:
    try:
        return {name: _value(column[number]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except UnicodeDecodeError:
        return InvalidRow("not UTF-8")


def _value(scalar: pyarrow.Scalar) -> Any:
    """The value as Python's. What Python's types cannot hold stays Arrow's: it matters only in a column that is used,
    where it is of the wrong type."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except NOT_HELD:
        if isinstance(scalar, pyarrow.StructScalar):
            return {name: _value(value) for name, value in scalar.items()}
        if isinstance(scalar, pyarrow.ListScalar):
            return [_value(value) for value in scalar.values]
        return scalar


def _refusal(message: str) -> TrainerFailure:
    return TrainerFailure(FailureReason.DATASET_INVALID, message)
