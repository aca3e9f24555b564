"""JSON objects from .jsonl and .json files, with the place each stands at."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.reasons import FailureReason
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.findings import Findings, InvalidRow
from finetune_trainer.storage import Storage

LINE_BYTES = 16 * 1024 * 1024
"""Longest line. A file that is not JSON Lines would else be one line that fills the memory."""
ARRAY_BYTES = 256 * 1024 * 1024
"""Largest .json file: it has to be held in memory whole."""
KINDS = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file."""

    value: dict[str, Any]
    source: str
    """FILE:LINE; for a .json file FILE:ITEM; from 1."""


def read_records(storage: Storage, uri: str, findings: Findings) -> Iterator[Record]:
    """The objects of a file, counted in `findings.rows`; what is no object goes to `findings`. Blank lines are skipped.

    Raises TrainerFailure DatasetInvalid where the file as a whole cannot be read."""
    values = _array(storage, uri) if uri.endswith(".json") else _lines(storage, uri)
    for number, value in values:
        findings.rows += 1
        source = f"{uri}:{number}"
        if isinstance(value, dict):
            yield Record(value, source)
        else:
            problem = value if isinstance(value, InvalidRow) else InvalidRow(f"{kind_of(value)}, not an object")
            findings.invalid_row(source, problem)


def kind_of(value: Any) -> str:
    """What a JSON value is, in a word."""
    return KINDS.get(type(value), "null")


def _lines(storage: Storage, uri: str) -> Iterator[tuple[int, Any]]:
    with storage.open(uri) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES + 1), b""), start=1):
            if len(line) > LINE_BYTES:
                raise TrainerFailure(
                    FailureReason.DATASET_INVALID,
                    f"{uri} line {number} is longer than {LINE_BYTES >> 20} MiB: a .jsonl file has one object a line.",
                )
            if not line.isspace():
                try:
                    yield number, parse(line.rstrip())
                except InvalidRow as problem:
                    yield number, problem


def _array(storage: Storage, uri: str) -> Iterator[tuple[int, Any]]:
    size = storage.size(uri) or 0
    if size > ARRAY_BYTES:
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"{uri} is larger than {ARRAY_BYTES >> 20} MiB: give so many rows as .jsonl, which is read line by line.",
        )
    try:
        found = parse(storage.read_bytes(uri))
    except InvalidRow as problem:
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"{uri}: {problem.kind} ({problem.detail}). A .json file holds one array; for one object a line name it "
            ".jsonl.",
        ) from problem
    if not isinstance(found, list):
        raise TrainerFailure(FailureReason.DATASET_INVALID, f"{uri} holds {kind_of(found)}, not an array of objects.")
    yield from enumerate(found, start=1)


def parse(data: bytes) -> Any:
    """The JSON value in `data`. Raises InvalidRow."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidRow("not UTF-8", f"byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        raise InvalidRow("not JSON", f"{error.msg} at {where}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRow("not JSON", "nested too deep or with a number too long") from error
