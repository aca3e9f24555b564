"""Reads JSON values from files as a stream: one value per line (.jsonl), or the items of one array (.json).

`json_shapes` reads rows that are inside one object, as in a data frame."""

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources.data_files import BOM, LINE_BYTES, lines, refuse_utf_16
from finetune_trainer.sources.findings import InvalidRow, name_shown
from finetune_trainer.sources.json_shapes import is_frame_of_columns, refusal, rows_within
from finetune_trainer.sources.row_keys import is_turn

CHUNK_BYTES = 1 << 16


def json_lines(stream: BinaryIO, uri: str) -> Iterator[tuple[int, Any]]:
    """Yields the number, from 1, and the value of each line that is not blank. The value of a line that is not JSON is
    an InvalidRow. Raises TrainerFailure DatasetInvalid if the file is one array or a data frame."""
    first = True
    for number, line in lines(stream, uri):
        if line is None:
            yield number, InvalidRow(f"the line is longer than {LINE_BYTES >> 20} MiB", "write one object per line")
        elif line.removeprefix(BOM).strip():
            try:
                value: Any = parse(line.rstrip())
            except InvalidRow as problem:
                value = problem
            if first:
                _refuse_other_shapes(value, line.removeprefix(BOM), f"{uri} line {number}")
            first = False
            yield number, value


def _refuse_other_shapes(value: Any, line: bytes, place: str) -> None:
    """Raises TrainerFailure DatasetInvalid if the first line is, or starts, an array of rows or a data frame."""
    rows = isinstance(value, list) and any(isinstance(item, dict) and not is_turn(item) for item in value)
    begun = isinstance(value, InvalidRow) and value.kind == "not JSON" and line.lstrip().startswith(b"[")
    if rows or begun:
        what = "starts a JSON array, but a .jsonl file must have one object per line"
        remedy = "Rename the file to .json."
    elif is_frame_of_columns(value):
        what = "is a data frame stored by columns"
        remedy = 'Rename the file to .json, or write it in pandas with to_json(orient="records", lines=True).'
    else:
        return
    raise TrainerFailure(FailureReason.DATASET_INVALID, f"{place} {what}.", remedy)


def parse(data: bytes) -> Any:
    """Returns the JSON value in `data`. Raises InvalidRow if `data` is not JSON."""
    try:
        return DECODER.decode(data.removeprefix(BOM).decode())
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from error


def array_items(stream: BinaryIO, uri: str) -> Iterator[tuple[int, Any]]:
    """Yields the items with their numbers, from 1. Raises TrainerFailure DatasetInvalid at the first place that is not
    JSON, because the items after it cannot be found."""
    text = _Text(stream, uri)
    if (opening := text.peek()) == "{":
        yield from enumerate(rows_within(_only_object(text, uri), uri), start=1)
        return
    if opening != "[":
        found = {'"': "text", "": "nothing"}.get(opening, "no JSON")
        raise refusal(uri, f"contains {found}, not an array of objects")
    text.skip()
    number = 0
    while (mark := text.peek()) != "]":
        if number:
            if mark != ",":
                raise refusal(uri, f"is not JSON: a comma or ] is missing after item {number}")
            text.skip()
            text.peek()
        number += 1
        try:
            yield number, text.value()
        except InvalidRow as problem:
            yield number, problem
        except (ValueError, RecursionError) as error:
            raise refusal(uri, f"is not JSON: item {number} ({_not_json(error).detail.split(' at ')[0]})") from error
    text.skip()
    if text.peek():
        raise refusal(uri, "has more content after the end of its array")


def _only_object(text: "_Text", uri: str) -> dict[str, Any]:
    """Returns the only object of a .json file. The object must fit into memory."""
    try:
        value: dict[str, Any] = text.value()
    except InvalidRow as problem:
        raise refusal(uri, f"contains no rows: {problem.kind} ({problem.detail})") from problem
    except (ValueError, RecursionError) as error:
        if text.held > LINE_BYTES:
            raise refusal(uri, f"contains one object of more than {LINE_BYTES >> 20} MiB, not an array") from error
        raise refusal(uri, f"is not JSON ({_not_json(error).detail})") from error
    if following := text.peek():
        what = (
            "contains several objects, one after another" if following == "{" else "has more content after its object"
        )
        raise refusal(uri, what)
    return value


def _not_json(error: ValueError | RecursionError) -> InvalidRow:
    if isinstance(error, UnicodeDecodeError):
        return InvalidRow("not UTF-8", f"byte {error.start + 1}")
    if isinstance(error, json.JSONDecodeError):
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        return InvalidRow("not JSON", f"{error.msg} at {where}")
    return InvalidRow("not JSON", "it is nested too deeply, or a number is too long")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object. Raises InvalidRow for a key that occurs twice, because RFC 8259 does not define its value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidRow("an object has the same key twice", name_shown(twice))
    return found


DECODER, WITHOUT_CHECK = json.JSONDecoder(object_pairs_hook=_object), json.JSONDecoder()


class _Text:
    """The text of a file, decoded and parsed piece by piece."""

    def __init__(self, stream: BinaryIO, uri: str) -> None:
        self._stream, self._uri = stream, uri
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at, self._ended = "", 0, False

    @property
    def held(self) -> int:
        """Number of characters that were read but not yet parsed."""
        return len(self._text) - self._at

    def peek(self) -> str:
        """Returns the next character that is not white space, or "" at the end."""
        while True:
            rest = len(self._text) - self._at
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(rest):
                return ""

    def skip(self) -> None:
        """Skips the character that `peek` returned."""
        self._at += 1

    def value(self) -> Any:
        """Parses and returns the next value. Raises InvalidRow for an object with the same key twice, and
        JSONDecodeError for text that is not JSON."""
        decoder, problem = DECODER, None
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except InvalidRow as found:
                decoder, problem = WITHOUT_CHECK, found  # to find where the value ends
                continue
            except json.JSONDecodeError:
                if len(self._text) - self._at > LINE_BYTES or not self._more(len(self._text) - self._at):
                    raise
                continue
            # A number at the end of the text read so far may be longer: 1 may be 1.5 or 1e+5.
            cut, length = isinstance(value, int | float) and end + 2 >= len(self._text), end - self._at
            if not cut or not self._more(len(self._text) - self._at):
                self._at += length
                if problem:
                    raise problem
                return value

    def _more(self, wanted: int) -> bool:
        """Reads about `wanted` bytes more, so that the text doubles and a long value is not parsed too often. Returns
        False at the end of the file."""
        data = b"" if self._ended else self._stream.read(max(wanted, CHUNK_BYTES))
        if not data and self._ended:
            return False
        if not self._text:
            refuse_utf_16(data, self._uri)
        self._ended = not data
        try:
            decoded = self._decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise refusal(self._uri, "is not UTF-8", "Save it as UTF-8.") from error
        self._text, self._at = self._text[self._at :] + decoded, 0
        return bool(data)
