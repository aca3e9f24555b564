"""A file of every kind, compression and format, what the job says of its columns, and what its rows say."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Turns = list[tuple[str, str]]
ROWS = 8
"""Rows of each file."""


@dataclass(frozen=True)
class Reading:
    """`row`: the row of this number, as the file has it; `said`: role and text of each of its turns."""

    row: Callable[[int], dict[str, Any]]
    said: Callable[[int], Turns]
    source: dict[str, Any] = field(default_factory=dict)
    """What the job says of the file: format and columns."""


RULES = "Answer in one word."
ASKED, ANSWERED = "user", "assistant"


def pair(number: int) -> Turns:
    return [(ASKED, f"Which is number {number}?"), (ANSWERED, f"Number {number}.")]


def conversation(number: int) -> Turns:
    return [*pair(number), (ASKED, f"And after {number}?"), (ANSWERED, f"The one after {number}.")]


def task(number: int) -> Turns:
    return [(ASKED, f"Name the number.\n\n{number} of many"), (ANSWERED, f"It is {number}.")]


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in conversation(number)]


def share_gpt(number: int) -> list[dict[str, str]]:
    names = {ASKED: "human", ANSWERED: "gpt"}
    return [{"from": names[role], "value": text} for role, text in conversation(number)]


def thought(number: int) -> str:
    return f"What was asked for is number {number}."


def reasoned(number: int) -> Turns:
    """A pair whose answer begins with a thought."""
    (asked, (role, answered)) = pair(number)
    return [asked, (role, f"<think>\n{thought(number)}\n</think>\n\n{answered}")]


def with_thought_column(number: int) -> dict[str, str]:
    """A row that has the thought of `reasoned` in a column of its own."""
    (_, asked), (_, answered) = pair(number)
    return {"question": asked, "why": thought(number), "answer": answered}


def in_columns(turns: Callable[[int], Turns], *columns: str) -> Callable[[int], dict[str, Any]]:
    """Rows that have each turn in a column of its own."""
    return lambda number: dict(zip(columns, (text for _, text in turns(number)), strict=True))


def in_three(instruction: str, input: str, output: str) -> Callable[[int], dict[str, Any]]:
    """Rows of a task, the material it is about, and the result."""

    def row(number: int) -> dict[str, Any]:
        (_, asked), (_, answered) = task(number)
        first, _, second = asked.partition("\n\n")
        return {instruction: first, input: second, output: answered}

    return row


READINGS = {
    "messages.jsonl": Reading(
        lambda n: {"turns": messages(n), "rules": RULES},
        lambda n: [("system", RULES), *conversation(n)],
        {"format": "Messages", "columns": {"messages": "turns", "system": "rules"}},
    ),
    "sharegpt.jsonl.gz": Reading(
        lambda n: {"conversations": share_gpt(n)},
        conversation,
        {"format": "Messages", "columns": {"messages": "conversations"}},
    ),
    "auto-messages.jsonl.zst": Reading(lambda n: {"messages": messages(n)}, conversation),
    "instruction.json": Reading(
        in_three("task", "material", "result"),
        task,
        {"format": "Instruction", "columns": {"instruction": "task", "input": "material", "output": "result"}},
    ),
    "auto-instruction.json.gz": Reading(in_three("instruction", "input", "output"), task),
    "auto-pairs.json.zst": Reading(in_columns(pair, "prompt", "completion"), pair),
    "pairs.csv": Reading(
        in_columns(pair, "question", "answer"),
        pair,
        {"format": "PromptCompletion", "columns": {"prompt": "question", "completion": "answer"}},
    ),
    "auto-pairs.csv.gz": Reading(in_columns(pair, "prompt", "completion"), pair),
    "auto-columns.csv.zst": Reading(
        in_columns(pair, "question", "answer"), pair, {"columns": {"prompt": "question", "completion": "answer"}}
    ),
    "auto-pairs.ndjson": Reading(in_columns(pair, "prompt", "completion"), pair),
    "reasoned.tsv": Reading(
        with_thought_column,
        reasoned,
        {
            "format": "PromptCompletion",
            "columns": {"prompt": "question", "completion": "answer", "reasoning": "why"},
        },
    ),
    "text.parquet": Reading(
        in_columns(lambda n: [("document", f"Text number {n}.")], "body"),
        lambda n: [("document", f"Text number {n}.")],
        {"format": "Text", "columns": {"text": "body"}},
    ),
}
"""By name. No two rows are the same: the rows of the file at place p are numbered from p times ROWS."""


def numbers(name: str) -> range:
    """The numbers of a file's rows."""
    first = list(READINGS).index(name) * ROWS
    return range(first, first + ROWS)
