"""Reads rows of .csv, .tsv and .parquet files, a few at a time."""

import csv
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from finetune_trainer.sources.class_names import naming
from finetune_trainer.sources.csv_header import Header, encodable, refusal
from finetune_trainer.sources.data_files import BOM, LINE_BYTES, lines
from finetune_trainer.sources.findings import InvalidRow, name_shown

BATCH = 256
"""Number of rows of a Parquet file that are converted to Python objects at a time."""
NOT_HELD = (ValueError, OverflowError, KeyError, pyarrow.ArrowException)
"""The errors of Arrow for a value without a Python type: nanoseconds, years after 9999, or an unknown time zone (a
KeyError of zoneinfo or pytz, depending on the version of Arrow)."""
SPACE_BEFORE_QUOTE = InvalidRow(
    "a space is before a quoted field, so its quotes would be read as text: remove the space after the separator"
)


def csv_rows(stream: BinaryIO, uri: str) -> Iterator[tuple[int, Any]]:
    """Yields each row as texts by column name, with the number of its first line. Skips rows whose fields are all
    empty. `csv_header` reads the column names from the first line. Quotes follow RFC 4180: a quoted field may contain
    line ends.

    Raises TrainerFailure DatasetInvalid if the first line has no column names, or if the end of a row cannot be
    found."""
    csv.field_size_limit(LINE_BYTES)
    source = _Lines(_csv_lines(stream, uri))
    header = Header.read(source, uri)
    reader = csv.reader(source, delimiter=header.delimiter, skipinitialspace=header.spaced, strict=True)
    quoted_late = _quoted_late(header.delimiter)
    begin = header.lines + 1
    while True:
        source.taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num + header.lines > begin:  # the lines between may be rows
                if re.search(rf'{re.escape(header.delimiter)} +"', source.taken[0]):
                    raise refusal(
                        f"{uri} line {begin}: a space is between the separator and an opening quote, so the end of the "
                        "row cannot be found.",
                        "Remove the space, or write a space after each separator of the first line too.",
                    ) from error
                raise refusal(
                    f"{uri} line {begin}: the row that starts here has a quoted field without a correct closing quote "
                    "(RFC 4180), so the rows after it cannot be read.",
                    'Close the quote. Write a quote inside a field twice: "".',
                ) from error
            yield begin, InvalidRow("not CSV", str(error))
        else:
            late = any(re.match(' +"', field) for field in fields) and quoted_late.search("".join(source.taken))
            row = SPACE_BEFORE_QUOTE if late else header.row(fields, begin, reader.line_num + header.lines)
            if row is not None and fields:
                whole = isinstance(row, InvalidRow) or all(map(encodable, row.values()))
                yield begin, row if whole else InvalidRow("not UTF-8", 'save the table as "CSV UTF-8"')
        begin = reader.line_num + header.lines + 1


def _quoted_late(delimiter: str) -> re.Pattern[str]:
    """Returns a pattern that matches a space between a delimiter and an opening quote. Inside a quoted field a quote is
    written twice, and the closing quote is before a delimiter or a line end."""
    mark = re.escape(delimiter)
    return re.compile(rf'{mark} +"(?:[^"{mark}\r\n]|"(?:{mark}|[\r\n]|$))')


class _Lines(Iterator[str]):
    """An iterator over lines that stores the lines read since `taken` was cleared."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.taken: list[str] = []

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken.append(line)
        return line


def _csv_lines(stream: BinaryIO, uri: str) -> Iterator[str]:
    for number, line in lines(stream, uri):
        if line is None:
            # A row can have several lines, so the end of this row cannot be found.
            raise refusal(
                f"{uri} line {number} is longer than {LINE_BYTES >> 20} MiB.",
                "Split it into several rows, and end each row with a line feed.",
            )
        # Bytes that are not UTF-8 become half surrogate pairs, which are then found in the row.
        yield (line.removeprefix(BOM) if number == 1 else line).decode(errors="surrogateescape")


def parquet_rows(stream: BinaryIO, uri: str) -> Iterator[tuple[int, Any]]:
    """Yields the rows with their numbers, from 1. Class numbers are replaced by their names, see `class_names`. Raises
    TrainerFailure DatasetInvalid if the file is not a Parquet file, or if two columns have the same name."""
    try:
        file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
        _refuse_names_twice(pyarrow.struct(file.schema_arrow), uri)
        named, number = naming(file.schema_arrow.metadata), 0
        for batch in file.iter_batches(BATCH, use_threads=False):
            for value in _values(batch):
                number += 1
                if named and isinstance(value, dict):
                    value |= {name: named[name](value[name]) for name in named.keys() & value.keys()}
                yield number, value
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an error of the file system
            raise
        why = str(error).partition("\n")[0][:200]
        raise refusal(
            f"{uri} is not a Parquet file, or it is damaged ({why}).", "Replace that file, or use an intact copy."
        ) from error


def _refuse_names_twice(type: pyarrow.DataType, uri: str, above: str = "") -> None:
    names = set()
    for field in map(type.field, range(type.num_fields)):
        name = above + field.name
        if name in names:
            raise refusal(f"{uri} has two columns with the name {name_shown(name)}.", "Rename one of them.")
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
    """Returns the value as a Python object. A value without a Python type stays an Arrow scalar. It is an error only in
    a column that is used, as a value of the wrong type."""
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
