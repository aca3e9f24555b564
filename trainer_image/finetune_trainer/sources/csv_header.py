"""Reads the first line of a .csv or .tsv file: the separator and the names of the columns."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources.data_files import ending_of
from finetune_trainer.sources.findings import InvalidRow, name_shown

DELIMITERS = ",;\t|"
KNOWN = "comma, semicolon, tab or |"
UTF_8 = 'Save the table as "CSV UTF-8".'
"""Remedy for a table in another encoding, or with other line ends."""

_EXCEL = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
"""A line before the names that tells Excel the separator."""
_SEPARATED = re.compile(r"\w+(?P<separator>::|[\^~\x01-\x08\x1f\u00a6\u00a7]{1,2})\w+(?:(?P=separator)\w+)*")


@dataclass(frozen=True)
class Header:
    """The columns of a table."""

    names: tuple[str, ...]
    """The name of each column; "" for a column without a name."""
    delimiter: str
    spaced: bool
    """Whether a space follows each delimiter. The space is then not part of the value."""
    padded: bool
    """Whether a space is also before each delimiter, as in `prompt | completion`."""
    lines: int
    """Number of lines of the header."""

    @classmethod
    def read(cls, source: Iterator[str], uri: str) -> Self:
        """Reads the lines of the header from `source`. Raises TrainerFailure DatasetInvalid if they name no column,
        name a column twice, or are not UTF-8."""
        line, lines, delimiter = next(source, ""), 1, None
        if told := _EXCEL.fullmatch(line):
            line, lines, delimiter = next(source, ""), 2, told[1]
        _require_text(line, uri, lines)
        delimiter = delimiter or _delimiter(line, uri)
        found = _split(line, delimiter)
        spaced = all(name.startswith(" ") for name in found[1:] if name.strip()) and len(found) > 1
        padded = spaced and all(name.endswith(" ") for name in found[:-1])
        names = tuple(name.strip() for name in (_split(line, delimiter, spaced=True) if spaced else found))
        named = [name for name in names if name]
        if not named:
            raise refusal(f"{uri} line {lines} has no column names.", "Write the name of each column into it.")
        if twice := next((name for name in named if named.count(name) > 1), None):
            raise refusal(f"{uri} line {lines} names the column {name_shown(twice)} twice.", "Rename one of them.")
        if len(names) == 1 and (odd := _SEPARATED.fullmatch(named[0])):
            raise refusal(
                f"{uri} line {lines} seems to separate its columns by {name_shown(odd['separator'])}.",
                f"Write the table with {KNOWN} as the separator.",
            )
        return cls(names, delimiter, spaced, padded, lines)

    def row(self, fields: list[str], begin: int, end: int) -> dict[str, str] | InvalidRow | None:
        """Returns the fields of the lines `begin` to `end` by column name, or None if every field is empty. A first
        column without a name is ignored, because pandas writes the index of a data frame in this way. Any other column
        without a name must be empty: otherwise an InvalidRow is returned."""
        if len(fields) > 1 and not any(map(str.strip, fields)):
            return None
        while len(fields) > len(self.names) and not fields[-1].strip():
            fields = fields[:-1]
        while fields and len(fields) < len(self.names) and not self.names[len(fields)]:
            fields = [*fields, ""]
        if self.padded:
            fields = [field.rstrip(" ") for field in fields]
        if len(fields) != len(self.names):
            lines = f", lines {begin} to {end}" if end > begin else ""  # an extra quote makes one field of several rows
            detail = f"{len(fields)} fields, {len(self.names)} columns{lines}"
            return InvalidRow("the number of fields differs from the number of columns", detail)
        pairs = list(zip(self.names, fields, strict=True))
        for number, (name, field) in enumerate(pairs[1:], start=2):
            if not name and field.strip():
                return InvalidRow(
                    "a value is in a column without a name: name the column in line 1, or remove the value",
                    f"field {number}",
                )
        return {name: field for name, field in pairs if name}


def _require_text(line: str, uri: str, number: int) -> None:
    if not encodable(line):
        raise refusal(f"{uri} line {number} is not UTF-8.", UTF_8)
    if "\r" in line.rstrip("\r\n"):
        raise refusal(f"{uri} uses only a carriage return as the line end.", UTF_8)


def _delimiter(line: str, uri: str) -> str:
    if ending_of(uri) == "tsv" and "\t" in line:
        return "\t"
    return max(DELIMITERS, key=line.count)


def _split(line: str, delimiter: str, spaced: bool = False) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=spaced, strict=True), [])
    except csv.Error:
        return []


def encodable(text: str) -> bool:
    """Returns whether the text can be written as UTF-8. Bytes that are not UTF-8 were read as half surrogate pairs."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refusal(finding: str, remedy: str) -> TrainerFailure:
    """Returns the failure for a table that cannot be read."""
    return TrainerFailure(FailureReason.DATASET_INVALID, finding, remedy)
