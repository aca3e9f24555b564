"""The messages that a row of any format becomes, and the thought at the beginning of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

DOCUMENT = "document"
THOUGHT, THOUGHT_END = "<think>", "</think>"
"""The marks that most reasoning models (Qwen3, DeepSeek-R1) write around a thought, before the answer."""
REASONING = "reasoning_content"
"""The key of a message for a thought that is separate from the answer, in rows, templates and servers."""


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str
    learned: bool = True
    """False for an answer that is context only and is not trained."""


@dataclass(frozen=True, slots=True)
class Row:
    """A valid row: an optional system message, then user and assistant in turn. The last message is an answer that is
    trained. A row of format Text is one message with the role DOCUMENT."""

    messages: tuple[Message, ...]
    place: str
    """The place of the row, as FILE:LINE."""
    mixture: int = 0
    """Index of the row's source in the list of sources."""

    @property
    def is_document(self) -> bool:
        """Whether the row has the format Text, which is trained as a whole."""
        return self.messages[0].role == DOCUMENT


def system_of(messages: Sequence[Message]) -> str:
    """Returns the text of the system message without white space around it, or "" if there is none."""
    return next((message.content.strip() for message in messages if message.role == "system"), "")


def thinks(answer: str) -> bool:
    """Returns whether the answer begins with a thought that is not empty."""
    thought, end, _ = answer.partition(THOUGHT_END)
    return bool(end and thought.lstrip().removeprefix(THOUGHT).strip())


def parted(answer: str) -> tuple[str, str]:
    """Returns the thought of an answer without its marks, or "" if there is none, and the text after the thought."""
    thought, _, rest = answer.rpartition(THOUGHT_END)
    return thought.lstrip().removeprefix(THOUGHT).strip("\n"), rest


def final_answer(answer: str) -> str:
    """Returns the text after the thoughts of an answer, without white space around it."""
    return parted(answer)[1].strip()


def with_thought(thought: str, answer: str) -> str:
    """Returns the marked thought followed by the answer, or the answer alone if the thought is empty."""
    thought = thought.strip().removeprefix(THOUGHT).removesuffix(THOUGHT_END).strip()
    return f"{THOUGHT}\n{thought}\n{THOUGHT_END}\n\n{answer}" if thought else answer
