"""What a tenant should know of how the rows were read: each thing once, with its number and what to do about it.

Pure functions over counts, as those of `advice`, which lists them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_trainer.rows.readings import Reading, Readings

COLUMNS_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """The numbers it is drawn from."""

    readings: Readings = field(default_factory=Readings)
    text_rows: int = 0
    """Rows to learn from of format Text."""
    own_tokens: Mapping[str, int] = field(default_factory=dict)
    """Of those, rows with a special token of the model, by the first such token of each."""
    foreign_marks: Mapping[str, int] = field(default_factory=dict)
    """Of those, rows with a mark of another model's format and none of its own, by the first such mark of each."""


def not_learned(facts: RowFacts) -> str | None:
    """Turns that say whether they are learned."""
    readings, said = facts.readings, []
    if rows := readings.rows_with(Reading.NOT_LEARNED):
        said.append(
            f"{_counted(readings.times(Reading.NOT_LEARNED), 'answer')} in {_counted(sum(rows.values()), 'row')} "
            f"say by {_names(rows)} that they are not to be learned: they are context for what follows, and a row ends "
            "with its last learned answer."
        )
    if rows := readings.rows_with(Reading.ASKED_TO_LEARN):
        said.append(
            f"{_counted(readings.times(Reading.ASKED_TO_LEARN), 'turn')} in {_counted(sum(rows.values()), 'row')} "
            f"say by {_names(rows)} that they are to be learned, but are not answers: only answers are learned. Set "
            "training.lossOn to All to learn every token."
        )
    return " ".join(said) or None


def values_as_text(facts: RowFacts) -> str | None:
    """Values that are no text and are learned, or asked with, as text; and numbers that may be those of classes."""
    readings = facts.readings
    said = [
        f"{name} holds {reading} in {_share(rows, readings)}, read as JSON writes them."
        for reading in (Reading.NUMBER, Reading.BOOLEAN, Reading.OBJECT)
        for name, rows in readings.rows_with(reading).items()
    ][:COLUMNS_NAMED]
    if said:
        said.append("To have them written in another way, write them as text.")
    digits = {name: rows for name, rows in readings.rows_with(Reading.DIGITS).items() if rows == readings.rows}
    said += [f"{name} holds {Reading.DIGITS} in all {rows:,} rows." for name, rows in digits.items()]
    if digits or readings.rows_with(Reading.NUMBER):
        said.append("If numbers stand for classes, write the names of the classes: a model learns names better.")
    said += [
        f"{name} holds several answers in {_share(rows, readings)}: the first one is taken."
        for name, rows in readings.rows_with(Reading.FIRST_ANSWER).items()
    ]
    return " ".join(said) or None


def thoughts(facts: RowFacts) -> str | None:
    """Columns whose text is learned as a thought."""
    found = facts.readings.rows_with(Reading.THOUGHT)
    if not found:
        return None
    return (
        f"{_names(found)} holds a thought in {_share(sum(found.values()), facts.readings)}: it is learned before the "
        "answer, between <think> and </think>. To learn the answer alone, leave the column out of the file."
    )


def special_tokens_in_text(facts: RowFacts) -> str | None:
    """Text rows that were written for a model's prompt format already."""
    said = []
    if own := facts.own_tokens:
        said.append(
            f"{sum(own.values()):,} of {facts.text_rows:,} Text rows hold special tokens of the model ({_most(own)}). "
            "They are read as such, and the tokens that begin and end a text are added only where they are missing. "
            "All of a Text row is learned: to learn the answers alone, give rows of Messages."
        )
    if foreign := facts.foreign_marks:
        said.append(
            f"{sum(foreign.values()):,} of {facts.text_rows:,} Text rows hold marks of another model's prompt format "
            f"({_most(foreign)}), which this model reads as plain text: give rows of Messages, or take the marks out "
            "with dataset.clean.remove."
        )
    return " ".join(said) or None


def unused_columns(facts: RowFacts) -> str | None:
    """Columns and keys that nothing reads."""
    readings = facts.readings
    keys = [
        f"the key {name} of messages ({_share(rows, readings)}; write it into the content to use it)"
        for name, rows in readings.rows_with(Reading.UNREAD_KEY).items()
    ]
    unused = [*readings.unused, *keys]
    if not unused:
        return None
    more = len(unused) - COLUMNS_NAMED
    shown = ", ".join(unused[:COLUMNS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"Nothing is read from {shown}. What stands there is neither asked with nor learned."


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _share(rows: int, readings: Readings) -> str:
    return f"{rows:,} of {readings.rows:,} rows"


def _names(rows: Mapping[str, int]) -> str:
    return " and ".join(list(rows)[:COLUMNS_NAMED])


def _most(marks: Mapping[str, int]) -> str:
    mark, rows = max(marks.items(), key=lambda pair: pair[1])
    return f"{mark} in {rows:,}"
