"""What a row asks and answers: each format's columns, read into one list of messages."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from finetune_api import dataset
from finetune_api.dataset import RowFiles, RowFormat
from finetune_api.reasons import FailureReason
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.findings import InvalidRow
from finetune_trainer.records import kind_of

KEYS = {
    RowFormat.MESSAGES: ("messages",),
    RowFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    RowFormat.INSTRUCTION: ("instruction", "output"),
    RowFormat.TEXT: ("text",),
}
"""Columns that tell a format; the order in which Auto tries them."""
DOCUMENT = "document"
THOUGHT, THOUGHT_END = "<think>", "</think>"
"""What models that think write around a thought, before the answer: Qwen3, DeepSeek-R1 and most after them."""
REASONING = "reasoning_content"
"""The key of a message under which rows, templates and servers may have its thought apart."""
NAMED = 12
"""Columns named in a message."""


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


@dataclass(frozen=True)
class Columns:
    """The columns' names in this source's files."""

    system: str
    prompt: str
    completion: str
    instruction: str
    input: str
    output: str
    messages: str
    text: str

    @classmethod
    def of(cls, source: RowFiles) -> Self:
        """The names of the format, but for those that are mapped."""
        mapped = source.columns or dataset.Columns()
        return cls(**{name: getattr(mapped, name) or name for name in dataset.Columns.model_fields})


def detect_format(row: dict[str, Any], source: RowFiles, field: str, place: str) -> RowFormat:
    """The format, told from the mapped columns, or else from the first row's column names.

    Raises TrainerFailure SpecInvalid for columns of two formats, DatasetInvalid where none fits."""
    mapped = source.columns.model_dump(exclude_none=True).keys() if source.columns else set()
    told = [format for format, keys in KEYS.items() if mapped & {*keys, *_optional(format)}]
    if len(told) > 1:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID, f"{field}.columns maps columns of {' and '.join(told)}: keep those of one."
        )
    told = told or [format for format, keys in KEYS.items() if row.keys() >= set(keys)]
    if not told:
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"{place}: the columns {column_names(row)} fit no format. Name yours in {field}.columns, for example "
            f"{_example(row)}.",
        )
    return told[0]


def messages_of(format: RowFormat, columns: Columns, row: dict[str, Any]) -> tuple[Message, ...]:
    """The row as messages. Raises InvalidRow."""
    messages = _messages_of(format, columns, row)
    begun = (message.content for message in messages if message.content.lstrip().startswith(THOUGHT))
    if any(THOUGHT_END not in content for content in begun):
        raise InvalidRow(f"a thought does not end ({THOUGHT} without {THOUGHT_END})")
    return messages


def _messages_of(format: RowFormat, columns: Columns, row: dict[str, Any]) -> tuple[Message, ...]:
    if format is RowFormat.MESSAGES:
        return _conversation(row, columns.messages)
    if format is RowFormat.TEXT:
        return (Message(DOCUMENT, _text(row, columns.text)),)
    system = _text(row, columns.system, required=False)
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


def column_names(row: dict[str, Any]) -> str:
    """The row's column names, for messages: not too many, none too long."""
    names = [name if len(name) <= 40 else f"{name[:37]}..." for name in row]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "") or "(none)"


def _conversation(row: dict[str, Any], column: str) -> tuple[Message, ...]:
    found = row.get(column)
    if found is None:
        raise InvalidRow(f"no {column}", f"columns found: {column_names(row)}")
    if not isinstance(found, list):
        raise InvalidRow(f"{column} is {kind_of(found)}, not a list")
    if not found:
        raise InvalidRow(f"{column} is empty")
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
    if message.get("tool_calls"):
        raise InvalidRow("tool calls are not supported", f"message {number}")
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise InvalidRow("a message's role is not system, user or assistant", f"message {number}")
    if message.get("weight") not in (None, 1):
        raise InvalidRow("a message has a weight, and every answer is learned alike", f"message {number}")
    try:
        content = _text(message, "content")
        thought = _text(message, REASONING, required=False) if role == "assistant" and not thinks(content) else ""
    except InvalidRow as problem:
        raise InvalidRow(f"a message has a wrong content: {problem.kind}", f"message {number}") from problem
    return Message(role, f"{THOUGHT}\n{thought.strip()}\n{THOUGHT_END}\n\n{content}" if thought else content)


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


def _optional(format: RowFormat) -> tuple[str, ...]:
    return ("input",) if format is RowFormat.INSTRUCTION else ()


def _example(row: dict[str, Any]) -> str:
    names = [name for name in row if len(name) <= 40]
    first, second = names if len(names) == 2 else ("question", "answer")
    return f"{{prompt: {first}, completion: {second}}}"
