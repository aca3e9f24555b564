"""Detects the kind of the answers from the training rows. The kind decides the default metrics."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from finetune_trainer.metrics import json_fields
from finetune_trainer.tokens.row_store import Example

LOOKED_AT = 10_000
"""Maximum number of training answers that are read, evenly spread over all rows."""
JSON_SHARE = 0.9
MOST_LABELS, LONGEST_LABEL, ROWS_PER_LABEL = 200, 64, 10


class AnswerKind(StrEnum):
    """The kind of the answers."""

    JSON = "JSON"
    """At least 90% of the training answers are a JSON object or array."""
    LABEL = "Label"
    """The training answers are 2 to 200 different texts of at most 64 characters and one line, with at least 10 rows
    each on average."""
    TEXT = "Text"
    """Any other answers."""
    CONTINUATION = "Continuation"
    """The rows contain text to continue and no answers."""


@dataclass(frozen=True)
class Answers:
    """A summary of the training answers."""

    kind: AnswerKind
    labels: tuple[str, ...] = ()
    """For kind Label: the different answers, the most frequent first."""


def recognise(train: Sequence[Example]) -> Answers:
    """Returns the kind of the answers in the training rows."""
    looked_at = spread(train)
    seen = Counter(example.final_answer for example in looked_at if example.prompt)
    if looked_at and not seen:
        return Answers(AnswerKind.CONTINUATION)
    rows = seen.total()
    if rows and sum(count for text, count in seen.items() if json_fields.parse(text) is not None) >= JSON_SHARE * rows:
        return Answers(AnswerKind.JSON)
    short = all(len(text) <= LONGEST_LABEL and "\n" not in text for text in seen)
    if 2 <= len(seen) <= min(MOST_LABELS, rows / ROWS_PER_LABEL) and short:
        return Answers(AnswerKind.LABEL, tuple(text for text, _ in seen.most_common()))
    return Answers(AnswerKind.TEXT)


def spread(items: Sequence[Example], most: int = LOOKED_AT) -> list[Example]:
    """Returns at most `most` of the rows, evenly spread. Reading every row of a large data set would need minutes."""
    return [items[i] for i in range(0, len(items), max(1, ceil(len(items) / most)))]
