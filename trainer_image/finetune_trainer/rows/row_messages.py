"""Converts the columns of a row, in any format, to a list of messages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.spec.dataset import RowFormat
from finetune_trainer.rows.cells import text_of, value_of
from finetune_trainer.rows.readings import Noted, Reading
from finetune_trainer.rows.row_columns import ColumnMap, column_names
from finetune_trainer.rows.row_format import DOCUMENT, THOUGHT, THOUGHT_END, Message, thinks, with_thought
from finetune_trainer.rows.turns import instruction_of, turn_of
from finetune_trainer.sources.findings import InvalidRow, name_shown
from finetune_trainer.sources.records import kind_of
from finetune_trainer.sources.row_keys import ASSISTANT, MEDIA_MARK, SYSTEM, TOOLS, USER, is_media, plain
from finetune_trainer.sources.turn_lists import is_chat, list_of

NOTHING: tuple[Any, ...] = (None, [], {}, "", "[]", "{}", "null")
"""The values of an empty column. Some are JSON as text."""

_CLASS = re.compile(r"-?\d{1,3}")
"""An answer that can be the number of a class."""


@dataclass(frozen=True)
class RowReader:
    """Converts the rows of one source."""

    format: RowFormat
    columns: ColumnMap

    def messages(self, row: dict[str, Any], noted: Noted) -> tuple[Message, ...]:
        """Returns the row as messages. The last message is an answer that is trained. Counts converted values in
        `noted`. Raises InvalidRow for a row that cannot be used."""
        messages = self._messages(row, noted)
        begun = (message.content for message in messages if message.content.lstrip().startswith(THOUGHT))
        if any(THOUGHT_END not in content for content in begun):
            raise InvalidRow(f"a thought has no end ({THOUGHT} without {THOUGHT_END})")
        _require_no_media(row, messages)
        return messages

    def _messages(self, row: dict[str, Any], noted: Noted) -> tuple[Message, ...]:
        columns = self.columns
        if self.format is RowFormat.TEXT:
            return (Message(DOCUMENT, value_of(row, columns.text, noted)),)
        system = _system(row, columns.system)
        if self.format is RowFormat.MESSAGES:
            found = _turns(row, columns.messages, noted)
        elif self.format is RowFormat.PROMPT_COMPLETION and _is_conversational(row, columns):
            found = _prompted(row, columns, noted)
        else:
            answer = self._answer(row, noted)
            turns = (Message(USER, self._question(row, noted)), Message(ASSISTANT, answer))
            return (Message(SYSTEM, system), *turns) if system else turns
        _refuse_tools(row)
        return _up_to_last_learned(_in_order(_with_system(system, columns.system, found)))

    def _question(self, row: dict[str, Any], noted: Noted) -> str:
        if self.format is RowFormat.PROMPT_COMPLETION:
            return value_of(row, self.columns.prompt, noted)
        material = value_of(row, self.columns.input, noted, required=False)
        return "\n\n".join(part for part in (value_of(row, self.columns.instruction, noted), material) if part)

    def _answer(self, row: dict[str, Any], noted: Noted) -> str:
        """Returns the answer, with the thought before it if a separate column contains one."""
        columns = self.columns
        column = columns.completion if self.format is RowFormat.PROMPT_COMPLETION else columns.output
        answer = value_of(row, column, noted)
        if isinstance(row[column], str) and _CLASS.fullmatch(answer.strip()):
            noted[Reading.DIGITS, column] += 1
        if thinks(answer):
            return answer
        for name in columns.reasonings(self.format):
            if thought := text_of(row, name, required=False):
                noted[Reading.THOUGHT, name] += 1
                return with_thought(thought, answer)
        return answer


def _turns(row: dict[str, Any], column: str, noted: Noted) -> list[Message]:
    """Returns the messages in a column. Raises InvalidRow if the column is not a list of valid messages."""
    found = list_of(row.get(column))
    if found is None:
        missing = f"{column} is {'null' if column in row else 'missing'}"
        raise InvalidRow(missing, f"columns found: {column_names(row)}")
    if not isinstance(found, list):
        json = "JSON " * isinstance(found, str)
        raise InvalidRow(f"{column} is {kind_of(found)}, not a {json}list")
    if not found:
        raise InvalidRow(f"{column} is empty")
    turns = (turn_of(turn, number, noted) for number, turn in enumerate(found, start=1))
    return [turn for turn in turns if turn]


def _is_conversational(row: dict[str, Any], columns: ColumnMap) -> bool:
    """Returns whether prompt or completion is a list of messages. If a list is stored as text, both columns must be
    lists: one such text alone can be a question or answer about JSON."""
    sides = [row.get(columns.prompt), row.get(columns.completion)]
    chats = [side for side in sides if is_chat(side)]
    return len(chats) == 2 or any(not isinstance(side, str) for side in chats)


def _prompted(row: dict[str, Any], columns: ColumnMap, noted: Noted) -> list[Message]:
    """Returns the messages of a prompt and its completion, of which at least one is a list of messages. Answers in the
    prompt are context."""
    asked, answered = (
        _turns(row, column, noted) if is_chat(row.get(column)) else [Message(role, value_of(row, column, noted))]
        for column, role in ((columns.prompt, USER), (columns.completion, ASSISTANT))
    )
    return [*(turn._replace(learned=turn.role != ASSISTANT) for turn in asked), *answered]


def _system(row: dict[str, Any], column: str) -> str:
    """Returns the text of the system column, or "" if it is missing or empty."""
    return text_of({column: instruction_of(row.get(column))}, column, required=False)


def _with_system(system: str, column: str, messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with the text of the row's system column as the system message. Raises InvalidRow if the
    messages begin with another system message."""
    if not messages or messages[0].role != SYSTEM:
        return [Message(SYSTEM, system), *messages] if system else list(messages)
    if system not in ("", messages[0].content):
        raise InvalidRow(f"the column {column} and the system message differ: remove one of them")
    return list(messages)


def _in_order(messages: list[Message]) -> list[Message]:
    turns = messages[1:] if messages and messages[0].role == SYSTEM else messages
    for number, (message, role) in enumerate(zip(turns, [USER, ASSISTANT] * len(turns), strict=False), start=1):
        if message.role != role:
            number += len(messages) - len(turns)
            raise InvalidRow("messages out of order", f"message {number} is from {message.role}, expected {role}")
    if not turns or turns[-1].role != ASSISTANT:
        raise InvalidRow("the last message is not from the assistant")
    return messages


def _up_to_last_learned(messages: list[Message]) -> tuple[Message, ...]:
    """Returns the messages up to the last trained answer, because later messages have no effect on training. Raises
    InvalidRow if no answer is trained."""
    ends = [end for end, message in enumerate(messages, start=1) if message.role == ASSISTANT and message.learned]
    if not ends:
        raise InvalidRow("all answers of the row are excluded from training")
    return tuple(messages[: ends[-1]])


def _refuse_tools(row: dict[str, Any]) -> None:
    if offered := next((name for name in TOOLS if row.get(name) not in NOTHING), None):
        kind = "tool definitions are not supported: write them into the system message, as text, and remove the column"
        raise InvalidRow(kind, f"column {offered}")


def _require_no_media(row: dict[str, Any], messages: Sequence[Message]) -> None:
    """Raises InvalidRow for a text that refers to an image, audio or video in another column."""
    if not any("<" in message.content and MEDIA_MARK.search(message.content) for message in messages):
        return
    if column := next((name for name in row if is_media(plain(name)) and row[name] not in NOTHING), None):
        raise InvalidRow(
            "the row refers to an image, audio or video, and this operator trains only on text",
            f"column {name_shown(column)}",
        )
