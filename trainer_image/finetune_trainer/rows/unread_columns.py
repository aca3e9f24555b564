"""Finds the columns of a source that are not used but seem important, counts their rows, and says how to use them.

A column seems important if its name has a known meaning, or if it contains a text of several words that is not part of
the used columns. A rendered copy of the used columns is not important. Ids, sources and dates are not important."""

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

from finetune_api.spec.dataset import RowFiles, RowFormat
from finetune_trainer.rows.row_columns import ColumnMap, is_name, quoted, yaml_of
from finetune_trainer.rows.row_format import Message
from finetune_trainer.rows.row_messages import NOTHING
from finetune_trainer.rows.turns import WORDS, flag_of
from finetune_trainer.sources.row_keys import (
    LEARN,
    PREFERENCES,
    SAYS_SOMETHING,
    SYSTEMS,
    VERDICTS,
    is_media,
    is_metadata,
    is_thought,
    plain,
)
from finetune_trainer.sources.turn_lists import is_instruction

WATCHED = 64
"""Most columns that are examined. Rows whose keys are data can have any number of columns."""


class Meaning(IntEnum):
    """The content of an unused column, guessed from its name, the most serious first."""

    FLAG = 0
    MEDIA = 1
    PREFERENCE = 2
    THOUGHT = 3
    SYSTEM = 4
    TELLING = 5
    OTHER = 6
    METADATA = 7


class UnreadColumns:
    """Collects mapped columns of one source that no row has, and important columns that are not used."""

    def __init__(self, format: RowFormat, source: RowFiles) -> None:
        self._format, self._source = format, source
        self._read = ColumnMap.of(source).read_by(format)
        mapped = source.columns.model_dump(exclude_none=True) if source.columns else {}
        self._missing = {name: column for name, column in self._read.items() if name in mapped}
        read = {*self._read.values(), *ColumnMap.of(source).reasonings(format)}
        self._meanings: dict[str, Meaning] = dict.fromkeys(read, Meaning.METADATA)
        self._unread: Counter[str] = Counter()
        self._no_text: set[str] = set()
        self._rows, self._has_input = 0, False
        self._most = len(self._meanings) + WATCHED

    def note_names(self, row: dict[str, Any]) -> None:
        """Notes which mapped columns the next row has."""
        if self._missing:
            self._missing = {name: column for name, column in self._missing.items() if column not in row}

    def note(self, row: dict[str, Any], messages: Sequence[Message]) -> None:
        """Examines the columns of the next valid row. `messages`: the messages of the row."""
        self._rows += 1
        self._has_input = self._has_input or row.get(self._read.get("input", "")) not in NOTHING
        read = _texts(row, self._read.values(), messages)
        for name, value in row.items():
            if value in NOTHING:
                continue
            meaning = self._meanings.get(name)
            if meaning is None and len(self._meanings) < self._most:
                meaning = self._meanings[name] = _meaning(plain(name), value) if is_name(name) else Meaning.METADATA
            if meaning not in (None, Meaning.METADATA) and _says_something(meaning, value, read):
                self._unread[name] += 1
                if not (isinstance(value, str) or (meaning is Meaning.SYSTEM and is_instruction(value))):
                    self._no_text.add(name)

    def listed(self, field: str) -> list[str]:
        """Returns a text for each column, the most serious first, with its field in the spec and how to use it."""
        missing = [
            f"{field}.columns.{name} (no row has the column {quoted(column)}: correct or remove this line)"
            for name, column in self._missing.items()
        ]
        unread = sorted(self._unread, key=lambda name: (self._meanings[name], -self._unread[name], name))
        return [*missing, *(self._told(name, field) for name in unread)]

    def _told(self, name: str, field: str) -> str:
        false = "false in " * (self._meanings[name] is Meaning.FLAG)
        share = f"{false}{self._unread[name]:,} of {self._rows:,} rows"
        return f"the column {quoted(name)} of {field} ({share}; {self._way(name)})"

    def _way(self, name: str) -> str:
        """Returns what to do about a column. A mapping is suggested only for a column of texts."""
        match self._meanings[name]:
            case Meaning.FLAG:
                return "training uses these rows like all others: remove them from the file to exclude them"
            case Meaning.MEDIA:
                return "this operator trains only on text"
            case Meaning.PREFERENCE:
                return "training on pairs of a chosen and a rejected answer is not supported"
            case _ if name in self._no_text or plain(name) in VERDICTS:  # a label in the prompt would reveal the answer
                return "to use it, write it as text into a column that the format reads"
            case Meaning.THOUGHT if self._format in (RowFormat.PROMPT_COMPLETION, RowFormat.INSTRUCTION):
                return f"set columns: {yaml_of({'reasoning': name})} to train on it as the thought before the answer"
            case Meaning.SYSTEM if self._format is not RowFormat.TEXT:
                return f"set columns: {yaml_of({'system': name})} to use it as the system prompt"
        return self._asked_with(name)

    def _asked_with(self, name: str) -> str:
        if self._format is RowFormat.INSTRUCTION and not self._has_input:
            return f"set columns: {yaml_of({'input': name})} to add it to the prompt"
        if self._format is RowFormat.PROMPT_COMPLETION:
            mapping = {"instruction": self._read["prompt"], "input": name, "output": self._read["completion"]}
            named = " with format: Instruction" * (self._source.format is not RowFormat.AUTO)
            return f"set columns: {yaml_of(mapping)}{named} to add it to the prompt"
        return "to use it, write it into a column that the format reads"


def _meaning(name: str, value: Any) -> Meaning:
    """Returns the meaning of a column, from its name (as `plain` returns it) and its first value."""
    kinds = {
        Meaning.FLAG: name in LEARN or (name in VERDICTS and isinstance(value, bool)),
        Meaning.MEDIA: is_media(name) and not _has_words(value),
        Meaning.PREFERENCE: name in PREFERENCES,
        Meaning.THOUGHT: is_thought(name),
        Meaning.SYSTEM: name in SYSTEMS,
        Meaning.TELLING: name in SAYS_SOMETHING,
        Meaning.METADATA: is_metadata(name),
    }
    return next((meaning for meaning, so in kinds.items() if so), Meaning.OTHER)


def _says_something(meaning: Meaning, value: Any, read: Sequence[str]) -> bool:
    if meaning is Meaning.FLAG:
        return flag_of(value) is False
    if isinstance(value, str) and _stands_in(value.strip(), read):
        return False
    return meaning is not Meaning.OTHER or any(map(_has_words, value if isinstance(value, list) else [value]))


def _has_words(value: Any) -> bool:
    return isinstance(value, str) and len(value.split(None, WORDS - 1)) == WORDS


def _texts(row: dict[str, Any], columns: Iterable[str], messages: Sequence[Message]) -> list[str]:
    """Returns the used texts: the texts of the columns, or of the messages in them."""
    texts = [text.strip() for text in map(row.get, columns) if isinstance(text, str)]
    return [*texts, *(message.content.strip() for message in messages)] if len(texts) < 2 else texts


def _stands_in(text: str, read: Sequence[str]) -> bool:
    """Returns whether a text is part of the used texts, or contains all of them."""
    if not _has_words(text):
        return text in read
    return any(text in other for other in read) or (bool(read) and all(other in text for other in read))
