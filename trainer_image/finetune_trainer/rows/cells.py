"""Reads one value of a row as text. Text stays unchanged; a number, true, false or an object becomes JSON."""

import json
from decimal import Decimal
from math import isfinite
from typing import Any

from finetune_trainer.rows.readings import Noted, Reading
from finetune_trainer.rows.row_columns import column_names
from finetune_trainer.sources.class_names import HIDDEN, ClassName, NoClass
from finetune_trainer.sources.findings import InvalidRow
from finetune_trainer.sources.records import kind_of


def value_of(row: dict[str, Any], column: str, noted: Noted, required: bool = True) -> str:
    """Returns a column's value as text, or "" if the column is optional and missing. Counts a value that is not text in
    `noted`. Raises InvalidRow if the value is missing, or if its meaning as text is not clear."""
    return text_of({column: as_text(row[column], column, noted)} if column in row else row, column, required)


def text_of(row: dict[str, Any], column: str, required: bool = True) -> str:
    """Returns a column's text, or "" if the column is optional and missing or blank. Raises InvalidRow if the value is
    not text, or if a required one is missing or blank."""
    value = row.get(column)
    if value is None:
        if required and column in row:
            raise InvalidRow(f"{column} is null")
        if required:
            raise InvalidRow(f"{column} is missing", f"columns found: {column_names(row)}")
        return ""
    if isinstance(value, NoClass):
        raise _no_class(value, column)
    if not isinstance(value, str):
        raise InvalidRow(f"{column} is {kind_of(value)}, not text")
    if required and not value.strip():
        raise InvalidRow(f"{column} is empty")
    _require_characters(value, column)
    return value if value.strip() else ""


def as_text(value: Any, column: str, noted: Noted) -> Any:
    """Returns a value as text if its meaning as text is clear, otherwise the value itself. Counts a value that is not
    text in `noted`. Raises InvalidRow for a list that is not clear."""
    match value:
        case ClassName():
            noted[Reading.CLASS, column] += 1
            return str(value)
        case bool():
            noted[Reading.BOOLEAN, column] += 1
            return json.dumps(value)
        case int() | float() | Decimal() if isfinite(value):
            noted[Reading.NUMBER, column] += 1
            return f"{value:f}" if isinstance(value, Decimal) else json.dumps(value)
        case {"text": list(texts), "answer_start": _}:  # SQuAD's
            return _first_answer(texts, column, noted)
        case dict() | list() if not isinstance(value, list) or all(isinstance(item, dict) for item in value):
            return _as_json(value, column, noted)
        case list():
            raise InvalidRow(
                f"{column} is a list, so it is not clear if one item or all items are meant: write the one item as "
                "text, or the whole list as JSON text"
            )
    return value


def _first_answer(texts: list[Any], column: str, noted: Noted) -> Any:
    if not texts:
        raise InvalidRow(f"{column} contains no answer: write the text that the model must answer here")
    if len(set(map(str, texts))) > 1:
        noted[Reading.FIRST_ANSWER, column] += 1
    return texts[0]


def _as_json(value: Any, column: str, noted: Noted) -> str:
    def no_text(part: Any) -> Any:
        raise _no_class(part, column) if isinstance(part, NoClass) else TypeError

    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=no_text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRow(f"{column} contains a value that cannot be written as JSON") from error
    noted[Reading.OBJECT, column] += 1
    return text


def _no_class(value: NoClass, column: str) -> InvalidRow:
    if value.number == HIDDEN:
        return InvalidRow(
            f"{column} contains the class number -1, which means that the label is not published: remove these rows, "
            "or use a split with labels"
        )
    return InvalidRow(
        f"{column} contains a class number without a name in the metadata of the file: correct the number or the names",
        f"number {value.number}",
    )


def _require_characters(text: str, column: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRow(f"{column} contains half of a Unicode surrogate pair, which is not a character") from error
