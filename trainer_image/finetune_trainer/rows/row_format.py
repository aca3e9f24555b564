"""What every row becomes, whatever its format: messages. And what stands before an answer: its thought."""

from dataclasses import dataclass
from typing import NamedTuple

DOCUMENT = "document"
THOUGHT, THOUGHT_END = "<think>", "</think>"
"""What models that think write around a thought, before the answer: Qwen3, DeepSeek-R1 and most after them."""
REASONING = "reasoning_content"
"""The key of a message under which rows, templates and servers may have its thought apart."""


class Message(NamedTuple):
    """One turn."""

    role: str
    content: str
    learned: bool = True
    """False for an answer that is context for what follows it and not learned."""


@dataclass(frozen=True, slots=True)
class Row:
    """A valid row: at most one system message first, then user and assistant in turn; the last is an answer that is
    learned. A row of format Text is one message with the role DOCUMENT."""

    messages: tuple[Message, ...]
    place: str
    """Where it stands, as FILE:LINE."""
    mixture: int = 0
    """Index of its source in the list of sources it was read from."""

    @property
    def is_document(self) -> bool:
        """Whether it is of format Text, learned whole."""
        return self.messages[0].role == DOCUMENT


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


def with_thought(thought: str, answer: str) -> str:
    """An answer after its thought, with the marks around it; as it is where there is none."""
    thought = thought.strip().removeprefix(THOUGHT).removesuffix(THOUGHT_END).strip()
    return f"{THOUGHT}\n{thought}\n{THOUGHT_END}\n\n{answer}" if thought else answer
