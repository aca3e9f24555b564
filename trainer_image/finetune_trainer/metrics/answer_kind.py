"""What kind of answers the rows hold, told from those to learn from. It decides which metrics are taken."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from finetune_trainer.metrics import json_fields
from finetune_trainer.tokens.row_store import Example

LOOKED_AT = 10_000
"""Training answers that are looked at, spread evenly over all."""
JSON_SHARE = 0.9
MOST_LABELS, LONGEST_LABEL, ROWS_PER_LABEL = 200, 64, 10


class AnswerKind(StrEnum):
    """What the answers are."""

    JSON = "JSON"
    """At least nine of ten training answers are a JSON object or array."""
    LABEL = "Label"
    """The training answers are 2 to 200 different ones of at most 64 characters and one line, with ten rows or more to
    each on average."""
    TEXT = "Text"
    """Anything else."""
    CONTINUATION = "Continuation"
    """The rows ask nothing: they are text to continue."""


@dataclass(frozen=True)
class Answers:
    """The training answers, summed up."""

    kind: AnswerKind
    labels: tuple[str, ...] = ()
    """Of kind Label: the different answers, the most frequent first."""


def recognise(train: Sequence[Example]) -> Answers:
    """What kind of answers the rows to learn from hold."""
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
    """At most `most` of the rows, spread evenly over all: reading each of a large data set would take minutes."""
    return [items[i] for i in range(0, len(items), max(1, ceil(len(items) / most)))]
