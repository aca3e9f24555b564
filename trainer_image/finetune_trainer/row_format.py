"""What a row asks and answers: each format's columns, read into one list of messages."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune_api.dataset import RowFormat
from finetune_trainer.findings import InvalidRow
from finetune_trainer.records import kind_of
from finetune_trainer.row_columns import Columns, column_names

DOCUMENT = "document"
THOUGHT, THOUGHT_END = "<think>", "</think>"
"""What models that think write around a thought, before the answer: Qwen3, DeepSeek-R1 and most after them."""
REASONING = "reasoning_content"
"""The key of a message under which rows, templates and servers may have its thought apart."""
REASONINGS = (REASONING, "reasoning", "thinking")
"""Names that rows have for it."""
SHARE_GPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Whom a message is `from` in the rows of ShareGPT, which have its text as `value`."""
NO_TOOLS: tuple[Any, ...] = (None, [], {}, "", "[]", "{}", "null")
"""A column of tools without any, also where it is JSON as text."""
CALLS, TOOLS = ("tool_calls", "function_call"), ("tools", "functions")
"""What a message calls, and what a row lets it call."""


class Message(NamedTuple):
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """A valid row: at most one system message first, then user and assistant in turn, the assistant last. A row of
    format Text is one message with the role DOCUMENT."""

    messages: tuple[Message, ...]
    source: str
    """Where it stands, as FILE:LINE."""
    mixture: int = 0
    """Index of its source in the list of sources it was read from."""

    @property
    def is_document(self) -> bool:
        """Whether it is of format Text, learned whole."""
        return self.messages[0].role == DOCUMENT


def messages_of(format: RowFormat, columns: Columns, row: dict[str, Any]) -> tuple[Message, ...]:
    """The row as messages. Raises InvalidRow."""
    messages = _messages_of(format, columns, row)
    begun = (message.content for message in messages if message.content.lstrip().startswith(THOUGHT))
    if any(THOUGHT_END not in content for content in begun):
        raise InvalidRow(f"a thought does not end ({THOUGHT} without {THOUGHT_END})")
    return messages


def _messages_of(format: RowFormat, columns: Columns, row: dict[str, Any]) -> tuple[Message, ...]:
    if format is RowFormat.TEXT:
        return (Message(DOCUMENT, _text(row, columns.text)),)
    system = _text(row, columns.system, required=False)
    if format is RowFormat.MESSAGES:
        return _with_system(system, columns.system, _conversation(row, columns.messages))
    if format is RowFormat.PROMPT_COMPLETION:
        asked, answer = _text(row, columns.prompt), _text(row, columns.completion)
    else:
        material = _text(row, columns.input, required=False)
        asked = "\n\n".join(part for part in (_text(row, columns.instruction), material) if part)
        answer = _text(row, columns.output)
    turns = (Message("user", asked), Message("assistant", answer))
    return (Message("system", system), *turns) if system else turns


def thinks(answer: str) -> bool:
    """Whether the answer begins with a thought that says something."""
    thought, end, _ = answer.partition(THOUGHT_END)
    return bool(end and thought.lstrip().removeprefix(THOUGHT).strip())


def parted(answer: str) -> tuple[str, str]:
    """The thought in an answer, without its marks, and what follows; "" where there is none."""
    thought, _, rest = answer.rpartition(THOUGHT_END)
    return thought.lstrip().removeprefix(THOUGHT).strip("\n"), rest


def final_answer(answer: str) -> str:
    """What follows the thoughts in an answer, without white space around it."""
    return parted(answer)[1].strip()


def _with_system(system: str, column: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages after the text of the row's own column for a system prompt."""
    if messages[0].role != "system":
        return (Message("system", system), *messages) if system else messages
    if system not in ("", messages[0].content):
        raise InvalidRow(f"two system prompts: the column {column}, and a message")
    return messages


def _conversation(row: dict[str, Any], column: str) -> tuple[Message, ...]:
    found = row.get(column)
    if found is None:
        raise InvalidRow(f"no {column}", f"columns found: {column_names(row)}")
    if not isinstance(found, list):
        raise InvalidRow(f"{column} is {kind_of(found)}, not a list")
    if not found:
        raise InvalidRow(f"{column} is empty")
    if offered := next((name for name in TOOLS if row.get(name) not in NO_TOOLS), None):
        raise InvalidRow("tool calls are not supported", f"column {offered}")
    messages = tuple(_message(message, number) for number, message in enumerate(found, start=1))
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, (message, role) in enumerate(zip(turns, ["user", "assistant"] * len(turns), strict=False), start=1):
        if message.role != role:
            number += len(messages) - len(turns)
            raise InvalidRow("messages out of order", f"message {number} is from {message.role}, expected {role}")
    if messages[-1].role != "assistant":
        raise InvalidRow("the last message is not from the assistant")
    return messages


def _message(message: Any, number: int) -> Message:
    if not isinstance(message, dict):
        raise InvalidRow("a message is not an object", f"message {number} is {kind_of(message)}")
    if any(message.get(name) for name in CALLS):
        raise InvalidRow("tool calls are not supported", f"message {number}")
    if "role" not in message:
        message = _of_share_gpt(message, number)
    role = message["role"]
    if role not in ("system", "user", "assistant"):
        raise InvalidRow("a message's role is not system, user or assistant", f"message {number}")
    if message.get("weight") not in (None, 1):
        raise InvalidRow("a message has a weight, and every answer is learned alike", f"message {number}")
    try:
        content = _text(message, "content")
        thought = _thought(message) if role == "assistant" and not thinks(content) else ""
    except InvalidRow as problem:
        raise InvalidRow(f"a message has a wrong content: {problem.kind}", f"message {number}") from problem
    return Message(role, f"{THOUGHT}\n{thought.strip()}\n{THOUGHT_END}\n\n{content}" if thought else content)


def _of_share_gpt(message: dict[str, Any], number: int) -> dict[str, Any]:
    """A message that says whom it is `from`, with the keys of the others."""
    if "from" not in message:
        raise InvalidRow("a message has no role", f"message {number}, keys found: {column_names(message)}")
    speaker = message["from"]
    role = SHARE_GPT.get(speaker) if isinstance(speaker, str) else None
    return message | {"role": role, "content": message.get("value")}


def _thought(message: dict[str, Any]) -> str:
    texts = (_text(message, name, required=False) for name in REASONINGS)
    return next(filter(None, texts), "")


def _text(row: dict[str, Any], column: str, required: bool = True) -> str:
    """A column's text; "" where it is not required and not there."""
    value = row.get(column)
    if value is None:
        if required:
            raise InvalidRow(f"no {column}", f"columns found: {column_names(row)}")
        return ""
    if not isinstance(value, str):
        raise InvalidRow(f"{column} is {kind_of(value)}, not text")
    if required and not value.strip():
        raise InvalidRow(f"{column} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRow(f"{column} holds half a surrogate pair, which is no character") from error
    return value if value.strip() else ""
