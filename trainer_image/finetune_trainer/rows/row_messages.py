"""What a row asks and answers: each format's columns, read into one list of messages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.spec.dataset import RowFormat
from finetune_trainer.rows.cells import text_of, value_of
from finetune_trainer.rows.readings import Noted, Reading
from finetune_trainer.rows.row_columns import Columns, column_names
from finetune_trainer.rows.row_format import DOCUMENT, THOUGHT, THOUGHT_END, Message, thinks, with_thought
from finetune_trainer.rows.turns import turn_of
from finetune_trainer.sources.findings import InvalidRow, name_shown
from finetune_trainer.sources.records import kind_of
from finetune_trainer.sources.row_keys import ASSISTANT, MEDIA_MARK, SYSTEM, TOOLS, USER, is_media, plain
from finetune_trainer.sources.turn_lists import is_chat, list_of

NOTHING: tuple[Any, ...] = (None, [], {}, "", "[]", "{}", "null")
"""A column without anything in it, also where it is JSON as text."""

_CLASS = re.compile(r"-?\d{1,3}")
"""An answer that may be the number of a class."""


@dataclass(frozen=True)
class RowReader:
    """How the rows of one source are read."""

    format: RowFormat
    columns: Columns

    def messages(self, row: dict[str, Any], noted: Noted) -> tuple[Message, ...]:
        """The row as messages, the last one an answer to be learned; `noted` takes what is read as something else than
        it is written. Raises InvalidRow."""
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
        system = text_of(row, columns.system, required=False)
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
        """The answer, after the thought that a column of its own holds."""
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
    """The turns in a column. Raises InvalidRow."""
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


def _is_conversational(row: dict[str, Any], columns: Columns) -> bool:
    """Whether prompt or completion is a list of turns. As text both have to be one: one alone may be about JSON."""
    sides = [row.get(columns.prompt), row.get(columns.completion)]
    chats = [side for side in sides if is_chat(side)]
    return len(chats) == 2 or any(not isinstance(side, str) for side in chats)


def _prompted(row: dict[str, Any], columns: Columns, noted: Noted) -> list[Message]:
    """A prompt and its completion, of which one or both are turns. Answers in the prompt are context."""
    asked, answered = (
        _turns(row, column, noted) if is_chat(row.get(column)) else [Message(role, value_of(row, column, noted))]
        for column, role in ((columns.prompt, USER), (columns.completion, ASSISTANT))
    )
    return [*(turn._replace(learned=turn.role != ASSISTANT) for turn in asked), *answered]


def _with_system(system: str, column: str, messages: Sequence[Message]) -> list[Message]:
    """The messages after the text of the row's own column for a system prompt."""
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
    """The messages without those that follow the last one to be learned: nothing is learned by them."""
    ends = [end for end, message in enumerate(messages, start=1) if message.role == ASSISTANT and message.learned]
    if not ends:
        raise InvalidRow("all answers of the row are excluded from training")
    return tuple(messages[: ends[-1]])


def _refuse_tools(row: dict[str, Any]) -> None:
    if offered := next((name for name in TOOLS if row.get(name) not in NOTHING), None):
        raise InvalidRow("tool calls are not supported", f"column {offered}")


def _require_no_media(row: dict[str, Any], messages: Sequence[Message]) -> None:
    """Raises InvalidRow for a text that speaks of an image, audio or video in another column."""
    if not any("<" in message.content and MEDIA_MARK.search(message.content) for message in messages):
        return
    if column := next((name for name in row if is_media(plain(name)) and row[name] not in NOTHING), None):
        raise InvalidRow(
            "the row refers to an image, audio or video, and this operator trains only on text",
            f"column {name_shown(column)}",
        )
