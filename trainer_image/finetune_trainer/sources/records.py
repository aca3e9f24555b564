"""Reads objects and their places from data files. Only a few rows are in memory at a time, for files of any size."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, isnan
from typing import Any, BinaryIO

from finetune_trainer.pod.liveness.heartbeat import attended
from finetune_trainer.sources.data_files import kind_of_file, open_data
from finetune_trainer.sources.findings import Findings, InvalidRow
from finetune_trainer.sources.json_rows import array_items, json_lines
from finetune_trainer.sources.row_keys import is_turn
from finetune_trainer.storage.job_storage import JobStorage

KINDS = {
    type(None): "null",
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file."""

    value: dict[str, Any]
    place: str
    """FILE:LINE; for a .json file FILE:ITEM, for a .parquet file FILE:ROW; from 1."""


def read_records(storage: JobStorage, uri: str, findings: Findings) -> Iterator[Record]:
    """Yields the objects of a file and counts them in `findings.rows`. Records other values as errors in `findings`.
    Skips blank lines.

    Raises TrainerFailure DatasetInvalid if the whole file cannot be read."""
    with open_data(storage, uri) as stream:
        for number, value in attended(_values(stream, uri)):
            findings.rows += 1
            place = f"{uri}:{number}"
            if isinstance(value, dict):
                yield Record(value, place)
            else:
                findings.invalid_row(place, value if isinstance(value, InvalidRow) else _no_object(value))


def kind_of(value: Any) -> str:
    """Returns the kind of a value in words, such as "a list"."""
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else "infinite"
    return KINDS.get(type(value), f"of type {type(value).__name__}")


def _no_object(value: Any) -> InvalidRow:
    if isinstance(value, list) and value and is_turn(value[0]):
        return InvalidRow("the row is a list of messages, not an object", 'write it as {"messages": [...]}')
    return InvalidRow(f"the row is {kind_of(value)}, not an object")


def _values(stream: BinaryIO, uri: str) -> Iterator[tuple[int, Any]]:
    match kind_of_file(uri):
        case "json":
            return array_items(stream, uri)
        case "csv":
            from finetune_trainer.sources.tables import csv_rows  # Arrow takes a second to import

            return csv_rows(stream, uri)
        case "parquet":
            from finetune_trainer.sources.tables import parquet_rows

            return parquet_rows(stream, uri)
        case _:
            return json_lines(stream, uri)
